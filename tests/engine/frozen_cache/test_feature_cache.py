"""Features of frozen stages, computed once: no number of a run depends on it."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from PIL import Image
from tiny_diffusers import save_tiny_kl

from ftae.engine.data.dataset import load_dataset
from ftae.engine.data.sources import num_images
from ftae.engine.frozen_cache.feature_cache import FrozenFeatureCache, SplitPoint
from ftae.engine.frozen_cache.plan import FrozenCachePlan, plan_frozen_caches
from ftae.engine.models.families import build_model
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.loop import finetune
from ftae.specs.finetune.run import FinetuneSpec

DIGITS = {
    "source": "digits",
    "resolution": 16,
    "color": "rgb",
    "classes": [0, 1],
}  # 288 for training, 72 for validation
FEW = {"source": "shapes", "resolution": 16, "color": "rgb", "num_images": 72, "val": 1 / 3}  # 48 and 24
ENCODER = 3  # stages of the conv_vae's encoder, its bottleneck among them
MODELS: dict[str, dict[str, Any]] = {
    "mlp_vae": {"family": "mlp_vae", "hidden": 16, "latent_dim": 4},
    "conv_ae": {"family": "conv_ae", "channels": 8, "latent_channels": 2},
    "conv_vae": {"family": "conv_vae", "channels": 8, "latent_dim": 4},
    "resolution_adapters": {"family": "conv_vae", "channels": 8, "latent_dim": 4, "depth": 1, "resolution_adapters": 1},
    "vq_vae": {"family": "vq_vae", "channels": 8, "codebook_size": 24, "code_dim": 4, "dead_code_threshold": 4.0},
    "autoencoder_kl": {"family": "autoencoder_kl"},
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frozen_features"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pretrained_kl(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kl")
    save_tiny_kl(folder)
    return str(folder)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches whose features are computed."""
    sizes: list[int] = []
    compute = FrozenFeatureCache._compute

    def counted(self: FrozenFeatureCache, inputs: torch.Tensor, cut: SplitPoint) -> Any:
        sizes.append(len(inputs))
        return compute(self, inputs, cut)

    monkeypatch.setattr(FrozenFeatureCache, "_compute", counted)
    return sizes


def spec_of(**changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": MODELS["conv_vae"],
        "data": DIGITS,
        "freeze_depth": ENCODER,
        "losses": {"mse": 1.0},
        "optimizer.lr": 1e-3,
        "ema_half_life_fraction": 0.3,
        "batch_size": 16,
        "max_steps": 24,
        "num_evals": 1,
        "metrics": ["psnr"],
        "num_threads": 1,
    }
    return run_spec(**(fields | changes))


def without_cache(spec: FinetuneSpec) -> FinetuneSpec:
    return spec.model_copy(update={"frozen_cache_gb": 0.0})


def result(spec: FinetuneSpec, folder: Path) -> tuple[list[tuple[int, dict[str, float]]], bytes, bytes]:
    """Every metric and the last weights and averages of a run."""
    reports = [(report.step, report.metrics) for report in finetune(spec, folder)]
    return reports, *result_of(folder)


def result_of(folder: Path) -> tuple[bytes, bytes]:
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    return (checkpoint / "model.safetensors").read_bytes(), (checkpoint / "average.safetensors").read_bytes()


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
    chain = build_model(spec_of(model=model, losses=losses, freeze_depth=0), None).chain
    assert chain is not None
    encoder = len(chain.encoder) + (chain.codebook is not None)
    has_posterior = name not in ("conv_ae", "vq_vae")
    last = len(chain.stages) - 1
    runs = [(1, True), (encoder, True), (last, True), *([(last, False)] if has_posterior else [])]
    for depth, sampled in runs if precision == "fp32" else runs[1:2]:  # convolutions in bf16 are slow on a CPU
        fields = {"model": model, "data": FEW, "losses": losses, "precision": precision, "sample_posterior": sampled}
        spec = spec_of(**fields, freeze_depth=depth, max_steps=6, **{"optimizer.lr": 1e-4})
        folder = tmp_path / f"{depth}-{sampled}"
        monkeypatch.setenv("FTAE_CACHE", str(folder))
        expected = result(without_cache(spec), folder / "without")
        assert not computed
        assert result(spec, folder / "with") == expected
        # 48 training images in 3 batches and one to compare, 24 for validation in 2 and one to compare.
        assert sum(computed) == 48 + 16 + 24 + 16
        computed.clear()
        assert result(spec, folder / "again") == expected
        assert computed == [16, 16]  # to compare
        computed.clear()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    spec = spec_of(num_evals=3)
    expected = result(without_cache(spec), tmp_path / "without")
    for report in finetune(spec, tmp_path / "with"):
        if report.step == 8:
            break
    shutil.copytree(tmp_path / "with", tmp_path / "budget")
    for folder, resumed in (("with", spec), ("budget", without_cache(spec))):
        list(finetune(resumed, tmp_path / folder, resume_from=latest_checkpoint(tmp_path / folder)))
        assert result_of(tmp_path / folder) == expected[1:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flip": True}, "data.flip"),
        ({"random_crop_from": 20}, "data.random_crop_from"),
        ({"degrade": {"noise": 0.1}}, "data.degrade"),
    ],
)
def test_images_that_change_are_not_stored_but_those_of_validation_are(
    change: dict[str, Any], reason: str, tmp_path: Path, computed: list[int]
) -> None:
    spec = spec_of(data=DIGITS | change)
    plan = planned(spec)
    assert reason in str(plan.training.reason)
    assert plan.evaluation.reason is None
    expected = result(without_cache(spec), tmp_path / "without")
    assert result(spec, tmp_path / "with") == expected
    assert sum(computed) == 72 + 16  # all for validation, and a batch to compare
    computed.clear()
    assert result(spec, tmp_path / "again") == expected
    assert computed == [16]


def test_what_is_told_apart(tmp_path: Path, empty_cache: Path) -> None:
    """Every one of these has stores of its own; but the depth alone makes none where the decoder sees samples."""
    stored: set[str] = set()
    changes: list[tuple[dict[str, Any], int]] = [
        ({}, 2),
        ({"freeze_depth": ENCODER + 1}, 1),  # evaluation, which decodes the mode
        ({"optimizer": {"lr": 1e-4}, "seed": 0, "losses": {"mse": 1.0, "kl": 1e-6}}, 0),
        ({"seed": 1}, 2),  # other weights
        ({"batch_size": 8}, 2),
        ({"freeze_depth": 1}, 2),
        ({"data": DIGITS | {"shift": "invert"}}, 2),
        ({"data": DIGITS | {"degrade": {"noise": 0.1}}}, 1),
        ({"sample_posterior": False}, 0),
        ({"sample_posterior": False, "freeze_depth": ENCODER + 1}, 1),  # training
    ]
    for i, (change, new) in enumerate(changes):
        list(finetune(spec_of(**{"max_steps": 1} | change), tmp_path / str(i)))
        assert len(names(empty_cache) - stored) == new, change
        stored = names(empty_cache)


def test_replayed_images_and_anomalies_are_stored_too(tmp_path: Path, computed: list[int]) -> None:
    replay = {"source": "digits", "classes": [2, 3], "share": 0.5, "shift": "invert"}
    data = DIGITS | {"classes": [0, 1, 4], "anomaly_classes": ["4"], "replay": DIGITS | replay}
    spec = spec_of(data=data, metrics=["psnr", "auroc"], max_steps=60)
    expected = result(without_cache(spec), tmp_path / "without")
    assert result(spec, tmp_path / "with") == expected
    assert 0 < sum(computed) < 60 * 16
    computed.clear()
    assert result(spec, tmp_path / "again") == expected
    assert computed == [16, 16]


# ---------------------------------------------------------------------------------------------- the plan


def planned(spec: FinetuneSpec, num_train: int = 288, num_evaluated: int = 72) -> FrozenCachePlan:
    return plan_frozen_caches(build_model(spec, None), spec, lambda: (num_train, num_evaluated))


def test_the_deepest_that_the_budget_allows_is_stored() -> None:
    # Of an image: 8 channels of 8x8, 16 of 4x4, mean and logvar of 4 latents, and these with the decoder's input.
    sizes = {1: 2048, 2: 1024, 3: 32, 4: 32 + 1024}
    names = {1: "encoder.down.0", 2: "encoder.down.1", 3: "bottleneck", 4: "decoder.in"}
    for depth, expected in sizes.items():
        plan = planned(spec_of(freeze_depth=depth, sample_posterior=False))
        for share, count in ((plan.training, 288), (plan.evaluation, 72)):
            assert share.point is not None
            assert (share.point.stage, share.point.bytes_per_image) == (names[depth], expected)
            assert share.num_bytes == count * (expected + 1)
    room = 288 * (32 + 1) + 72 * (32 + 1)
    tight = planned(spec_of(freeze_depth=4, sample_posterior=False, frozen_cache_gb=room / 1e9))
    assert [share.point and share.point.stage for share in (tight.training, tight.evaluation)] == ["bottleneck"] * 2
    tighter = planned(spec_of(freeze_depth=4, sample_posterior=False, frozen_cache_gb=(room - 1) / 1e9))
    assert tighter.training.point is not None
    assert tighter.evaluation.point is None
    assert "finetune.frozen_cache_gb" in str(tighter.evaluation.reason)


@pytest.mark.parametrize(
    "data",
    [
        DIGITS,
        DIGITS | {"replay": DIGITS | {"shift": "invert", "share": 0.5, "val": 0.4}},
        {"source": "photos", "resolution": 16, "num_patches": 30},
        {"source": "shapes", "resolution": 16, "num_images": 20},
    ],
)
def test_images_are_counted_as_they_will_be(data: dict[str, Any]) -> None:
    spec = spec_of(data=data).data
    dataset = load_dataset(spec)
    sets = [dataset, *([] if dataset.replay is None else [dataset.replay])]
    assert num_images(spec) == (sum(len(its.train) for its in sets), sum(len(its.val) for its in sets))


def test_images_of_folders_are_counted(tmp_path: Path) -> None:
    for folder, count in (("train", 5), ("val", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            Image.new("RGB", (16, 16)).save(tmp_path / folder / f"{i}.png")
    data = {"source": "image_folder", "train": str(tmp_path / "train"), "resolution": 16}
    assert num_images(spec_of(data=data | {"val": str(tmp_path / "val")}).data) == (5, 3)
    assert num_images(spec_of(data=data | {"val": 0.2}).data) == (4, 1)


def test_samples_are_not_stored_nor_what_follows_them() -> None:
    plan = planned(spec_of(freeze_depth=ENCODER + 1))
    assert plan.training.point is not None
    assert plan.evaluation.point is not None
    assert plan.training.point.stage == "bottleneck"
    assert plan.evaluation.point.stage == "decoder.in"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"freeze_depth": 0}, None),
        ({"freeze_depth": 0, "freeze": ["decoder.*"]}, None),
        ({"frozen_cache_gb": 0.0}, None),
        ({"model": {"family": "hierarchical_vae"}}, "the stages of hierarchical_vae are no chain"),
    ],
)
def test_nothing_is_stored_without_a_frozen_start(changes: dict[str, Any], reason: str | None) -> None:
    plan = planned(spec_of(**changes))
    assert [share.point for share in (plan.training, plan.evaluation)] == [None, None]
    assert [share.reason for share in (plan.training, plan.evaluation)] == [reason, reason]


# ---------------------------------------------------------------------------------------------- faults


def test_a_full_disk_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = result(without_cache(spec_of()), tmp_path / "without")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert result(spec_of(), tmp_path / "with") == expected
    told = [record.message for record in caplog.records if record.name == "ftae.engine.frozen_cache.feature_cache"]
    assert (
        told == ["frozen features are not cached, which only costs time: No space left on device"] * 2
    )  # training, evaluation


def test_damaged_rows_are_found_before_they_are_used(
    tmp_path: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture, computed: list[int]
) -> None:
    expected = result(without_cache(spec_of()), tmp_path / "without")
    assert result(spec_of(), tmp_path / "with") == expected
    damaged = names(empty_cache)
    assert len(damaged) == 2
    for key in damaged:
        rows = empty_cache / key / "rows.0"
        content = bytearray(rows.read_bytes())
        for i in range(0, len(content), 4):
            content[i] ^= 1  # the last digit of every number
        rows.write_bytes(content)
    computed.clear()
    assert result(spec_of(), tmp_path / "again") == expected
    assert sum("differ from computed ones" in record.message for record in caplog.records) == 2
    assert not names(empty_cache)
    assert computed == [16, 16]  # and then no more: the model is run as a whole


def test_what_is_stored_in_bf16_is_not_taken_for_fp32(tmp_path: Path, empty_cache: Path) -> None:
    list(finetune(spec_of(precision="bf16"), tmp_path / "bf16"))
    dtypes = {
        layout["dtype"]
        for key in names(empty_cache)
        for layout in json.loads((empty_cache / key / "about.json").read_text())["layouts"]
    }
    assert dtypes == {"bfloat16", "float32"}  # of training, of evaluation
    assert len(names(empty_cache)) == 2
    list(finetune(spec_of(), tmp_path / "fp32"))
    assert len(names(empty_cache)) == 4, "that of evaluation too: the weights lie in memory in another order"
