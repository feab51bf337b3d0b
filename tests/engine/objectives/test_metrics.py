"""Metrics by hand, and that they depend on the images alone: not on the batch size, not on clamping elsewhere."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from torch import Tensor, nn

from ftae.engine.data.source_base import ImageSet
from ftae.engine.models.autoencoder import Autoencoder, Codes, Encoding, NoiseFn, Posterior
from ftae.engine.models.staged_model import Stage
from ftae.engine.objectives.auxiliary import AuxiliaryNetworks
from ftae.engine.objectives.eval_batch import EvalBatch, EvalContext
from ftae.engine.objectives.feature_metrics import FEATURE_METRICS
from ftae.engine.objectives.latent_metrics import ActiveUnits
from ftae.engine.objectives.metrics import METRICS, Evaluation
from ftae.engine.training.evaluator import evaluate
from ftae.errors import FtaeError
from ftae.specs.finetune.metrics import METRICS as SPEC_METRICS
from ftae.specs.finetune.run import FinetuneSpec


def inputs(
    target: Tensor,
    reconstruction: Tensor,
    posterior: Posterior | None = None,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
) -> EvalBatch:
    encoding = Encoding(torch.zeros(len(target), 1)) if posterior is None else Encoding.of(posterior, None)
    return EvalBatch(target, target, reconstruction, encoding, logits, labels)


def measured(names: tuple[str, ...], *batches: EvalBatch) -> dict[str, float]:
    spec = spec_of().model_copy(update={"metrics": names})
    evaluation = Evaluation(context_of(shifting(Seen([], []), 0.6), spec))
    for batch in batches:
        evaluation.update(batch)
    return evaluation.compute()


def errors(*values: float) -> EvalBatch:
    """One 16x16 image for each error that all of its pixels have."""
    target = torch.full((len(values), 1, 16, 16), 0.5)
    return inputs(target, target + torch.tensor(values)[:, None, None, None])


def units(means: Tensor, logvar: float = 0.0) -> EvalBatch:
    images = torch.zeros(len(means), 1, 16, 16)
    return inputs(images, images, Posterior(means, torch.full_like(means, logvar)))


def test_the_table_has_an_entry_for_every_metric_of_the_specs() -> None:
    assert METRICS.keys() == SPEC_METRICS.keys()


def test_pixel_metrics_by_hand() -> None:
    found = measured(("mse", "l1", "psnr"), errors(0.1, -0.2))
    assert found == pytest.approx({"mse": (0.01 + 0.04) / 2, "l1": 0.15, "psnr": (20.0 + 10 * math.log10(25)) / 2})


def test_psnr_is_the_mean_of_images_not_of_pixels() -> None:
    batch = errors(0.5, 0.001)
    pooled = 10 * math.log10(1 / ((0.25 + 1e-6) / 2))
    found = measured(("psnr",), batch)["psnr"]
    assert found == pytest.approx((10 * math.log10(4) + 60.0) / 2, abs=1e-3)
    assert found > pooled + 20


def test_psnr_of_identical_images_is_finite() -> None:
    assert measured(("psnr",), errors(0.0))["psnr"] == pytest.approx(100.0)


def test_ssim() -> None:
    target = torch.rand(2, 3, 16, 16)
    assert measured(("ssim",), inputs(target, target))["ssim"] == pytest.approx(1.0, abs=1e-6)
    inverted = measured(("ssim",), inputs(target, 1 - target))["ssim"]
    assert inverted < 0.0
    one = measured(("ssim",), inputs(target, torch.stack([target[0], 1 - target[1]])))["ssim"]
    alone = measured(("ssim",), inputs(target[1:], 1 - target[1:]))["ssim"]
    assert one == pytest.approx((1.0 + alone) / 2, abs=1e-6)


def test_ssim_of_flat_images_by_hand() -> None:
    c1 = 0.01**2
    expected = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)  # without variance only luminance counts
    flat = inputs(torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6))
    assert measured(("ssim",), flat)["ssim"] == pytest.approx(expected, abs=1e-4)


def test_kl_is_a_sum_over_latents_and_a_mean_over_images() -> None:
    means = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert measured(("kl",), units(means))["kl"] == pytest.approx((12.5 + 0.0) / 2)
    spatial = torch.full((2, 3, 4, 4), 2.0)
    assert measured(("kl",), units(spatial))["kl"] == pytest.approx(0.5 * 4.0 * 48)
    wide = measured(("kl",), units(torch.zeros(1, 5), logvar=1.0))["kl"]
    assert wide == pytest.approx(5 * 0.5 * (math.e - 1 - 1))


def test_accuracy() -> None:
    images = torch.zeros(4, 1, 16, 16)
    logits = torch.tensor([[2.0, 1.0], [-1.0, 0.0], [0.1, 0.0], [5.0, 5.1]])
    batch = inputs(images, images, logits=logits, labels=torch.tensor([0, 1, 1, 1]))
    assert measured(("accuracy",), batch)["accuracy"] == 0.75


def test_active_units_of_flat_latents() -> None:
    # Standard deviations around the threshold of sqrt(0.01).
    spread = torch.tensor([1.0, 0.11, 0.09, 0.0])
    means = torch.tensor([[1.0], [-1.0]]) * spread + 7.0
    assert measured(("active_units",), units(means))["active_units"] == 2.0


def test_active_units_of_spatial_latents_are_channels() -> None:
    means = torch.zeros(2, 3, 4, 4)
    means[0, 0] = 1.0  # varies over images everywhere
    means[0, 1, 0, 0] = 1.0  # varies at one place of 16: 0.25 / 16 > 0.01
    means[:, 2] = torch.rand(4, 4) * 9  # varies over places, not over images
    assert measured(("active_units",), units(means))["active_units"] == 2.0
    means[0, 1, 0, 0] = 0.5  # 0.0625 / 16 < 0.01
    assert measured(("active_units",), units(means))["active_units"] == 1.0


def test_active_units_are_counted_over_the_whole_set() -> None:
    counted = ActiveUnits()
    for value in (0.0, 1.0):  # within a batch nothing varies
        counted.update(units(torch.full((2, 1), value)))
    assert counted.compute() == 1.0


def coded(*levels: list[list[int]], num_codes: int = 8) -> EvalBatch:
    """One image for each row of indices; one codebook for each level."""
    images, nothing = torch.zeros(len(levels[0]), 1, 16, 16), torch.zeros(())
    codes = tuple(Codes(torch.tensor(rows), num_codes, nothing, None) for rows in levels)
    return replace(inputs(images, images), encoding=Encoding(images, codes=codes))


def test_codes_are_counted_over_the_whole_set() -> None:
    names = ("codebook_usage", "perplexity")
    assert measured(names, coded([[0, 1]]), coded([[2, 3]])) == pytest.approx({names[0]: 0.5, names[1]: 4.0})
    uneven = measured(names, coded([[5, 5], [5, 6]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert uneven == pytest.approx({names[0]: 2 / 8, names[1]: math.exp(entropy)})


def test_the_least_of_several_codebooks_counts() -> None:
    names = ("codebook_usage", "perplexity")
    found = measured(names, coded([[0, 1, 2, 3]], [[7, 7, 7, 6]]), coded([[4, 5, 6, 7]], [[7, 7, 7, 6]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found == pytest.approx({names[0]: 2 / 8, names[1]: math.exp(entropy)})


# These need anomalies, large images, or a data set with labels or factors.
TRANSLATION = ("cycle_l1", "identity_l1")  # of a model that translates both ways
ELSEWHERE = ("auroc", "ms_ssim", "linear_probe", "mig", "dci", "lpips", "d_overfit", *TRANSLATION, *FEATURE_METRICS)


def test_results_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    target, reconstruction = torch.rand(12, 3, 16, 16), torch.rand(12, 3, 16, 16)
    posterior = Posterior(torch.randn(12, 3, 16, 16), torch.randn(12, 3, 16, 16))
    logits, labels = torch.randn(12, 3), torch.arange(12) % 3
    codes = torch.randint(0, 8, (12, 9))
    names = tuple(name for name in METRICS if name not in ELSEWHERE)

    def batches(size: int) -> list[EvalBatch]:
        cuts = [slice(start, start + size) for start in range(0, 12, size)]
        return [
            replace(
                inputs(target[c], reconstruction[c], None, logits[c], labels[c]),
                encoding=Encoding(
                    posterior.mean[c],
                    Posterior(posterior.mean[c], posterior.logvar[c]),
                    (Codes(codes[c], 8, torch.zeros(()), None),),
                ),
            )
            for c in cuts
        ]

    whole = measured(names, *batches(12))
    assert whole.keys() == set(names)
    for size in (1, 5, 6):  # 5 leaves a smaller last batch
        assert measured(names, *batches(size)) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", ["kl", "active_units"])
def test_metrics_of_the_posterior_need_one(name: str) -> None:
    with pytest.raises(FtaeError, match="kl and active_units need a posterior"):
        measured((name,), errors(0.1))


# --------------------------------------------------------------------------------- a whole evaluation


@dataclass
class Seen:
    """The inputs of the network."""

    latents: list[Tensor]
    training: list[bool]


def shifting(seen: Seen, shift: float) -> Autoencoder:
    """An autoencoder for images in [-1, 1] that adds ``shift`` to every pixel and has a wide posterior."""
    net = nn.Conv2d(1, 1, 1)

    def encode(images: Tensor, labels: Tensor | None, noise: NoiseFn | None) -> Encoding:
        seen.training.append(net.training)
        return Encoding.of(Posterior(images + shift, torch.full_like(images, 3.0)), noise)

    def decode(latents: Tensor, labels: Tensor | None) -> Tensor:
        seen.latents.append(latents)
        return latents

    return Autoencoder(
        net,
        [Stage("all", "decoder", (net,))],
        image_range=(-1.0, 1.0),
        channels=1,
        encode=encode,
        decode=decode,
        save=lambda folder: None,
    )


def context_of(autoencoder: Autoencoder, spec: FinetuneSpec) -> EvalContext:
    auxiliary = AuxiliaryNetworks(reference=shifting(Seen([], []), 0.0))
    return EvalContext(autoencoder, spec, auxiliary, image_set(0, 255), torch.device("cpu"))


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "conv_vae"},
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "batch_size": 4,
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["mse", "psnr", "ssim", "kl", "active_units"],
    }
    return run_spec(**fields | changes)


def image_set(*values: int) -> ImageSet:
    """Flat 16x16 images of these values of 255."""
    images = np.broadcast_to(np.array(values, dtype=np.uint8)[:, None, None, None], (len(values), 16, 16, 1))
    return ImageSet(images, None)


def test_an_evaluation_clamps_and_takes_the_mode_in_eval_mode() -> None:
    seen = Seen([], [])
    context = context_of(shifting(seen, shift=0.6).train(), spec_of())
    state = torch.get_rng_state()
    metrics, collapse_signs = evaluate(context, image_set(255, 204))
    # In [0, 1]: 1.0 stays 1.0 by clamping, 0.8 becomes 1.1 and is clamped: errors 0 and 0.2.
    assert metrics["mse"] == pytest.approx((0.0 + 0.04) / 2, abs=1e-6)
    assert metrics["psnr"] == pytest.approx((100.0 + 10 * math.log10(25)) / 2, abs=1e-3)
    assert torch.equal(state, torch.get_rng_state())
    assert seen.training == [False]
    assert torch.allclose(seen.latents[0].flatten(1).std(1), torch.zeros(2))  # no noise of the posterior
    assert collapse_signs["posterior collapse"] == metrics["active_units"] == 1.0


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    images = image_set(*range(0, 250, 19))
    found = [
        evaluate(context_of(shifting(Seen([], []), 0.3), spec_of(batch_size=size)), images)[0] for size in (1, 4, 50)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def test_a_model_without_a_posterior_has_no_active_units() -> None:
    autoencoder = shifting(Seen([], []), 0.0)
    autoencoder._encode = lambda images, labels, noise: Encoding(images)
    context = context_of(autoencoder, spec_of(metrics=["mse"]))
    assert evaluate(context, image_set(0, 255)) == ({"mse": 0.0}, {})


def test_latent_drift_is_relative_to_the_variance_of_the_pretrained_latents() -> None:
    spec = spec_of().model_copy(update={"metrics": ("latent_drift",)})
    images = image_set(0, 255)  # latents -1 and 1: variance 1
    assert evaluate(context_of(shifting(Seen([], []), 0.0), spec), images)[0]["latent_drift"] == 0.0
    assert evaluate(context_of(shifting(Seen([], []), 0.5), spec), images)[0]["latent_drift"] == pytest.approx(0.25)
