"""Every loss term: its value, its gradient, its weight, and what it must not depend on."""

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from builders import run_spec
from torch import Tensor, nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from vision_weights import random_weights

from ftae.engine.models.autoencoder import Autoencoder, Encoding, Posterior
from ftae.engine.models.builtin.vector_quantized import chosen
from ftae.engine.models.families import build_model
from ftae.engine.models.staged_model import Stage
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks, PerceptualNetwork
from ftae.engine.objectives.losses import LOSSES, LossInputs, loss_terms, total_variation, weighted_sum, weights_at
from ftae.engine.tasks.task import build_optimizer
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune import needs
from ftae.specs.finetune.losses import Losses
from ftae.specs.finetune.networks import PerceptualNet
from ftae.specs.finetune.run import FinetuneSpec

TERMS = tuple(LOSSES)
AT_ONCE = {
    "loss": "non_saturating",  # which is above 0
    "channels": 4,
    "start_fraction": 0.0,
    "ramp_fraction": 0.0,
    "warmup_fraction": 0.0,
    "adaptive": False,
}
Array = npt.NDArray[np.float64]


class ScaledPooling(nn.Module):
    """Latents are the images times a weight, pooled to the size that ``inputs`` has."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def autoencoder(self) -> Autoencoder:
        return Autoencoder(
            self,
            [Stage("all", "encoder", (self,))],
            image_range=(-1.0, 1.0),
            channels=None,
            encode=lambda images, labels, noise: Encoding(F.avg_pool2d(images[:, [0, 1, 1]], 4) * self.weight),
            decode=lambda latents, labels: latents,
            save=lambda folder: None,
        )


def posterior_of(x: LossInputs) -> Posterior:
    assert x.encoding.posterior is not None
    return x.encoding.posterior


def with_posterior(x: LossInputs, posterior: Posterior) -> LossInputs:
    """Its mean is also quantised, by two codebooks of a single code each, at 0 and at 1."""
    mean = posterior.mean
    flat = mean.flatten(1)
    levels = [(torch.full_like(flat, code), torch.zeros_like(flat, dtype=torch.int64)) for code in (0.0, 1.0)]
    codes = tuple(chosen(flat, code, indices, 1, by_gradient=True)[1] for code, indices in levels)
    return replace(x, encoding=Encoding(mean, posterior, codes))


@lru_cache
def perceptual_network() -> PerceptualNetwork:
    return PerceptualNetwork(PerceptualNet(net="vgg16", weights=random_weights("vgg16")))


SIDES = {"ms_ssim": 176}  # of images, for the terms that need large ones


def inputs(batch: int = 3, side: int = 16, seed: int = 0) -> LossInputs:
    """Random images in [-1, 1], so that a term that forgets the range is found out."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    target = unit(batch, 3, side, side)
    reconstruction = 0.5 * target + 0.5 * unit(batch, 3, side, side)
    x = LossInputs(
        given=target * 2 - 1,
        target=target * 2 - 1,
        reconstruction=reconstruction * 2 - 1,
        target_unit=target,
        reconstruction_unit=reconstruction,
        encoding=Encoding(torch.zeros(batch, 1)),
        logits=unit(batch, 5) * 6 - 3,
        labels=torch.arange(batch) % 5,
        autoencoder=ScaledPooling(3.0).autoencoder(),
        auxiliary=AuxiliaryNetworks(
            reference=ScaledPooling(1.0).autoencoder(),
            adversary=lambda images, given, real: images.square().mean(),
            perceptual=perceptual_network(),
        ),
        settings=Losses(huber_delta=0.5),
        progress=0.5,
        cycled=unit(batch, 3, side, side),
        unchanged=unit(batch, 3, side, side),
    )
    return with_posterior(x, Posterior(unit(batch, 3, 4, 4) * 4 - 2, unit(batch, 3, 4, 4) * 4 - 2))


def numbers(tensor: Tensor | None) -> Array:
    assert tensor is not None
    return tensor.double().numpy()


# ------------------------------------------------------------------------------------- references


def huber(a: Array, b: Array, delta: float) -> float:
    error = np.abs(a - b)
    return float(np.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta)).mean())


def bce(p: Array, t: Array) -> float:
    return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())


def kl(mean: Array, logvar: Array) -> float:
    return float((0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).mean())


def tv(x: Array) -> float:
    return float(np.abs(np.diff(x, axis=2)).mean() + np.abs(np.diff(x, axis=3)).mean())


def cross_entropy(logits: Array, labels: Array) -> float:
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-np.mean([row[int(label)] for row, label in zip(log_probabilities, labels, strict=True)]))


def ssim(a: Array, b: Array) -> float:
    """Wang et al. (2004): Gaussian 11x11 window, sigma 1.5, borders reflected, data range 1."""
    a, b = (np.pad(images, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect") for images in (a, b))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for x, y in zip(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                p, q = (image[top : top + 11, left : left + 11] for image in (x, y))
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * p**2).sum() - mean_p**2, (window * q**2).sum() - mean_q**2
                covariance = (window * p * q).sum() - mean_p * mean_q
                luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (var_p + var_q + c2))
    return float(np.mean(values))


def multiscale_ssim(a: Tensor, b: Tensor) -> float:
    value = multiscale_structural_similarity_index_measure(a, b, data_range=1.0)
    assert isinstance(value, Tensor)
    return value.item()


def reference(term: str, x: LossInputs) -> float:
    if term in ("lpips", "vgg"):  # test_vision_networks.py has their values
        return getattr(perceptual_network(), term)(x.reconstruction_unit, x.target_unit).mean().item()
    if term == "ms_ssim":
        return 1 - multiscale_ssim(x.reconstruction_unit, x.target_unit)
    a, b = numbers(x.reconstruction), numbers(x.target)
    unit_a, unit_b = numbers(x.reconstruction_unit), numbers(x.target_unit)
    if term == "ce":
        return cross_entropy(numbers(x.logits), numbers(x.labels))
    posterior, pooled = posterior_of(x), b[:, [0, 1, 1]].reshape(-1, 3, 4, 4, 4, 4).mean((3, 5))
    mean = numbers(posterior.mean)
    commitment = float((mean**2).mean() + ((mean - 1) ** 2).mean()) / 2
    return {
        "mse": float(((a - b) ** 2).mean()),
        "l1": float(np.abs(a - b).mean()),
        "huber": huber(a, b, x.settings.huber_delta),
        "bce": bce(unit_a, unit_b),
        "kl": kl(numbers(posterior.mean), numbers(posterior.logvar)),
        "tv": tv(a),
        "edge": float(sum(np.abs(np.diff(a, axis=i) - np.diff(b, axis=i)).mean() for i in (2, 3))),
        "latent_anchor": float(((numbers(posterior.mean) - pooled) ** 2).mean()),
        "l2_sp": (3.0 - 1.0) ** 2,
        "commitment": commitment,
        "codebook": commitment,
        "adversarial": float((a**2).mean()),
        "cycle": float(np.abs(numbers(x.cycled) - numbers(x.given)).mean()),
        "identity": float(np.abs(numbers(x.unchanged) - b).mean()),
        "ssim": 1 - ssim(unit_a, unit_b),
    }[term]


# ------------------------------------------------------------------------------------------ values


def test_the_table_has_an_entry_for_every_term_of_the_specs() -> None:
    assert tuple(Losses.TERMS) == TERMS


@pytest.mark.parametrize("term", TERMS)
def test_values(term: str) -> None:
    x = inputs(side=SIDES.get(term, 16))
    value = loss_terms(x, [term])[term]
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference(term, x), rel=2e-5)


def test_values_by_hand() -> None:
    x = replace(inputs(1), target=torch.zeros(1, 1, 2, 2), reconstruction=torch.tensor([[[[1.0, 0.2], [0.0, 0.0]]]]))
    found = {name: term.item() for name, term in loss_terms(x, ["mse", "l1", "huber", "tv"]).items()}
    assert found == pytest.approx(
        {
            "mse": 1.04 / 4,
            "l1": 1.2 / 4,
            "huber": (0.5 * (1.0 - 0.25) + 0.02) / 4,  # beyond delta 0.5, and within
            "tv": (1.0 + 0.2) / 2 + (0.8 + 0.0) / 2,
        }
    )


def test_kl_of_the_standard_normal_is_0() -> None:
    x = with_posterior(inputs(), Posterior(torch.zeros(2, 3), torch.zeros(2, 3)))
    assert LOSSES["kl"](x).item() == 0.0


def test_samples_have_the_mean_and_deviation_of_the_posterior() -> None:
    torch.manual_seed(0)
    posterior = Posterior(torch.full((200_000,), 3.0), torch.full((200_000,), 2 * math.log(0.5)))
    sample = posterior.sample()
    assert sample.mean().item() == pytest.approx(3.0, abs=0.01)
    assert sample.std().item() == pytest.approx(0.5, abs=0.01)


def test_kl_is_computed_in_fp32() -> None:
    half = Posterior(torch.full((1, 4), 300.0, dtype=torch.float16), torch.zeros(1, 4, dtype=torch.float16))
    assert LOSSES["kl"](with_posterior(inputs(), half)).item() == 0.5 * 300.0**2  # over fp16's range


def rows_of(x: LossInputs, rows: slice | Tensor) -> LossInputs:
    tensors = {name: value[rows] for name, value in vars(x).items() if isinstance(value, Tensor)}
    posterior = Posterior(posterior_of(x).mean[rows], posterior_of(x).logvar[rows])
    return with_posterior(replace(x, **tensors), posterior)


@pytest.mark.parametrize("term", TERMS)
def test_terms_are_means_not_sums(term: str) -> None:
    x = inputs(side=SIDES.get(term, 16))
    twice = rows_of(x, torch.arange(len(x.target)).repeat(2))
    assert LOSSES[term](twice).item() == pytest.approx(LOSSES[term](x).item(), rel=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_the_value_is_the_mean_of_the_values_over_equal_shares(term: str) -> None:
    """Training by several workers relies on this."""
    whole = inputs(batch=4, side=SIDES.get(term, 16))
    values = [LOSSES[term](rows_of(whole, rows)).item() for rows in (slice(0, 2), slice(2, 4))]
    assert (values[0] != values[1]) == (term != "l2_sp")  # which sees no images
    assert sum(values) / 2 == pytest.approx(LOSSES[term](whole).item(), rel=1e-6)


def test_total_variation_does_not_depend_on_the_resolution() -> None:
    def stripes(side: int) -> Tensor:
        return (torch.arange(side) % 2).float().expand(1, 3, side, side)

    assert [total_variation(stripes(side)).item() for side in (8, 16, 64)] == [1.0, 1.0, 1.0]
    noise = [total_variation(torch.rand(4, 3, side, side)).item() for side in (32, 128)]
    assert noise[0] == pytest.approx(noise[1], rel=0.05)


def test_kl_without_a_posterior_is_refused() -> None:
    with pytest.raises(FtaeError, match=r"losses\.kl needs a posterior"):
        LOSSES["kl"](replace(inputs(), encoding=Encoding(torch.zeros(3, 1))))


# ----------------------------------------------------------------------------------------- weights


def test_weights_leave_out_what_is_off() -> None:
    assert weights_at(Losses(mse=1.0, tv=0.5, kl=0.0), 0.0) == {"mse": 1.0, "tv": 0.5}


@pytest.mark.parametrize(
    ("warmup", "progress", "share"),
    [(0.0, 0.0, 1.0), (0.5, 0.0, 0.0), (0.5, 0.25, 0.5), (0.5, 0.5, 1.0), (0.5, 0.9, 1.0), (1.0, 0.3, 0.3)],
)
def test_kl_warms_up_linearly(warmup: float, progress: float, share: float) -> None:
    losses = Losses(mse=2.0, kl=0.01, kl_warmup_fraction=warmup)
    assert weights_at(losses, progress) == {"mse": 2.0, "kl": pytest.approx(0.01 * share)}


def test_the_total_is_the_weighted_sum() -> None:
    terms = {"mse": torch.tensor(2.0), "tv": torch.tensor(0.5)}
    assert weighted_sum(terms, {"mse": 3.0, "tv": 10.0}).item() == 11.0
    assert weighted_sum(terms, {"mse": 1.0, "tv": 10.0}).item() == 7.0
    assert weighted_sum({"mse": terms["mse"]}, {"mse": 1.0}) is terms["mse"]  # not multiplied by 1


# ------------------------------------------------------------------------------------- in the loop


def spec_of(losses: dict[str, float], **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae", "channels": 4, "latent_dim": 4},
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": losses,
        "perceptual": {"net": "vgg16", "weights": random_weights("vgg16")},
        "discriminator": AT_ONCE,
        "optimizer": {"lr": 1e-3},
        "max_grad_norm": None,
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


def first_step(losses: dict[str, float], folder: Path) -> dict[str, float]:
    """The train metrics of step 0 of a model that has moved a little from the pretrained one."""
    family = {"family": "vq_vae_2" if losses.keys() & {"commitment", "codebook"} else "conv_vae"}
    options = {"codebook": "gradient"} if family["family"] == "vq_vae_2" else {"latent_dim": 4}
    side = max(SIDES.get(term, 16) for term in losses)
    data = {"source": "digits", "resolution": side, "classes": [0, 1]}
    start = spec_of({"mse": 1.0}, data=data, model=family | {"channels": 4} | options)
    build_model(start, 2).save(folder)
    training = Trainer(spec_of(losses, data=data, model=family | {"pretrained": str(folder)}))
    with torch.no_grad():
        for parameter in training.autoencoder.parameters():
            parameter.mul_(1.1)
    training.train_to(1)
    return {name.removeprefix("train/"): value for name, value in training.measured().items()}


# Of one image and its output; test_cycle.py has the others.
OF_ONE_WAY = [term for term in TERMS if needs.both_ways not in Losses.TERMS[term]]


@pytest.mark.parametrize("term", [term for term in OF_ONE_WAY if needs.another_term not in Losses.TERMS[term]])
def test_every_term_trains_in_proportion_to_its_weight(term: str, tmp_path: Path) -> None:
    once, tenfold = (first_step({term: weight}, tmp_path) for weight in (0.1, 1.0))
    assert once["grad_norm"] > 1e-6
    assert tenfold["grad_norm"] == pytest.approx(10 * once["grad_norm"], rel=1e-4)
    assert tenfold[term] == once[term] > 0  # reported without its weight
    assert once["loss"] == pytest.approx(0.1 * once[term], rel=1e-6)
    assert tenfold["loss"] == pytest.approx(once[term], rel=1e-6)


@pytest.mark.parametrize("term", [term for term in OF_ONE_WAY if term != "mse"])
def test_a_weight_scales_its_own_part_of_the_total(term: str, tmp_path: Path) -> None:
    once, tenfold = (first_step({"mse": 1.0, term: weight}, tmp_path) for weight in (0.1, 1.0))
    assert tenfold["mse"] == once["mse"]
    parts = [metrics["loss"] - metrics["mse"] for metrics in (once, tenfold)]
    assert parts[1] == pytest.approx(10 * parts[0], rel=1e-3)
    assert parts[1] == pytest.approx(once[term], rel=1e-4)


def test_a_kl_capacity_is_held_to_and_reached_by_the_warm_up() -> None:
    posterior = Posterior(torch.full((2, 8), 2.0), torch.zeros(2, 8))  # 2 nats an element, 16 an image
    settings = Losses(mse=1.0, kl=3.0, kl_capacity=20.0, kl_warmup_fraction=0.5)
    at = [replace(with_posterior(inputs(), posterior), settings=settings, progress=p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert [LOSSES["kl"](x).item() for x in at] == pytest.approx([16 / 8, 6 / 8, 4 / 8, 4 / 8])
    assert weights_at(settings, 0.0)["kl"] == 3.0  # it is the capacity that warms up


def test_images_without_a_label_add_nothing_to_ce() -> None:
    x = inputs(4)
    assert x.labels is not None
    few = replace(x, labels=torch.where(torch.arange(4) < 2, x.labels, -1))
    assert LOSSES["ce"](few).item() == pytest.approx(LOSSES["ce"](rows_of(x, slice(0, 2))).item() / 2)
    none = replace(x, labels=torch.full((4,), -1))
    assert LOSSES["ce"](none).item() == 0.0


def test_the_kl_weight_warms_up_in_the_loop(tmp_path: Path) -> None:
    losses = {"mse": 1.0, "kl": 1.0, "kl_warmup_fraction": 0.5}
    reports = list(finetune(spec_of(losses, max_steps=4, num_evals=4), tmp_path))
    weights = [(r.metrics["train/loss"] - r.metrics["train/mse"]) / r.metrics["train/kl"] for r in reports[1:]]
    assert weights == pytest.approx([0.0, 0.5, 1.0, 1.0], abs=1e-4)


def test_ce_brings_a_head_with_a_group_of_its_own() -> None:
    optimizer = {"lr": 0.01, "lr_multipliers": {"head": 7.0}}
    spec = spec_of({"mse": 1.0, "ce": 0.5}, optimizer=optimizer)
    autoencoder = build_model(spec, num_classes=2)
    assert autoencoder.stages[-1].name == autoencoder.stages[-1].group == "head"
    head = {id(p) for p in autoencoder.stages[-1].parameters()}
    groups = build_optimizer(autoencoder, spec.optimizer).param_groups
    by_multiplier = {m: {id(p) for g in groups if g["multiplier"] == m for p in g["params"]} for m in (1.0, 7.0)}
    assert by_multiplier[7.0] == head
    assert by_multiplier[1.0] == {id(p) for p in autoencoder.net.parameters()}
    assert sorted({g["lr"] for g in groups}) == pytest.approx([0.01, 0.07])


def test_ce_without_labels_is_refused() -> None:
    with pytest.raises(FtaeError, match=r"losses\.ce needs labels"):
        build_model(spec_of({"ce": 1.0}), num_classes=None)


def test_ce_learns_the_labels(tmp_path: Path) -> None:
    spec = spec_of({"mse": 1.0, "ce": 1.0}, metrics=["accuracy"], optimizer={"lr": 0.01}, max_steps=30, batch_size=32)
    first, last = finetune(spec, tmp_path)
    assert last.metrics["val/accuracy"] > max(0.9, first.metrics["val/accuracy"])
    assert last.metrics["train/ce"] < math.log(2)
