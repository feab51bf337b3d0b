"""Runs that share models within a process: each must give the same numbers as in a process of its own."""

import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_diffusers import save_tiny_kl

from ftae.engine.models import families as build
from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.sizing import probe
from ftae.engine.training import loop
from ftae.engine.training.checkpoint import EvalReport
from ftae.engine.training.loop import finetune
from ftae.engine.training.model_reuse import ModelReuse
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec
from tests.builders import run_spec

CPU = torch.device("cpu")
VAE = {"family": "conv_vae", "channels": 4, "latent_dim": 4}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuse") / "kl"
    save_tiny_kl(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The families of the models that are built from here on."""
    families: list[str] = []
    original = build.build_autoencoder

    def counted(model: Any, *args: Any) -> Autoencoder:
        families.append(model.family)
        return original(model, *args)

    monkeypatch.setattr(build, "build_autoencoder", counted)
    return families


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry an evaluation from here on."""
    found: list[int] = []
    original = loop.evaluate_all

    def counted(judged: Any, *others: Any) -> Any:
        found.append(len(judged))
        return original(judged, *others)

    monkeypatch.setattr(loop, "evaluate_all", counted)
    return found


def spec_of(**changes: Any) -> FinetuneSpec:
    fields = {"model": VAE, "max_steps": 4, "metrics": ["mse", "psnr"], "num_threads": 1}
    return run_spec(**fields | changes)


def kl_spec(folder: Path, **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "autoencoder_kl", "pretrained": str(folder)},
        "data": {"source": "digits", "resolution": 16, "color": "rgb", "classes": [0, 1], "val": 0.05},
        "optimizer": {"lr": 1e-4},
    }
    return spec_of(**fields | changes)


def outcome(spec: FinetuneSpec, folder: Path, reuse: ModelReuse | None) -> tuple[Any, dict[str, bytes], Any]:
    """What the reports say, every picture and weight to the byte, and the rest of the newest checkpoint."""
    reports: list[EvalReport] = list(finetune(spec, folder, reuse=reuse))
    said = [(report.step, report.metrics, report.checkpoint, report.images) for report in reports]
    kept = [*folder.rglob("*.png"), *folder.rglob("*.safetensors")]
    newest = reports[-1].checkpoint
    assert newest is not None
    state = torch.load(folder / newest / "training.pt", weights_only=True)
    gc.collect()  # as a worker does between two trials
    return said, {str(file.relative_to(folder)): file.read_bytes() for file in kept}, flat(state)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for key in value for x in [key, *flat(value[key])]]
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in flat(item)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


def check_interleaved(specs: list[FinetuneSpec], folder: Path) -> None:
    reuse = ModelReuse()
    expected = [outcome(spec, folder / f"alone-{number}", None) for number, spec in enumerate(specs)]
    for time in ("first", "second"):
        for number, spec in enumerate(specs):
            assert outcome(spec, folder / f"{time}-{number}", reuse) == expected[number]


def test_runs_of_a_model_from_scratch_give_the_same_numbers_as_alone(tmp_path: Path, built: list[str]) -> None:
    with_head = {"losses": {"mse": 1.0, "ce": 0.1}, "metrics": ["mse", "accuracy"]}
    specs = [
        spec_of(),
        spec_of(freeze_depth=2, ema_half_life_fraction=0.3),
        spec_of(**with_head),
        spec_of(freeze=["decoder"], grad_accumulation=2),
        spec_of(
            losses={"mse": 1.0, "adversarial": 0.1},
            discriminator={"depth": 1, "channels": 4, "start_fraction": 0.0, "warmup_fraction": 0.0},
        ),
        spec_of(precision="bf16", optimizer={"name": "sgd", "lr": 0.1}),
    ]
    check_interleaved(specs, tmp_path)
    assert len(built) == len(specs) + 1


def test_runs_of_a_quantised_model_give_the_same_numbers_as_alone(tmp_path: Path, built: list[str]) -> None:
    model = {"family": "vq_vae", "channels": 4, "codebook_size": 8, "dead_code_threshold": 1.0}
    losses = {"mse": 1.0, "commitment": 0.25}
    specs = [
        spec_of(model=model, losses=losses),
        spec_of(model=model, losses=losses, freeze=["codebook"]),
        spec_of(model=model, losses=losses, ema_half_life_fraction=0.3),
    ]
    check_interleaved(specs, tmp_path)
    assert len(built) == len(specs) + 1


def test_runs_of_a_pretrained_model_give_the_same_numbers_as_alone(
    pretrained: Path, tmp_path: Path, built: list[str]
) -> None:
    anchored = {"losses": {"mse": 1.0, "latent_anchor": 0.1, "l2_sp": 1e-3}, "metrics": ["mse", "latent_drift"]}
    specs = [
        kl_spec(pretrained),
        kl_spec(pretrained, **anchored),
        kl_spec(pretrained, losses={"mse": 1.0, "ce": 0.1}, freeze_depth=3, metrics=["mse", "accuracy"]),
    ]
    check_interleaved(specs, tmp_path)
    assert len(built) == len(specs) + 1


def test_other_models_seeds_and_shapes_give_the_same_numbers_as_alone(pretrained: Path, tmp_path: Path) -> None:
    specs = [
        spec_of(),
        spec_of(seed=1),
        kl_spec(pretrained),
        spec_of(model={"family": "mlp_vae", "hidden": 8, "latent_dim": 2}),
        kl_spec(pretrained, seed=1),
    ]
    check_interleaved(specs, tmp_path)


# ---------------------------------------------------------------------------------- what is kept, and what not


def test_two_runs_at_a_time_share_no_tensor() -> None:
    reuse = ModelReuse()
    first, second = (Trainer(spec_of(), reuse=reuse) for _ in range(2))
    addresses = [{p.data_ptr() for p in training.autoencoder.parameters()} for training in (first, second)]
    assert not addresses[0] & addresses[1]


def test_a_run_gets_the_model_that_was_probed_as_it_was(pretrained: Path, tmp_path: Path, built: list[str]) -> None:
    spec, reuse = kl_spec(pretrained), ModelReuse()
    expected = outcome(spec, tmp_path / "alone", None)
    probe(spec, reuse=reuse)
    gc.collect()  # as a worker does before a trial
    assert outcome(spec, tmp_path / "reusing", reuse) == expected
    assert built == ["autoencoder_kl"] * 2


def test_runs_share_nothing_unless_asked(built: list[str], evaluated: list[int], tmp_path: Path) -> None:
    for name in ("first", "second"):
        list(finetune(spec_of(), tmp_path / name))
    assert built == ["conv_vae"] * 2
    assert len(evaluated) == 2 * 3


def test_a_changed_model_is_built_anew(pretrained: Path, tmp_path: Path, built: list[str]) -> None:
    folder, reuse = tmp_path / "kl", ModelReuse()
    shutil.copytree(pretrained, folder)
    before = reuse.model(kl_spec(folder), None, CPU).state_dict()["net.decoder.conv_out.bias"].clone()
    net = AutoencoderKL.from_pretrained(folder)
    torch.nn.init.constant_(net.decoder.conv_out.bias, 0.5)
    net.save_pretrained(folder)
    after = reuse.model(kl_spec(folder), None, CPU).state_dict()["net.decoder.conv_out.bias"]
    assert len(built) == 2
    assert after.tolist() == [0.5] * 3 != before.tolist()


def test_a_module_of_the_users_own_is_not_kept(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reuse_nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = {"family": "reuse_nets:net", "image_range": "0..1"}
    spec, reuse = spec_of(model=model, losses={"mse": 1.0}, metrics=["mse"]), ModelReuse()
    for _ in range(2):
        reuse.model(spec, None, CPU)
    assert built == ["reuse_nets:net"] * 2
    sys.modules.pop("reuse_nets")


def test_a_refused_run_leaves_the_model_as_it_was(built: list[str]) -> None:
    reuse = ModelReuse()
    with pytest.raises(FtaeError, match="freeze_depth must be at most"):
        reuse.model(spec_of(freeze_depth=99), None, CPU)
    its = reuse.model(spec_of(), None, CPU)
    assert all(p.requires_grad for p in its.parameters())
    assert len(built) == 1


def test_what_is_forgotten_is_built_anew(built: list[str], evaluated: list[int], tmp_path: Path) -> None:
    reuse = ModelReuse()
    for _ in range(2):
        next(finetune(spec_of(), tmp_path, reuse=reuse))
        reuse.forget()
    assert (len(built), len(evaluated)) == (2, 2)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
def test_the_weights_of_a_pretrained_model_are_mapped_from_one_file(pretrained: Path, cache: Path) -> None:
    workers = [ModelReuse(), ModelReuse()]
    lent = [reuse.model(kl_spec(pretrained), None, CPU) for reuse in workers]
    files = [*(cache / "models").rglob("*.safetensors")]
    assert len(files) == 1
    assert str(files[0]) in Path("/proc/self/maps").read_text()
    with torch.no_grad():
        for parameter in lent[0].parameters():
            parameter.zero_()
    del lent
    again = [reuse.model(kl_spec(pretrained), None, CPU).state_dict() for reuse in workers]
    assert all(torch.equal(again[0][name], again[1][name]) for name in again[1])
    assert again[0]["net.decoder.conv_out.weight"].any()


@pytest.mark.parametrize("damage", ["cut", "other numbers", "no room"])
def test_a_damaged_file_of_weights_is_not_used(
    damage: str, pretrained: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = kl_spec(pretrained)
    expected = build.build_model(spec, None).state_dict()
    if damage == "no room":
        cache.parent.mkdir(exist_ok=True)
        cache.write_text("a file where the folder should be")
    else:
        ModelReuse().model(spec, None, CPU)
        (file,) = (cache / "models").rglob("*.safetensors")
        content = file.read_bytes()
        file.write_bytes(content[:1000] if damage == "cut" else content[:-4] + b"abcd")
    reuse = ModelReuse()
    for _ in range(2):
        found = reuse.model(spec, None, CPU).state_dict()
        gc.collect()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


# ------------------------------------------------------------------------------------------------- report 0


def test_the_untuned_model_is_evaluated_once(evaluated: list[int], tmp_path: Path) -> None:
    reuse = ModelReuse()
    for number, changes in enumerate([{}, {"freeze_depth": 1}, {"optimizer": {"lr": 1e-3}}, {"max_steps": 2}]):
        folder = tmp_path / str(number)
        first = next(finetune(spec_of(**changes), folder, reuse=reuse))
        assert first.metrics == next(finetune(spec_of(**changes), tmp_path / "alone")).metrics
        assert (folder / first.images).read_bytes() == (tmp_path / "alone" / first.images).read_bytes()
        gc.collect()
    assert len(evaluated) == 1 + 4


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"metrics": ["mse"]},
        {"batch_size": 4},
        {"data": {"source": "digits", "resolution": 16, "color": "grey", "classes": [0, 2]}},
        {"losses": {"mse": 1.0, "kl": 1e-3, "ce": 0.1}},
        {"model": VAE | {"channels": 8}},
        {"num_threads": 2},
    ],
)
def test_a_different_untuned_model_is_evaluated_too(
    changes: dict[str, Any], evaluated: list[int], tmp_path: Path
) -> None:
    reuse = ModelReuse()
    next(finetune(spec_of(), tmp_path, reuse=reuse))
    found = next(finetune(spec_of(**changes), tmp_path, reuse=reuse))
    assert len(evaluated) == 2
    assert found.metrics == next(finetune(spec_of(**changes), tmp_path)).metrics
    torch.set_num_threads(1)


def test_a_collapse_is_found_also_where_the_baseline_was_known(tmp_path: Path) -> None:
    spec = spec_of(losses={"mse": 1.0, "kl": 100.0}, max_steps=60, num_evals=20, metrics=["active_units"])
    reuse, failures = ModelReuse(), []
    for number in range(2):
        with pytest.raises(TrainingFailed) as caught:
            list(finetune(spec, tmp_path / str(number), reuse=reuse))
        failures.append(str(caught.value))
        gc.collect()
    assert failures[0] == failures[1]
    assert "posterior collapse" in failures[0]
