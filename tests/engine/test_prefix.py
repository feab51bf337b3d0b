"""The frozen prefix, computed once: no number of a run depends on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from ftae.engine.build import build_model
from ftae.engine.checkpoint import latest_checkpoint
from ftae.engine.loop import finetune
from ftae.engine.prefix import Cut, Prefix
from ftae.specs.finetune import FinetuneSpec

DIGITS = {
    "source": "digits",
    "resolution": 16,
    "color": "rgb",
    "classes": [0, 1],
}  # 288 for training, 72 for validation
ENCODER = 3  # stages of the conv_vae's encoder, its bottleneck among them
MODELS: dict[str, dict[str, Any]] = {
    "mlp_vae": {"family": "mlp_vae", "hidden": 16, "latent_dim": 4},
    "conv_ae": {"family": "conv_ae", "channels": 8, "latent_channels": 2},
    "conv_vae": {"family": "conv_vae", "channels": 8, "latent_dim": 4},
    "outer_stages": {"family": "conv_vae", "channels": 8, "latent_dim": 4, "depth": 1, "outer_stages": 1},
    "vq_vae": {"family": "vq_vae", "channels": 8, "codebook_size": 24, "code_dim": 4, "dead_code_threshold": 4.0},
    "autoencoder_kl": {"family": "autoencoder_kl"},
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prefixes"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pretrained_kl(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kl")
    torch.manual_seed(1)
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches whose prefix is computed."""
    sizes: list[int] = []
    compute = Prefix._computed

    def counted(self: Prefix, inputs: torch.Tensor, cut: Cut) -> Any:
        sizes.append(len(inputs))
        return compute(self, inputs, cut)

    monkeypatch.setattr(Prefix, "_computed", counted)
    return sizes


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": MODELS["conv_vae"],
        "data": DIGITS,
        "freeze_depth": ENCODER,
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "ema_half_life_fraction": 0.3,
        "batch_size": 16,
        "max_steps": 24,
        "num_evals": 1,
        "metrics": ["psnr"],
        "num_threads": 1,
    }
    return FinetuneSpec.model_validate(fields | changes)


def without_cache(spec: FinetuneSpec) -> FinetuneSpec:
    return spec.model_copy(update={"prefix_cache_gb": 0.0})


def result(spec: FinetuneSpec, folder: Path) -> tuple[list[tuple[int, dict[str, float]]], bytes, bytes]:
    """Every metric and the last weights and averages of a run."""
    reports = [(report.step, report.metrics) for report in finetune(spec, folder)]
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    weights, averages = ((checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "average"))
    return reports, weights, averages


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_no_number_depends_on_it(
    name: str,
    precision: str,
    pretrained_kl: str,
    tmp_path: Path,
    computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS[name] | ({"pretrained": pretrained_kl} if name == "autoencoder_kl" else {})
    losses = {"mse": 1.0} | ({"commitment": 0.25} if name == "vq_vae" else {})
    line = build_model(spec_of(model=model, losses=losses, freeze_depth=0), None).line
    assert line is not None
    encoder = len(line.encoder) + (line.codebook is not None)
    has_posterior = name not in ("conv_ae", "vq_vae")
    last = len(line.stages) - 1
    for depth, sampled in ((1, True), (encoder, True), (last, True), *([(last, False)] if has_posterior else [])):
        fields = {"model": model, "losses": losses, "precision": precision, "sample_posterior": sampled}
        spec = spec_of(**fields, freeze_depth=depth)
        folder = tmp_path / f"{depth}-{sampled}"
        monkeypatch.setenv("FTAE_CACHE", str(folder))
        expected = result(without_cache(spec), folder / "without")
        assert not computed
        assert result(spec, folder / "with") == expected
        # 288 training images in 18 batches and one to compare, 72 for validation in 5 and one to compare.
        assert sum(computed) == 288 + 16 + 72 + 16
        computed.clear()
        assert result(spec, folder / "again") == expected
        assert computed == [16, 16]  # to compare
        computed.clear()
