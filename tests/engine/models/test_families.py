"""What every family promises: its stages, its files, and that stopping and resuming changes nothing."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from tiny_diffusers import save_tiny_models

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import FAMILIES, build_autoencoder, build_model
from ftae.engine.training.checkpoint import EvalReport, latest_checkpoint
from ftae.engine.training.export_model import release
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

USER_MODULE = '''
import random

import numpy as np
import torch
from torch import nn


class Vae(nn.Module):
    """Spatial latents, and all that makes training mode different: dropout, batch statistics, noise."""

    def __init__(self, width=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(),
        )
        self.mean = nn.Conv2d(width, 2, 1)
        self.logvar = nn.Conv2d(width, 2, 1)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )

    def encode(self, images):
        if self.training:
            images = images + 0.1 * random.gauss(0, 1) + 0.1 * np.random.standard_normal() + 0.1 * torch.randn(())
        features = self.encoder(images)
        return self.mean(features), self.logvar(features)

    def decode(self, latents):
        return self.decoder(latents)


class Plain(nn.Module):
    """No encode and no decode, and a view() that needs contiguous activations."""

    def __init__(self):
        super().__init__()
        self.encode_conv = nn.Conv2d(3, 4, 4, 4)
        self.norm = nn.BatchNorm1d(64, affine=False)
        self.dropout = nn.Dropout(0.1)
        self.code = nn.Linear(64, 8)
        self.decode_linear = nn.Linear(8, 768)

    def forward(self, images):
        features = torch.relu(self.encode_conv(images))
        features = self.dropout(self.norm(features.view(len(images), -1)))
        return torch.sigmoid(self.decode_linear(self.code(features))).view(-1, 3, 16, 16)


def not_a_module():
    return "a string"
'''
NAMED_STAGES = {
    "encoder": ["encoder.0", "encoder.1", "encoder.4"],
    "bottleneck": ["mean", "logvar"],
    "decoder": ["decoder.0", "decoder.1", "decoder.3"],
}
CUSTOM = {"family": "family_contract:Vae", "image_range": "-1..1", "kwargs": {"width": 4}}
SMALL_CODES = {"channels": 8, "codebook_size": 24, "code_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "mlp_vae": {"family": "mlp_vae", "hidden": 16, "latent_dim": 4},
    "conv_ae": {"family": "conv_ae", "channels": 8, "latent_channels": 2},
    "conv_vae": {"family": "conv_vae", "channels": 8, "latent_dim": 4},
    "conv_vae_outer": {"family": "conv_vae", "channels": 8, "latent_dim": 4, "depth": 1, "resolution_adapters": 1},
    "mlp_cvae": {"family": "mlp_cvae", "hidden": 16, "latent_dim": 4},
    "conv_cvae": {"family": "conv_cvae", "channels": 8, "latent_dim": 4},
    "hierarchical_vae": {"family": "hierarchical_vae", "channels": 8, "latent_channels": 2},
    "vq_vae": {"family": "vq_vae", **SMALL_CODES, "dead_code_threshold": 4.0},  # some are revived at every step
    "vq_vae_gradient": {"family": "vq_vae", **SMALL_CODES, "codebook": "gradient"},
    "vq_vae_2": {"family": "vq_vae_2", **SMALL_CODES, "dead_code_threshold": 4.0},
    "vq_model": {"family": "vq_model", "pretrained": "vq"},
    "autoencoder_kl": {"family": "autoencoder_kl", "pretrained": "kl"},
    "asymmetric_autoencoder_kl": {"family": "asymmetric_autoencoder_kl", "pretrained": "asymmetric"},
    "autoencoder_tiny": {"family": "autoencoder_tiny", "pretrained": "tiny"},
    "autoencoder_dc": {"family": "autoencoder_dc", "pretrained": "dc"},
    "custom_in_order_safetensors": {**CUSTOM, "pretrained": "vae.safetensors"},
    "custom_named_pt": {**CUSTOM, "pretrained": "vae.pt", "stages": NAMED_STAGES},
    "custom_forward_alone": {"family": "family_contract:Plain", "image_range": "0..1"},
}
BOUNDED = (
    "mlp_vae",
    "conv_ae",
    "conv_vae",
    "conv_vae_outer",
    "mlp_cvae",
    "conv_cvae",
    "hierarchical_vae",
    "vq_vae",
    "vq_vae_2",
)
UNBOUNDED = ("autoencoder_kl", "asymmetric_autoencoder_kl", "autoencoder_tiny", "autoencoder_dc", "vq_model")
WITHOUT_POSTERIOR = ("conv_ae", "autoencoder_tiny", "autoencoder_dc", "family_contract:Plain")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small pretrained models, and with a user's module that can be imported."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "family_contract.py").write_text(USER_MODULE)
    sys.path.insert(0, str(folder))
    save_tiny_models(folder)
    import family_contract

    weights = family_contract.Vae(4).state_dict()
    save_file(weights, folder / "vae.safetensors")
    torch.save(weights, folder / "vae.pt")
    yield folder
    sys.path.remove(str(folder))
    del sys.modules["family_contract"]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, home: Path) -> dict[str, Any]:
    return with_absolute_paths(MODELS[request.param], home)


@pytest.fixture(scope="module")
def uninterrupted(model: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EvalReport], Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return list(finetune(trained_spec(model), folder)), folder


def with_absolute_paths(model: dict[str, Any], home: Path) -> dict[str, Any]:
    return model | ({"pretrained": str(home / model["pretrained"])} if "pretrained" in model else {})


def has_codes(model: dict[str, Any]) -> bool:
    return model["family"] in ("vq_vae", "vq_vae_2", "vq_model")


def code_losses(model: dict[str, Any]) -> dict[str, float]:
    """Those that move whatever there is of codebooks."""
    by_gradient = model["family"] == "vq_model" or model.get("codebook") == "gradient"
    return ({"commitment": 0.25} if has_codes(model) else {}) | ({"codebook": 1.0} if by_gradient else {})


def spec_of(model: dict[str, Any], **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": model,
        "data": {"source": "digits", "resolution": 16, "color": "rgb", "classes": [0, 1]},
        "losses": {"mse": 1.0, **code_losses(model)},
        "optimizer": {"lr": 1e-3},
        "batch_size": 8,
        "max_steps": 6,
        "num_evals": 3,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return FinetuneSpec.model_validate(fields | changes)


def trained_spec(model: dict[str, Any]) -> FinetuneSpec:
    """All that carries state between two steps."""
    has_posterior = model["family"] not in WITHOUT_POSTERIOR and not has_codes(model)
    posterior_metrics = ["kl", "active_units"] if has_posterior else []
    code_metrics = ["codebook_usage", "perplexity"] if has_codes(model) else []
    return spec_of(
        model,
        losses={"mse": 1.0, "ce": 0.1, **code_losses(model)} | ({"kl": 1e-3} if has_posterior else {}),
        metrics=["psnr", "ssim", "accuracy", *posterior_metrics, *code_metrics],
        schedule={"name": "cosine", "warmup_fraction": 0.3},
        ema_half_life_fraction=0.3,
        grad_accumulation=2,
        max_grad_norm=0.5,
    )


def built(model: dict[str, Any], seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return build_autoencoder(spec_of(model).model, spec_of(model).data, 2).eval()


@torch.no_grad()
def outputs(autoencoder: Autoencoder, images: torch.Tensor) -> list[torch.Tensor]:
    """Latents, what the posterior adds to them, and reconstruction."""
    labels = torch.arange(len(images)) % 2
    encoding = autoencoder.encode(images, labels)
    spread = [] if encoding.posterior is None else [encoding.posterior.logvar]
    return [encoding.latents, *spread, autoencoder.decode(encoding.latents, labels)]


def images_for(autoencoder: Autoencoder, num_images: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return autoencoder.to_range(torch.rand(num_images, 3, 16, 16, generator=generator))


def draw_from_all_generators() -> None:
    torch.rand(3)
    np.random.rand(3)
    random.random()


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, through all nested containers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_same_end(folder: Path, other: Path) -> None:
    """The last checkpoints hold the same weights, averages, optimizer state and random state."""
    checkpoint, other_checkpoint = latest_checkpoint(folder), latest_checkpoint(other)
    assert checkpoint is not None
    assert other_checkpoint is not None
    assert checkpoint.name == other_checkpoint.name == "step-00000006"
    for name in ("model.safetensors", "average.safetensors"):
        assert (checkpoint / name).read_bytes() == (other_checkpoint / name).read_bytes()
    states = [torch.load(c / "training.pt", weights_only=True) for c in (checkpoint, other_checkpoint)]
    assert_same(*states)


def metrics_of(reports: list[EvalReport]) -> list[tuple[int, dict[str, float]]]:
    return [(report.step, report.metrics) for report in reports]


def test_every_family_is_under_contract() -> None:
    assert FAMILIES.keys() <= MODELS.keys()


class TestContract:
    def test_stages_cover_every_parameter_once(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        staged = [id(p) for stage in autoencoder.stages for p in stage.parameters()]
        assert len(staged) == len(set(staged))
        assert set(staged) == {id(p) for p in autoencoder.parameters()}
        empty = [s for s in autoencoder.stages if not any(True for _ in s.parameters())]
        assert all(any(m.state_dict() for m in s.modules) for s in empty)  # a codebook of moving averages: buffers
        assert not empty or model["family"] in ("vq_vae", "vq_vae_2")
        assert len({stage.name for stage in autoencoder.stages}) == len(autoencoder.stages)

    def test_stages_are_in_data_flow_order(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        passed: list[int] = []
        for i, stage in enumerate(autoencoder.stages):
            for leaf in {m for module in stage.modules for m in module.modules() if not list(m.children())}:
                if leaf.state_dict():
                    leaf.register_forward_hook(lambda *_, i=i: passed.append(i))
        outputs(autoencoder, images_for(autoencoder))
        first_passed = list(dict.fromkeys(passed))  # where the prior is learned, encoding goes through the decoder too
        assert first_passed == [i for i, stage in enumerate(autoencoder.stages) if not stage.idle]
        assert passed == sorted(passed) or model["family"] in ("hierarchical_vae", "vq_vae_2")
        idle = [stage.name for stage in autoencoder.stages if stage.idle]
        assert idle == (["decoder.condition_encoder"] if model["family"] == "asymmetric_autoencoder_kl" else [])
        order = ["encoder", "bottleneck", "decoder"]
        groups = [order.index(stage.group) for stage in autoencoder.stages]
        assert groups == sorted(groups)
        assert {0, 2} <= set(groups)

    def test_state_is_not_doubled(self, model: dict[str, Any]) -> None:
        tensors = [t.data_ptr() for t in built(model).state_dict().values()]
        assert len(tensors) == len(set(tensors))

    def test_shapes(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        images = images_for(autoencoder)
        found = outputs(autoencoder, images)
        assert found[-1].shape == images.shape
        assert all(len(t) == len(images) and t.dtype == torch.float32 and t.isfinite().all() for t in found)
        assert found[0].shape == found[-2].shape

    def test_ranges_are_inverse(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        unit = torch.tensor([0.0, 0.25, 1.0])
        low, high = autoencoder.image_range
        assert autoencoder.to_range(unit).tolist() == [low, low + 0.25 * (high - low), high]
        assert autoencoder.to_unit(autoencoder.to_range(unit)).tolist() == unit.tolist()

    def test_freeze(self, model: dict[str, Any], tmp_path: Path) -> None:
        depth = 2
        spec = spec_of(model, freeze_depth=depth, optimizer={"lr": 1e-2, "weight_decay": 0.1}, max_steps=3)
        before = build_model(spec, 2)
        list(finetune(spec, tmp_path))
        after = build_model(spec, 2)
        checkpoint = latest_checkpoint(tmp_path)
        assert checkpoint is not None
        after.load_state_dict(load_file(checkpoint / "model.safetensors"))
        for i, (old, new) in enumerate(zip(before.stages, after.stages, strict=True)):
            states = [[t for m in stage.modules for t in m.state_dict().values()] for stage in (old, new)]
            same = [torch.equal(a, b) for a, b in zip(*states, strict=True)]
            assert all(same) if i < depth or old.idle else not all(same), old.name

    def test_save_and_load(self, model: dict[str, Any], tmp_path: Path) -> None:
        saved = built(model, seed=1)
        with torch.no_grad():
            for parameter in saved.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        saved.save_pretrained(tmp_path / "model")
        images = images_for(saved)
        for folder in (tmp_path / "model", tmp_path):  # the folder above it is what ftae train writes
            assert_same(outputs(built(model | {"pretrained": str(folder)}), images), outputs(saved, images))
        assert not torch.equal(outputs(built(model), images)[-1], outputs(saved, images)[-1])

    def test_resumed_equals_uninterrupted(
        self, model: dict[str, Any], uninterrupted: tuple[list[EvalReport], Path], tmp_path: Path
    ) -> None:
        spec = trained_spec(model)
        reports: list[EvalReport] = []
        for report in finetune(spec, tmp_path):
            reports.append(report)
            if report.step > 0:
                break
        draw_from_all_generators()
        resumed = []
        for report in finetune(spec, tmp_path, resume_from=latest_checkpoint(tmp_path)):
            resumed.append(report)
            draw_from_all_generators()
        assert resumed[0] == reports[-1]
        assert metrics_of(reports + resumed[1:]) == metrics_of(uninterrupted[0])
        assert_same_end(tmp_path, uninterrupted[1])

    def test_what_the_consumer_draws_changes_nothing(
        self, model: dict[str, Any], uninterrupted: tuple[list[EvalReport], Path], tmp_path: Path
    ) -> None:
        draw_from_all_generators()
        reports = []
        for report in finetune(trained_spec(model), tmp_path):
            reports.append(report)
            draw_from_all_generators()
        assert metrics_of(reports) == metrics_of(uninterrupted[0])
        assert_same_end(tmp_path, uninterrupted[1])

    def test_a_released_model_is_the_one_that_was_judged(self, model: dict[str, Any], tmp_path: Path) -> None:
        metrics = ["mse", "psnr", "ssim"]
        spec = spec_of(model, ema_half_life_fraction=0.5, optimizer={"lr": 1e-2}, metrics=metrics)
        first, *_, last = finetune(spec, tmp_path)
        assert last.checkpoint is not None
        release(spec, tmp_path / last.checkpoint, tmp_path / "released")
        reloaded = spec_of(model | {"pretrained": str(tmp_path / "released")}, metrics=metrics)
        again = next(finetune(reloaded, tmp_path / "again"))
        assert again.metrics == {f"val/{name}": last.metrics[f"val/{name}"] for name in metrics}
        assert again.metrics != first.metrics


@pytest.mark.parametrize("family", BOUNDED)
def test_bounded_families_stay_in_range(family: str) -> None:
    assert spec_of(MODELS[family]).model.bounded_output
    autoencoder = built(MODELS[family])
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.mul_(100.0)
    extreme = outputs(autoencoder, images_for(autoencoder))[-1]
    assert autoencoder.image_range == (0.0, 1.0)
    assert 0.0 <= extreme.min() < 0.01
    assert 0.99 < extreme.max() <= 1.0


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_families_say_so(name: str, home: Path) -> None:
    assert not spec_of(with_absolute_paths(MODELS[name], home)).model.bounded_output


def test_posteriors_are_as_the_spec_says(model: dict[str, Any]) -> None:
    autoencoder = built(model)
    images = images_for(autoencoder)
    has_posterior = autoencoder.encode(images, torch.zeros(len(images), dtype=torch.int64)).posterior is not None
    assert spec_of(model).model.has_posterior in (None, has_posterior)


def test_codes_are_as_the_spec_says(model: dict[str, Any]) -> None:
    autoencoder, spec = built(model), spec_of(model).model
    codes = autoencoder.encode(images_for(autoencoder), torch.zeros(3, dtype=torch.int64)).codes
    assert bool(codes) == spec.has_codes
    assert spec.gradient_codebook in (None, any(c.codebook is not None for c in codes))
    assert all(c.indices.shape[0] == 3 and 0 <= c.indices.min() <= c.indices.max() < c.num_codes for c in codes)


def test_every_encoder_parameter_of_the_tiny_one_gets_a_gradient(home: Path) -> None:
    autoencoder = built(with_absolute_paths(MODELS["autoencoder_tiny"], home)).train()
    images = images_for(autoencoder)
    (autoencoder.decode(autoencoder.encode(images).latents) - images).square().mean().backward()
    encoder = [s for s in autoencoder.stages if s.group == "encoder"]
    gradients = [p.grad for stage in encoder for p in stage.parameters()]
    assert len(gradients) == len(list(autoencoder.net.encoder.parameters()))
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_stages_of_diffusers_models(home: Path) -> None:
    kl = [stage.name for stage in built(with_absolute_paths(MODELS["autoencoder_kl"], home)).stages]
    assert kl == [
        *("encoder.conv_in", "encoder.down_blocks.0", "encoder.down_blocks.1", "encoder.mid_block"),
        *("encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in", "decoder.mid_block"),
        *("decoder.up_blocks.0", "decoder.up_blocks.1", "decoder.conv_out"),
    ]
    tiny = [stage.name for stage in built(with_absolute_paths(MODELS["autoencoder_tiny"], home)).stages]
    assert tiny == [*(f"encoder.{i}" for i in range(3)), *(f"decoder.{i}" for i in range(4))]
    asymmetric = [stage.name for stage in built(with_absolute_paths(MODELS["asymmetric_autoencoder_kl"], home)).stages]
    assert asymmetric == [*kl[:9], "decoder.condition_encoder", *kl[9:]]
    dc = [stage.name for stage in built(with_absolute_paths(MODELS["autoencoder_dc"], home)).stages]
    assert dc == [
        *("encoder.conv_in", "encoder.down_blocks.1", "encoder.down_blocks.2", "encoder.conv_out"),
        *("decoder.conv_in", "decoder.up_blocks.2", "decoder.up_blocks.1", "decoder.conv_out"),
    ]


WITHOUT_LINE = ("mlp_cvae", "conv_cvae", "hierarchical_vae", "vq_vae_2", "family_contract:Vae", "family_contract:Plain")


def test_a_line_is_all_stages_in_order(model: dict[str, Any]) -> None:
    autoencoder = built(model)
    line = autoencoder.line
    assert (line is None) == (model["family"] in WITHOUT_LINE)
    if line is not None:
        assert line.stages == autoencoder.stages
        assert [s.name for s in line.stages if s.run is None] == [
            s.name for s in line.stages if s.idle or s is line.codebook
        ]


@pytest.mark.parametrize("name", UNBOUNDED)
@torch.no_grad()
def test_lines_of_diffusers_models_do_what_these_do(name: str, home: Path) -> None:
    autoencoder = built(with_absolute_paths(MODELS[name], home)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net: Any = autoencoder.net
    images = images_for(autoencoder)
    encoding, theirs = autoencoder.encode(images), net.encode(images)
    if encoding.posterior is not None:
        assert torch.equal(encoding.posterior.mean, theirs.latent_dist.mean)
        assert torch.equal(encoding.posterior.logvar, theirs.latent_dist.logvar)
        assert encoding.posterior.mean.stride() == theirs.latent_dist.mean.stride()
    elif encoding.codes:
        assert torch.equal(encoding.codes[0].indices.flatten(), net.quantize(theirs.latents)[2][2])
    else:
        assert torch.equal(encoding.latents, theirs.latent if name == "autoencoder_dc" else theirs.latents)
    options = {"force_not_quantize": True} if encoding.codes else {}
    assert torch.equal(autoencoder.decode(encoding.latents), net.decode(encoding.latents, **options).sample)


def test_a_vq_model_whose_blocks_see_the_latents_has_no_line(home: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        num_vq_embeddings=24,
        norm_type="spatial",
    ).save_pretrained(tmp_path)
    autoencoder = built({"family": "vq_model", "pretrained": str(tmp_path)})
    images = images_for(autoencoder)
    assert autoencoder.line is None
    latents = autoencoder.encode(images).latents
    net: Any = autoencoder.net
    assert torch.equal(autoencoder.decode(latents), net.decode(latents, force_not_quantize=True).sample)


def test_stages_in_order_take_modules_without_parameters_along(home: Path) -> None:
    stages = {s.name: [type(m).__name__ for m in s.modules] for s in built(MODELS["custom_forward_alone"]).stages}
    assert stages == {
        "encode_conv": ["Conv2d"],
        "code": ["BatchNorm1d", "Dropout", "Linear"],
        "decode_linear": ["Linear"],
    }


def test_conv_ae_takes_another_resolution_than_it_was_trained_at(tmp_path: Path) -> None:
    built(MODELS["conv_ae"]).save_pretrained(tmp_path)
    data = {"source": "digits", "resolution": 32, "color": "rgb", "classes": [0]}
    spec = spec_of({"family": "conv_ae", "pretrained": str(tmp_path)}, data=data)
    autoencoder = build_model(spec, None)
    assert outputs(autoencoder, torch.rand(1, 3, 32, 32))[-1].shape == (1, 3, 32, 32)


# ------------------------------------------------------------------------------------------ refusals


def refused(model: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(FtaeError) as caught:
        build_model(spec_of(model, **changes), None)
    return str(caught.value)


def grey(resolution: int = 16) -> dict[str, Any]:
    return {"source": "digits", "resolution": resolution, "color": "grey", "classes": [0]}


def test_another_resolution_or_colour_is_refused(home: Path, tmp_path: Path) -> None:
    built(MODELS["conv_vae"]).save_pretrained(tmp_path)
    own = {"family": "conv_vae", "pretrained": str(tmp_path)}
    assert "takes images of 16 pixels a side, got data.resolution 32; each of model.resolution_adapters" in refused(
        own, data=grey(32) | {"color": "rgb"}
    )
    assert "takes 3 image channels" in refused(own, data=grey())
    assert "set data.color to rgb" in refused(with_absolute_paths(MODELS["autoencoder_kl"], home), data=grey())
    assert "multiple of 2" in refused(
        with_absolute_paths(MODELS["autoencoder_kl"], home), data=grey(17) | {"color": "rgb"}
    )
    assert "multiple of 4 (2**depth), got 18" in refused(MODELS["conv_vae"], data=grey(18))
    assert "cannot take images of shape (1, 16, 16)" in refused(
        with_absolute_paths(CUSTOM | {"kwargs": {}}, home), data=grey()
    )


def test_other_options_than_the_pretrained_ones_are_refused(tmp_path: Path) -> None:
    built({"family": "conv_vae"}).save_pretrained(tmp_path)
    own = {"family": "conv_vae", "pretrained": str(tmp_path)}
    assert "model.channels is 8, but" in refused(own | {"channels": 8})
    assert build_model(spec_of(own | {"channels": 32}), None)  # the default, said aloud
    assert "holds a conv_vae, not a mlp_vae" in refused({"family": "mlp_vae", "pretrained": str(tmp_path)})


def test_pretrained_that_is_not_there_is_refused(home: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    assert "no ftae_model.json" in refused({"family": "conv_vae", "pretrained": absent})
    assert "neither an existing folder nor a hub id" in refused({"family": "autoencoder_kl", "pretrained": absent})
    assert "does not exist" in refused(CUSTOM | {"pretrained": absent})
    empty = {"family": "autoencoder_kl", "pretrained": str(tmp_path)}
    assert "has no config.json; it is empty" in refused(empty)


def test_weights_that_do_not_fit_are_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "kl", tmp_path / "kl")
    weights = load_file(tmp_path / "kl" / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / "kl" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    lacking = {"family": "autoencoder_kl", "pretrained": str(tmp_path / "kl")}
    assert "1 missing (decoder.conv_out.bias)" in refused(lacking)
    assert "does not hold a state dict of the model" in refused(
        CUSTOM | {"pretrained": str(home / "vae.pt"), "kwargs": {"width": 5}}
    )
    built(MODELS["conv_vae"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "is damaged or cut short" in refused({"family": "conv_vae", "pretrained": str(tmp_path)})


class Payload:
    """What a malicious pickle does when it is loaded: create the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_weights_with_code_are_refused_and_not_run(home: Path, tmp_path: Path) -> None:
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    assert "holds a whole module or other objects" in refused(CUSTOM | {"pretrained": str(tmp_path / "evil.pt")})
    assert not (tmp_path / "ran").exists()


def test_modules_that_cannot_be_staged_are_refused(home: Path) -> None:
    twice = NAMED_STAGES | {"encoder": ["encoder", "encoder.1"]}
    assert "encoder.1.weight is in encoder and encoder.1: only one may hold it" in refused(CUSTOM | {"stages": twice})
    assert "the model has no sub-module or parameter 'decoder.9'" in refused(
        CUSTOM | {"stages": {"decoder": ["decoder.9"]}}
    )
    assert "must return a torch.nn.Module, got str" in refused(
        {"family": "family_contract:not_a_module", "image_range": "0..1"}
    )


BROKEN = """
import torch
from torch import nn

class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x):
        return self.conv(x), x

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(1, 1, 3, padding=1)
        self.decoder = nn.Conv2d(1, 1, 3, padding=1)
    def encode(self, x):
        return self.encoder(x)
    def decode(self, z):
        return self.decoder(z)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"family": "broken_modules:Tuple", "image_range": "0..1"}},
            "forward must give the reconstruction alone",
        ),
        (
            {"model": {"family": "broken_modules:Plain", "image_range": "0..1", "kwargs": {"width": 3}}},
            "cannot be built with model.kwargs {'width': 3}",
        ),
        ({"losses": {"mse": 1.0, "kl": 1e-3}}, r"losses\.kl needs a posterior: .*must return \(mean, logvar\)"),
        ({"metrics": ["active_units"]}, "metrics: active_units needs a posterior"),
    ],
)
def test_a_users_mistake_is_one_message(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_modules.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)  # the current folder is importable, without any path set
    spec = {
        "model": {"family": "broken_modules:Plain", "image_range": "0..1"},
        "data": {"source": "digits", "resolution": 16},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["psnr"],
    }
    with pytest.raises(FtaeError, match=message):
        build_model(FinetuneSpec.model_validate(spec | change), None)
    sys.modules.pop("broken_modules", None)
    sys.path.remove(str(tmp_path))


# ------------------------------------------------------------------------------- labels, priors, outer stages


@pytest.mark.parametrize("name", ["mlp_cvae", "conv_cvae"])
def test_a_conditional_model_encodes_and_decodes_by_the_label(name: str) -> None:
    autoencoder = built(MODELS[name])
    images = images_for(autoencoder, 1).repeat(3, 1, 1, 1)
    labels = torch.tensor([0, 1, -1])  # -1: an image without a label
    latents = autoencoder.encode(images, labels).mode
    decoded = autoencoder.decode(latents[:1].repeat(3, 1), labels)
    for found in (latents, decoded):
        assert len({tuple(row.flatten().tolist()) for row in found}) == 3
    with pytest.raises(FtaeError, match="conditioned on labels and these images have none"):
        autoencoder.encode(images)


def test_a_conditional_model_needs_labels_and_its_own_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mlp_cvae needs labels, photos has none; use digits, or an image_folder"):
        spec_of(MODELS["mlp_cvae"], data={"source": "photos", "resolution": 16})
    assert "conv_cvae needs labels: put the images of each class into a sub-folder" in refused(MODELS["conv_cvae"])
    built(MODELS["conv_cvae"]).save_pretrained(tmp_path)
    spec = spec_of(MODELS["conv_cvae"] | {"pretrained": str(tmp_path)})
    assert build_model(spec, 2).channels == 3
    with pytest.raises(FtaeError, match="is conditioned on 2 classes, the data has 3"):
        build_model(spec, 3)


def test_a_hierarchical_model_draws_from_its_learned_prior() -> None:
    autoencoder = built(MODELS["hierarchical_vae"])
    encoding = autoencoder.encode(images_for(autoencoder))
    assert encoding.posterior is not None
    assert encoding.posterior.prior is not None
    assert autoencoder.prior is not None
    modes = autoencoder.prior(5, None, torch.zeros_like)
    assert modes.shape == (5, encoding.latents.shape[1])
    top = 2 * 4 * 4  # the coarsest group's prior depends on nothing, the others' on the latents before them
    centre = encoding.posterior.prior[0]
    assert torch.equal(centre[0, :top], modes[0, :top])
    assert not torch.equal(centre[0, top:], modes[0, top:])
    assert not torch.equal(*autoencoder.prior(2, None, torch.randn_like))


def test_the_kl_of_a_hierarchical_model_is_that_from_its_prior() -> None:
    autoencoder = built(MODELS["hierarchical_vae"])
    posterior = autoencoder.encode(images_for(autoencoder)).posterior
    assert posterior is not None
    assert posterior.prior is not None
    normal = [
        torch.distributions.Normal(m, torch.exp(0.5 * v))
        for m, v in ((posterior.mean, posterior.logvar), posterior.prior)
    ]
    assert torch.allclose(posterior.kl(), torch.distributions.kl_divergence(*normal), atol=1e-5)


def outer(model: dict[str, Any], folder: Path, number: int, resolution: int = 16) -> Autoencoder:
    data = {"source": "digits", "resolution": resolution, "color": "rgb", "classes": [0, 1]}
    return build_model(spec_of(model | {"pretrained": str(folder), "resolution_adapters": number}, data=data), 2)


@pytest.mark.parametrize("name", ["mlp_vae", "conv_vae", "mlp_cvae", "conv_cvae", "hierarchical_vae"])
def test_untrained_resolution_adapters_only_resize(name: str, tmp_path: Path) -> None:
    small = built(MODELS[name])
    small.save_pretrained(tmp_path)
    large = outer(MODELS[name], tmp_path, 2, 64)
    images, labels = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    shrunk = torch.nn.functional.avg_pool2d(images, 4)
    with torch.no_grad():
        latents = large.encode(images, labels).mode
        assert torch.allclose(latents, small.encode(shrunk, labels).mode, atol=1e-5)
        image = small.decode(latents, labels)
        for _ in range(2):
            image = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")
        assert torch.allclose(large.decode(latents, labels), image, atol=1e-5)
    assert (large.prior is None) == (small.prior is None)


def test_resolution_adapters_are_saved_and_more_can_be_added(tmp_path: Path) -> None:
    built(MODELS["mlp_vae"]).save_pretrained(tmp_path / "small")
    once = outer(MODELS["mlp_vae"], tmp_path / "small", 1, 32)
    assert [s.name for s in once.stages if s.new] == ["encoder.outer.0", "decoder.outer.0"]
    with torch.no_grad():
        for parameter in once.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    once.save_pretrained(tmp_path / "once")
    images = torch.rand(2, 3, 32, 32)
    kept = outer(MODELS["mlp_vae"], tmp_path / "once", 1, 32)
    assert_same(outputs(kept, images), outputs(once, images))
    assert not any(stage.new for stage in kept.stages)
    twice = outer(MODELS["mlp_vae"], tmp_path / "once", 2, 64)
    names = [stage.name for stage in twice.stages]
    assert names[:2] + names[-2:] == ["encoder.outer.1", "encoder.outer.0", "decoder.outer.0", "decoder.outer.1"]
    assert [s.name for s in twice.stages if s.new] == ["encoder.outer.1", "decoder.outer.1"]
    enlarged = torch.nn.functional.interpolate(images, scale_factor=2)  # pooling gives the original back
    assert torch.allclose(twice.encode(enlarged).mode, once.encode(images).mode, atol=1e-5)


def test_resolution_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    built(MODELS["mlp_vae"] | {"resolution_adapters": 1}).save_pretrained(tmp_path)
    own = {"family": "mlp_vae", "pretrained": str(tmp_path)}
    large = grey(64) | {"color": "rgb"}
    assert "with 1 outer stages takes images of 16 pixels a side, got data.resolution 64" in refused(own, data=large)
    assert "each of model.resolution_adapters doubles what it takes, and 3 of them fit" in refused(own, data=large)
    assert "model.resolution_adapters is 0, but" in refused(own | {"resolution_adapters": 0})
    assert "multiple of 4 (2**resolution_adapters), got 18" in refused(
        {"family": "mlp_vae", "resolution_adapters": 2}, data=grey(18)
    )


def test_l2_sp_holds_the_kept_stages_alone(tmp_path: Path) -> None:
    built(MODELS["mlp_vae"]).save_pretrained(tmp_path)
    own = {"family": "mlp_vae", "pretrained": str(tmp_path), "resolution_adapters": 1}
    changes: dict[str, Any] = {
        "data": grey(32) | {"color": "rgb"},
        "losses": {"mse": 1.0, "l2_sp": 1.0},
        "max_steps": 3,
    }
    last = list(finetune(spec_of(own, **changes), tmp_path / "all"))[-1]
    assert 0.0 < last.metrics["train/l2_sp"] < 1e-4  # new weights, drawn anew for the reference, would be far off
    kept = ("encoder.hidden", "bottleneck", "decoder.hidden", "decoder.out")
    with pytest.raises(FtaeError, match="no stage that keeps pretrained weights is trained"):
        list(finetune(spec_of(own, **changes, freeze=kept), tmp_path / "new"))
