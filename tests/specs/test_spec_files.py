"""Files of both kinds: how overrides apply to them, and that a dump loads back to an equal spec."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftae.errors import SpecError
from ftae.specs import Choices, FinetuneSpec, ProductionSpec, Range, SearchSpec
from ftae.specs.files import dump, load_any, load_production, load_search
from ftae.specs.finetune.models import CustomModel
from ftae.specs.reading.overrides import apply_overrides, leaf
from ftae.specs.reading.yaml_file import Dumper

ROOT = Path(__file__).parents[2]

RUN: dict[str, Any] = {
    "model": {"family": "conv_vae", "channels": 8},
    "data": {"source": "digits", "resolution": 16},
    "losses": {"mse": 1, "kl": "1e-4"},
    "optimizer": {"lr": "1e-3", "lr_multipliers": {"encoder": 0.5, "decoder.*": 2}},
    "max_steps": 40,
}
SEARCH: dict[str, Any] = {
    "name": "digits",
    "finetune": RUN,
    "search_space": {
        "optimizer.lr": {"low": "1e-4", "high": "1e-2", "log": True},
        "optimizer.lr_multipliers.decoder.*": {"low": 1, "high": 4, "step": 0.5},
        "losses.kl": {"choices": ["1e-4", 0]},
        "freeze": {"choices": [[], ["encoder.*"]]},
        "freeze_depth": {"low": 0, "high": 3.0},
        "max_grad_norm": {"choices": [1, None]},
    },
    "objective": {"metric": "val/psnr", "direction": "maximize"},
}
CUSTOM = {
    **RUN,
    "model": {
        "family": "my.models:build",
        "image_range": "-1..1",
        "kwargs": {"width": 8, "rate": 0.5, "act": None, "layers": [1, {"k": True}], "note": "1e-4"},
        "stages": {"encoder": ["enc.0", "enc.1"], "decoder": ["dec"]},
    },
}
PHOTOS = {
    **RUN,
    "model": {"family": "autoencoder_tiny", "pretrained": "org/täsd: #1"},
    "data": {"source": "photos", "resolution": 32, "random_crop_from": 48, "flip": True, "num_patches": 100}
    | {"degrade": {"noise": 0.1, "blocks": {"share": 0.25, "size": 4}}},
    "losses": {"mse": 1},
    "schedule": {"name": "cyclical", "num_cycles": 2},
}
REPLAY = {"source": "digits", "share": 0.25, "classes": [1]}
FOLDER = {
    **PHOTOS,
    "data": {"source": "image_folder", "train": "2024-01-01", "val": "null", "resolution": 32, "replay": REPLAY},
}


def specs() -> dict[str, SearchSpec | ProductionSpec]:
    custom_space = {
        "model.kwargs.width": {"low": 4, "high": 16, "step": 4},
        "model.kwargs.rate": {"low": 0, "high": 1},
        "model.kwargs.act": {"choices": [None, "relu"]},
    }
    return {
        "digits search": SearchSpec.model_validate(SEARCH),
        "custom search": SearchSpec.model_validate({**SEARCH, "finetune": CUSTOM, "search_space": custom_space}),
        "digits": ProductionSpec.model_validate({"name": "a", "finetune": RUN}),
        "custom": ProductionSpec.model_validate(
            {"name": "b", "finetune": CUSTOM, "from_search": {"trial": 3, "v": 1.5}}
        ),
        "photos": ProductionSpec.model_validate({"name": "c", "finetune": PHOTOS, "tracking": {"uri": "http://x"}}),
        "folder": ProductionSpec.model_validate({"name": "d", "finetune": FOLDER}),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spec.yaml"


def write(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


# ------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("kind", specs())
def test_a_dump_loads_back_to_an_equal_spec(path: Path, kind: str) -> None:
    spec = specs()[kind]
    path.write_text(dump(spec))
    again = load_any(path)
    assert again == spec
    assert again.digest() == spec.digest()
    assert type(spec).model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize(
    ("written", "meant"),
    [("[0, 1]", "0..1"), ("[0.0, 1.0]", "0..1"), ("0..1", "0..1"), ("[-1, 1]", "-1..1"), ("[-1.0, 1]", "-1..1")],
)
def test_an_image_range_may_be_a_pair_of_numbers(path: Path, written: str, meant: str) -> None:
    write(path, {"name": "own", "finetune": CUSTOM})
    path.write_text(path.read_text().replace("image_range: -1..1", f"image_range: {written}"))
    model = load_any(path).finetune.model
    assert isinstance(model, CustomModel)
    assert model.image_range == meant


def shuffled(data: Any, rng: random.Random) -> Any:
    if not isinstance(data, dict):
        return data
    keys = list(data)
    rng.shuffle(keys)
    return {key: shuffled(data[key], rng) for key in keys}


@pytest.mark.parametrize("kind", specs())
def test_the_digest_does_not_depend_on_the_order_of_keys(kind: str) -> None:
    spec = specs()[kind]
    mixed = shuffled(spec.model_dump(mode="json"), random.Random(0))
    assert list(mixed) != list(spec.model_dump()), "the shuffle must change something"
    assert type(spec).model_validate(mixed).digest() == spec.digest()


def test_the_digest_is_the_same_in_another_process(path: Path) -> None:
    spec = specs()["custom search"]
    path.write_text(dump(spec))
    code = (
        "import sys, pathlib\nfrom ftae.specs.files import load_any\n"
        "print(load_any(pathlib.Path(sys.argv[1])).digest())"
    )
    for seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert result.stdout.strip() == spec.digest()


SECTIONS = (
    "data.degrade",
    "data.degrade.blocks",
    "data.intensity",
    "data.groups",
    "data.slices",
    "data.tiles",
    "data.replay",
    "data.replay.degrade",
    "data.replay.intensity",
    "data.replay.replay",
    "perceptual",
    "features",
)


def leaves(data: Any, prefix: str = "") -> list[str]:
    """The paths of all leaves of a dumped run; a section that is not there has none."""
    if not isinstance(data, dict) or not data:
        return [prefix] if not isinstance(data, dict) and (data is not None or prefix not in SECTIONS) else []
    return [path for key, value in data.items() for path in leaves(value, f"{prefix}.{key}" if prefix else key)]


@pytest.mark.parametrize("run", [RUN, CUSTOM, PHOTOS, FOLDER], ids=["digits", "custom", "photos", "folder"])
def test_every_leaf_can_be_set_to_its_own_value_and_counts_in_the_digest(path: Path, run: dict[str, Any]) -> None:
    spec = ProductionSpec.model_validate({"name": "a", "finetune": run})
    path.write_text(dump(spec))
    data = spec.finetune.model_dump(mode="json")
    found = leaves(data)
    assert len(found) > 30
    for at in found:
        leaf(spec.finetune, at)
        value: Any = data
        for key in at.replace("decoder.*", "decoder|*").split("."):
            value = value[key.replace("|", ".")]
        text = yaml.dump(value, Dumper=Dumper).removesuffix("...\n").strip()
        for prefix in ("", "finetune."):
            assert load_production(path, [f"{prefix}{at}={text}"]) == spec


def test_the_digest_differs_when_a_value_differs() -> None:
    changes: dict[str, Any] = {
        "model.channels": 9,
        "data.shift": "invert",
        "data.val": 0.3,
        "data.classes": (1, 0),
        "freeze_depth": 1,
        "freeze": ("encoder.*",),
        "losses.kl": 1.0000001e-4,
        "optimizer.lr_multipliers.encoder": 0.6,
        "optimizer.lr_multipliers.head": 1.0,
        "max_grad_norm": None,
        "schedule.name": "linear",
        "metrics": ("ssim", "psnr"),
        "sample_posterior": False,
        "seed": 1,
    }
    run = FinetuneSpec.model_validate(RUN)
    digests = {run.digest()} | {apply_overrides(run, {path: value}).digest() for path, value in changes.items()}
    assert len(digests) == len(changes) + 1


# ------------------------------------------------------------------------------------- overrides


def test_overrides_reach_finetune_with_and_without_its_name(path: Path) -> None:
    write(path, SEARCH)
    spec = load_search(
        path, ["optimizer.lr=2e-3", "finetune.losses.tv=1e-5", "search.num_trials=4", "schedule.name=cosine"]
    )
    assert spec.finetune.optimizer.lr == 2e-3
    assert spec.finetune.losses.tv == 1e-5
    assert spec.finetune.schedule.name == "cosine"
    assert spec.search.num_trials == 4
    assert spec.finetune.losses.kl == 1e-4


def test_overrides_reach_into_the_search_space_whose_keys_contain_dots(path: Path) -> None:
    write(path, SEARCH)
    space = load_search(
        path,
        [
            "search_space.optimizer.lr={low: 1e-5, high: 1e-1, log: true}",  # replaces
            "search_space.optimizer.lr.high=1e-2",  # reaches inside
            "search_space.optimizer.weight_decay={low: 0, high: 1e-3}",  # adds
            "search_space.optimizer.lr_multipliers.decoder.*.low=0.5",
            "search_space.losses.kl.choices=[0, 1e-3, 1e-4]",
        ],
    ).search_space
    assert space["optimizer.lr"] == Range(low=1e-5, high=1e-2, log=True)
    assert space["optimizer.weight_decay"] == Range(low=0.0, high=1e-3)
    assert space["optimizer.lr_multipliers.decoder.*"] == Range(low=0.5, high=4.0, step=0.5)
    assert space["losses.kl"] == Choices(choices=(0.0, 1e-3, 1e-4))
    assert len(space) == len(SEARCH["search_space"]) + 1


def test_a_later_override_wins_and_aliased_sections_stay_apart(path: Path) -> None:
    path.write_text(
        "name: a\nfinetune:\n"
        "  model: {family: my.models:build, image_range: 0..1, kwargs: {a: &x {width: 8}, b: *x}}\n"
        "  data: {source: digits, resolution: 16}\n"
        "  losses: {mse: 1}\n"
        "  optimizer: {lr: 1e-3}\n"
        "  max_steps: 40\n"
    )
    spec = load_production(path, ["seed=1", "seed=2", "model.kwargs.a.width=9", "optimizer.lr_multipliers.enc.0.*=2"])
    assert spec.finetune.seed == 2
    assert spec.finetune.model.model_dump()["kwargs"] == {"a": {"width": 9}, "b": {"width": 8}}
    assert spec.finetune.optimizer.lr_multipliers == {"enc.0.*": 2.0}


# ------------------------------------------------------------------------------- kinds of files


def problem(path: Path, load: Any = load_any) -> str:
    with pytest.raises(SpecError) as caught:
        load(path)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


def test_load_any_tells_the_two_kinds_apart(path: Path) -> None:
    assert isinstance(load_any(write(path, SEARCH)), SearchSpec)
    assert isinstance(load_any(write(path, {"name": "a", "finetune": RUN})), ProductionSpec)
    without_objective = {key: value for key, value in SEARCH.items() if key != "objective"}
    assert "objective: required" in problem(write(path, without_objective))


def test_the_wrong_kind_gets_one_message_that_names_the_command(path: Path) -> None:
    write(path, SEARCH)
    assert problem(path, load_production) == f"{path}:1: is a search file: run it with `ftae search`"
    write(path, {"name": "a b", "finetune": {**RUN, "max_steps": 0}})
    assert "is a production file (it has no search_space, objective, search): run it with `ftae train`" in problem(
        path, load_search
    )


# ----------------------------------------------------------------------------------------- weight


def test_specs_load_nothing_heavy() -> None:
    code = (
        "import sys, ftae.specs, ftae.specs.files, ftae.specs.search.lint\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'diffusers', 'numpy', 'sklearn', 'PIL'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_a_wide_search_is_checked_quickly(path: Path) -> None:
    space = {f"losses.{term}": {"low": 0, "high": 1} for term in ("l1", "huber", "tv")} | {
        f"optimizer.lr_multipliers.g{i}": {"low": 0.1, "high": 10, "log": True} for i in range(9)
    }
    multipliers = {f"g{i}": 1.0 for i in range(9)}
    run = {**RUN, "optimizer": {"lr": 1e-3, "lr_multipliers": multipliers}}
    write(path, {**SEARCH, "finetune": run, "search_space": space})
    start = time.process_time()
    load_search(path)
    assert time.process_time() - start < 2.0
