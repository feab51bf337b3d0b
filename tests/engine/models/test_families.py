"""What every family promises: its stages, its files, and that stopping and resuming changes nothing."""

import random
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import (
    BOUNDED,
    GENERATORS,
    MODELS,
    TRANSLATORS,
    UNBOUNDED,
    WITHOUT_POSTERIOR,
    assert_same,
    built,
    has_codes,
    images_for,
    losses_of,
    model_in,
    outputs,
    spec_of,
)

from ftae.engine.models.families import CUSTOM, FAMILIES, build_model
from ftae.engine.training.checkpoint import EvalReport, latest_checkpoint
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import finetune
from ftae.specs.finetune.models import AnyModel
from ftae.specs.finetune.run import FinetuneSpec

IDLE = {"asymmetric_autoencoder_kl": ["decoder.condition_encoder"], "autoencoder_kl_flux2": ["bn"]}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, pretrained_models: Path) -> dict[str, Any]:
    return model_in(pretrained_models, request.param)


@pytest.fixture(scope="module")
def uninterrupted(model: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EvalReport], Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return list(finetune(trained_spec(model), folder)), folder


def trained_spec(model: dict[str, Any]) -> FinetuneSpec:
    """All that carries state between two steps."""
    has_posterior = model["family"] not in WITHOUT_POSTERIOR and not has_codes(model)
    posterior_metrics = ["kl", "active_units"] if has_posterior else []
    code_metrics = ["codebook_usage", "perplexity"] if has_codes(model) else []
    has_head = model["family"] not in (*TRANSLATORS, *GENERATORS)
    losses = losses_of(model)
    losses |= ({"ce": 0.1} if has_head else {}) | ({"kl": 1e-3} if has_posterior else {})
    metrics = ["psnr", "ssim", *(["accuracy"] if has_head else []), *posterior_metrics, *code_metrics]
    is_generator = model["family"] in GENERATORS
    return spec_of(
        model,
        **({} if is_generator else {"losses": losses, "metrics": metrics}),
        schedule={"name": "cosine", "warmup_fraction": 0.3},
        ema_half_life_fraction=0.3,
        grad_accumulation=2,
        max_grad_norm=0.5,
    )


def draw_from_all_generators() -> None:
    torch.rand(3)
    np.random.rand(3)
    random.random()


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
    assert FAMILIES.keys() - {CUSTOM} <= MODELS.keys()


def test_the_table_has_an_entry_for_every_family_of_the_specs() -> None:
    """Both are keyed by the tags of ``AnyModel``."""
    union, _ = get_args(AnyModel)
    tags = [tag.tag for kind in get_args(union) for tag in get_args(kind)[1:]]
    assert FAMILIES.keys() == set(tags)
    assert len(tags) == len(set(tags))


class TestContract:
    def test_stages_without_parameters_are_codebooks_of_buffers(self, model: dict[str, Any]) -> None:
        empty = [stage for stage in built(model).stages if not any(True for _ in stage.parameters())]
        assert all(any(module.state_dict() for module in stage.modules) for stage in empty)
        assert not empty or model["family"] in ("vq_vae", "vq_vae_2", "autoencoder_kl_flux2")

    def test_stages_are_in_data_flow_order(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        passed: list[int] = []
        for i, stage in enumerate(autoencoder.stages):
            for leaf in {m for module in stage.modules for m in module.modules() if not list(m.children())}:
                if leaf.state_dict():
                    leaf.register_forward_hook(lambda *_, i=i: passed.append(i))
        outputs(autoencoder, images_for(autoencoder))
        if autoencoder.reverse is not None:
            autoencoder.reverse(images_for(autoencoder))
        first_passed = list(dict.fromkeys(passed))  # where the prior is learned, encoding goes through the decoder too
        assert first_passed == [i for i, stage in enumerate(autoencoder.stages) if not stage.idle]
        assert passed == sorted(passed) or model["family"] in ("hierarchical_vae", "vq_vae_2")
        idle = [stage.name for stage in autoencoder.stages if stage.idle]
        assert idle == IDLE.get(model["family"], [])
        order = ["encoder", "bottleneck", "decoder"] if autoencoder.reverse is None else ["ab", "ba"]
        order = ["mapping", "synthesis"] if model["family"] in GENERATORS else order
        groups = [order.index(stage.group) for stage in autoencoder.stages]
        assert groups == sorted(groups)
        assert len(order) - 1 in groups
        assert 0 in groups or model["family"] == "dcgan"

    def test_no_tensor_is_in_the_state_twice(self, model: dict[str, Any]) -> None:
        tensors = [t.data_ptr() for t in built(model).state_dict().values()]
        assert len(tensors) == len(set(tensors))

    def test_shapes(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        images = images_for(autoencoder)
        found = outputs(autoencoder, images)
        assert found[-1].shape == (len(images), 3, 16, 16)
        assert all(len(t) == len(images) and t.dtype == torch.float32 and t.isfinite().all() for t in found)
        assert found[0].shape == found[-2].shape

    def test_ranges_are_inverse(self, model: dict[str, Any]) -> None:
        autoencoder = built(model)
        unit = torch.tensor([0.0, 0.25, 1.0])
        low, high = autoencoder.image_range
        assert autoencoder.to_range(unit).tolist() == [low, low + 0.25 * (high - low), high]
        assert autoencoder.to_unit(autoencoder.to_range(unit)).tolist() == unit.tolist()

    def test_a_run_leaves_frozen_stages_bit_for_bit(self, model: dict[str, Any], tmp_path: Path) -> None:
        depth = 2
        spec = spec_of(model, freeze_depth=depth, optimizer={"lr": 1e-2, "weight_decay": 0.1}, max_steps=3)
        before = build_model(spec, 2)
        list(finetune(spec, tmp_path))
        after = build_model(spec, 2)
        checkpoint = latest_checkpoint(tmp_path)
        assert checkpoint is not None
        after.load_state_dict(load_file(checkpoint / "model.safetensors"))
        lines = {line: [s.name for s in before.stages if s.line == line][:depth] for line in ("", "ab", "ba")}
        first = [name for names in lines.values() for name in names]
        for old, new in zip(before.stages, after.stages, strict=True):
            states = [[t for m in stage.modules for t in m.state_dict().values()] for stage in (old, new)]
            same = [torch.equal(a, b) for a, b in zip(*states, strict=True)]
            assert all(same) if old.name in first or old.idle else not all(same), old.name

    def test_a_saved_model_encodes_and_decodes_alike(self, model: dict[str, Any], tmp_path: Path) -> None:
        saved = built(model, seed=1)
        with torch.no_grad():
            for parameter in saved.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        saved.save(tmp_path / "model")
        images = images_for(saved)
        for folder in (tmp_path / "model", tmp_path):  # the folder above it is what ftae train writes
            assert_same(outputs(built(model | {"pretrained": str(folder)}), images), outputs(saved, images))
        assert not torch.equal(outputs(built(model), images)[-1], outputs(saved, images)[-1])

    def test_resumed_equals_uninterrupted_whatever_the_consumer_draws(
        self, model: dict[str, Any], uninterrupted: tuple[list[EvalReport], Path], tmp_path: Path
    ) -> None:
        spec = trained_spec(model)
        reports: list[EvalReport] = []
        draw_from_all_generators()
        for report in finetune(spec, tmp_path):
            reports.append(report)
            draw_from_all_generators()
            if report.step > 2:
                break
        resumed = []
        for report in finetune(spec, tmp_path, resume_from=latest_checkpoint(tmp_path)):
            resumed.append(report)
            draw_from_all_generators()
        assert resumed[0] == reports[-1]
        assert metrics_of(reports + resumed[1:]) == metrics_of(uninterrupted[0])
        assert_same_end(tmp_path, uninterrupted[1])

    def test_an_exported_model_is_the_one_that_was_evaluated(self, model: dict[str, Any], tmp_path: Path) -> None:
        metrics = ["sharpness"] if model["family"] in GENERATORS else ["mse", "psnr", "ssim"]
        spec = spec_of(model, ema_half_life_fraction=0.5, optimizer={"lr": 1e-2}, metrics=metrics)
        first, *_, last = finetune(spec, tmp_path)
        assert last.checkpoint is not None
        export_model(spec, tmp_path / last.checkpoint, tmp_path / "exported")
        reloaded = spec_of(model | {"pretrained": str(tmp_path / "exported")}, metrics=metrics)
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
    extreme = autoencoder.to_unit(outputs(autoencoder, images_for(autoencoder))[-1])
    assert 0.0 <= extreme.min() < 0.01
    assert 0.99 < extreme.max() <= 1.0


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_families_say_so(name: str, pretrained_models: Path) -> None:
    assert not spec_of(model_in(pretrained_models, name)).model.bounded_output


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
