"""What to train by and what to search, for a family and a task."""

from dataclasses import dataclass, field
from typing import Any

from ftae.drafting.document import Entry
from ftae.drafting.training import Known, batch_size, budget, log_range, optimization, precision, rate, search

WITHOUT_BOTTLENECK = ("autoencoder_tiny", "autoencoder_dc")  # stages of their own between encoder and decoder
CLOSE = 0.1  # of the variance of the latents: what a decoder of others hardly notices


@dataclass
class Recipe:
    """The sections of a file beside model and data."""

    title: str
    finetune: tuple[Entry, ...]
    space: tuple[Entry, ...]
    objective: dict[str, Any]
    why_objective: str
    search: tuple[Entry, ...]
    advice: list[str] = field(default_factory=list)


@dataclass
class _Draft:
    """The parts of a recipe as they are added."""

    losses: list[Entry] = field(default_factory=list)
    space: list[Entry] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def weight(self, name: str, value: float, why: str, space: dict[str, Any] | None = None, reason: str = "") -> None:
        self.losses.append(Entry(name, value, why))
        if space is not None:
            self.space.append(Entry(f"losses.{name}", space, reason))


def recipe(known: Known) -> Recipe:
    """What to train by, and what to search."""
    draft = _Draft()
    model = known.model
    if model.kind.takes_noise:
        objective, why = _generator(draft, known)
    elif model.kind.both_ways:
        objective, why = _two_ways(draft, known)
    elif known.task == "translate":
        objective, why = _pairs(draft, known)
    else:
        objective, why = _autoencoder(draft, known)
    if not model.kind.takes_noise and known.task != "sample":
        _stages(draft, known)
    lr, low, high, reason = rate(known)
    space = [Entry("optimizer.lr", log_range(low, high), reason), *draft.space]
    if draft.constraints:
        objective = {**objective, "constraints": draft.constraints}
    finetune = (
        *draft.others,
        Entry("losses", tuple(draft.losses)),
        *optimization(known, lr),
        *budget(known),
        Entry("metrics", draft.metrics),
        *precision(known),
    )
    return Recipe(_title(known), finetune, tuple(space), objective, why, search(known, len(space)), draft.advice)


def _title(known: Known) -> str:
    family = known.model.fields["family"]
    return f"{known.task.capitalize()}: {family}, {'from scratch' if known.model.is_new else 'tuned'}"


# ------------------------------------------------------------------------------------------- the tasks


def _autoencoder(draft: _Draft, known: Known) -> tuple[dict[str, Any], str]:
    """Images back: as they were, of degraded ones, or to tell anomalies."""
    draft.weight("mse", 1.0, "the error of pixels, which psnr measures")
    if known.has_height:
        draft.weight("l1", 0.0, "", {"choices": [0.0, 0.3, 1.0]}, "less blur where errors are few and large")
    if known.task == "denoise":
        noisy = {"low": 1.0e-5, "high": 1.0e-1, "log": True}
        if known.has_height:
            draft.weight("tv", 1.0e-3, "smooths what is left of the noise", noisy, "too much removes texture, too")
    elif min(known.data.size) >= 16 and known.data.channels in (1, 3) and known.task == "reconstruct":
        space = {"low": 0.0, "high": 0.5}
        draft.weight("ssim", 0.1, "structure, which eyes see before errors of pixels", space, "costs some psnr")
    _latent_terms(draft, known)
    draft.metrics.insert(0, "psnr")
    if known.task == "denoise":
        draft.metrics.append("input_psnr")
        draft.advice.append("A winner must beat val/input_psnr: what giving the degraded image back scores.")
    if min(known.data.size) >= 16:
        draft.metrics.insert(1, "ssim")
    if known.data.meaning is not None and known.data.meaning.unit is not None:
        draft.metrics.append("mae")
    _label_terms(draft, known)
    if known.task == "anomaly":
        draft.metrics.insert(0, "auroc")
        return _objective("auroc"), "how well the error of an image tells anomalies from the rest; 0.5 is chance"
    return _objective("psnr"), "of held-out images; the search says what is within noise"


def _latent_terms(draft: _Draft, known: Known) -> None:
    kind, model = known.model.kind, known.model
    if kind.has_posterior and not model.is_shared:
        reason = "the less a latent may hold, the more regular latents are, and the worse reconstructions"
        draft.weight(
            "kl", 1.0e-4, "per latent element; the plan says what it is as beta", log_range(1.0e-6, 1.0e-2), reason
        )
        draft.metrics += ["kl", *(["active_units"] if known.num_val > 1 else [])]
    if kind.has_codes:
        draft.weight(
            "commitment", 0.25, "draws the encoder to the codes; beta of van den Oord et al.", log_range(0.05, 2.0)
        )
        if model.fields["family"] == "vq_model" or model.options.get("codebook") == "gradient":
            draft.weight("codebook", 1.0, "draws the codes to the encoder")
        draft.metrics += ["codebook_usage", "perplexity"]


def _label_terms(draft: _Draft, known: Known) -> None:
    if known.classes and known.task == "reconstruct" and known.model.kind.has_latents:
        shown = ", ".join(known.classes[:3]) + (", ..." if len(known.classes) > 3 else "")
        why = f"classes are there ({shown}): ce trains a head on the latents, which accuracy measures; the metric "
        why += "linear_probe tells what latents know of them anyway"
        draft.losses.append(Entry("ce", 0.1, why, hidden=True))


def _pairs(draft: _Draft, known: Known) -> tuple[dict[str, Any], str]:
    """A to B, learned from pairs."""
    draft.weight("l1", 100.0, "the weights of Pix2Pix (Isola et al. 2017): 100 l1 to 1 adversarial")
    depth = _judge_depth(known)
    draft.metrics += ["psnr", "input_psnr", "l1", "sharpness"]
    _latent_terms(draft, known)
    if depth is not None:
        draft.weight(
            "adversarial",
            1.0,
            "sharp images; pixel metrics alone favour blur",
            log_range(0.1, 10.0, or_off=True),
            "off in some trials, which tells what it costs and gains",
        )
        judge = {"channels": 64 if min(known.data.size) >= 128 else 16, "depth": depth, "adaptive": False}
        draft.others.append(Entry("discriminator", judge, "new, and trained alone before it counts"))
        draft.space.append(Entry("discriminator.lr", log_range(1.0e-4, 2.0e-3)))
    return _objective("psnr"), "of B and what the model makes of A; look at sharpness and the pictures, too"


def _two_ways(draft: _Draft, known: Known) -> tuple[dict[str, Any], str]:
    """Between two domains without partners."""
    draft.weight("adversarial", 1.0, "the weights of CycleGAN (Zhu et al. 2017)")
    draft.weight("cycle", 10.0, "an image is found again in its translation", log_range(2.0, 20.0))
    off = "keeps colours, and forbids what must change them: off in some trials"
    draft.weight("identity", 5.0, "", log_range(0.1, 10.0, or_off=True), off)
    depth = _judge_depth(known)
    judge = {"channels": 64 if min(known.data.size) >= 128 else 16, "depth": depth or 1}
    draft.others.append(Entry("discriminator", judge))
    draft.space.append(Entry("discriminator.lr", log_range(5.0e-5, 2.0e-3)))
    draft.advice.append("Add features and the metric kid, and optimise it: cycle_l1 does not see whether B looks real.")
    if known.data.truly_paired:
        draft.metrics += ["psnr", "input_psnr", "cycle_l1", "identity_l1", "change"]
        return _objective("psnr"), "validation images have partners"
    draft.metrics += ["cycle_l1", "identity_l1", "change"]
    draft.constraints.append("val/change >= 0.03")
    return {"metric": "val/cycle_l1", "direction": "minimize"}, "among models that do change images"


def _generator(draft: _Draft, known: Known) -> tuple[dict[str, Any], str]:
    """New images of noise."""
    draft.weight("adversarial", 1.0, "a generator learns from its discriminator alone")
    family, side = known.model.fields["family"], known.data.size[0]
    gamma = 0.0002 * side**2 / batch_size(known)
    judge: dict[str, Any] = {"lr": 2.0e-3 if family == "stylegan2" else 2.0e-4}
    if known.model.fields.get("pretrained"):
        draft.advice.append("If the folder has a discriminator, begin with it: discriminator.pretrained.")
    if family == "stylegan2":
        for name in ("channel_base", "channel_max"):
            if name in known.model.options:
                judge[name] = known.model.options[name]
        judge |= {"r1": round(gamma, 4), "r1_every": 16}
        draft.space.append(
            Entry("discriminator.r1", log_range(round(gamma / 8, 5), round(gamma * 8, 4)), "about the rule")
        )
    if known.num_train < 5000:
        judge["augment"] = {"name": "diffaugment"}
    reason = "r1 by 0.0002 * side**2 / batch_size; augmented, as a few thousand images are known by heart otherwise"
    draft.others.append(Entry("discriminator", judge, reason if family == "stylegan2" else ""))
    draft.space.append(Entry("discriminator.lr", log_range(judge["lr"] / 10, judge["lr"] * 2)))
    draft.metrics += ["edge_distance", "sharpness"] + (["d_overfit"] if known.num_val >= 10 else [])
    draft.advice.append(
        "Add features (a network) and the metrics kid and recall, and optimise kid: see gan_digits.yaml."
    )
    return {"metric": "val/edge_distance", "direction": "minimize"}, "a stand-in until features are there for kid"


def _judge_depth(known: Known) -> int | None:
    """Strided convolutions of a discriminator of patches; None where images are too small for one."""
    return next((depth for depth in (3, 2, 1) if min(known.data.size) >= 8 << depth), None)


def _objective(metric: str) -> dict[str, Any]:
    return {"metric": f"val/{metric}", "direction": "maximize"}


# ------------------------------------------------------------------------------------ what is trained


def _stages(draft: _Draft, known: Known) -> None:
    """Which stages move."""
    model, kind = known.model, known.model.kind
    if model.is_new or kind.both_ways:
        return
    if not kind.has_latents:
        if len(known.stages) > 2:
            draft.others.insert(0, Entry("freeze_depth", 0, f"of {len(known.stages)} stages, from the image on"))
            draft.space.append(Entry("freeze_depth", {"low": 0, "high": len(known.stages) // 2}))
        return
    if model.is_shared:
        _keep_latents(draft, known)
        return
    if known.kept:
        text = f"of {len(known.stages)} stages, from the image on; the decoder begins after {known.kept}"
        draft.others.insert(0, Entry("freeze_depth", 0, text))
        why = "early stages see edges, which few domains change"
        draft.space.append(Entry("freeze_depth", {"low": 0, "high": max(known.kept - 1, 1)}, why))
        draft.space.append(
            Entry("optimizer.lr_multipliers.encoder", log_range(0.1, 3.0), "the encoder may want another pace")
        )


def _keep_latents(draft: _Draft, known: Known) -> None:
    """Decoder alone first: diffusion models may have learned these latents."""
    if known.task != "reconstruct":
        draft.advice.append("The encoder moves, as the task asks: diffusion models of its latents do not fit any more.")
    elif known.kept:
        text = f"of {len(known.stages)}: the decoder alone, so that what was trained on the latents still fits"
        draft.others.insert(0, Entry("freeze_depth", known.kept, text))
        why = "0 lets the encoder move as well, within the constraint"
        draft.space.append(Entry("freeze_depth", {"choices": [known.kept, 0]}, why))
    else:
        text = "the decoder alone, so that what was trained on the latents still fits"
        parts = ["encoder"] if known.model.fields["family"] in WITHOUT_BOTTLENECK else ["encoder", "bottleneck"]
        draft.others.insert(0, Entry("freeze", parts, text))
        draft.space.append(
            Entry(
                "freeze",
                {"choices": [parts, []]},
                "[] lets the encoder move, within the constraint",
            )
        )
    draft.metrics.append("latent_drift")
    if known.task == "reconstruct":
        draft.constraints.append(f"val/latent_drift <= {CLOSE}")
        draft.advice += [
            f"latent_drift, over the variance of the latents, stays below {CLOSE}: drop the constraint where nothing",
            "else uses the latents, or take the freezing out of the space to keep them exactly.",
        ]
