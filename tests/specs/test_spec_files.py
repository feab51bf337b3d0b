"""Files of both kinds: what can be read, how overrides lie over it, and that a dump comes back the same."""

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
from pydantic import ValidationError

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


BOMB = b"".join(
    b"%c: &%c [%s]\n" % (name, name, b"x" if name == ord("a") else b", ".join([b"*%c" % (name - 1)] * 20))
    for name in b"abcdef"
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ":1: must be a mapping with the keys name, finetune, ..., got nothing"),
        (b"# only a comment\n", ":1: must be a mapping with the keys name, finetune, ..., got nothing"),
        (b"- 1\n- 2\n", ":1: must be a mapping with the keys name, finetune, ..., got [1, 2]"),
        (b"hello\n", ":1: must be a mapping with the keys name, finetune, ..., got 'hello'"),
        (bytes(range(256)), ":2: cannot be read: it is not a text file (UTF-8)"),
        ("name: caf\u00e9".encode("latin-1"), ":1: cannot be read: it is not a text file (UTF-8)"),
        ("name: x".encode("utf-16"), ":1: cannot be read: it is not a text file (UTF-8)"),
        (b"name: x\n\nfinetune: \x00\n", ":3: not valid YAML: special characters are not allowed (U+0000)"),
        (b"name: x\r\nfinetune: \x1b\r\n", ":2: not valid YAML: special characters are not allowed (U+001B)"),
        (b"name: x\nmax_steps: " + b"9" * 5000 + b"\n", ":2: not valid YAML: Exceeds the limit"),
        (b"name: x\nb: !!binary '\xc3\xa9'\n", ":2: not valid YAML: failed to convert base64 data into ascii"),
        (BOMB, ":5: not valid YAML: its aliases stand for more than 100000 values"),
        (BOMB.replace(b"f: [", b"<<: ["), ":5: not valid YAML: its aliases stand for more than 100000 values"),
        (b"name: a: b\n", ":1: not valid YAML: mapping values are not allowed here"),
        (b"name: x\nfinetune:\n\tmodel: 3\n", ":3: not valid YAML: while scanning for the next token found character"),
        (b"name: x\nlist: [1\n\n\n", ":2: not valid YAML: while parsing a flow sequence"),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML: expected a single document in the stream"),
        (b"a: *x\n", ":1: not valid YAML: found undefined alias 'x'"),
        (b"a: !!python/name:os.system x\n", ":1: not valid YAML: could not determine a constructor for the tag"),
        (b"{[a]: 1}\n", ":1: not valid YAML: while constructing a mapping found unhashable key"),
        (b"name: x\nfinetune: &a\n  model: {deep: *a}\n", ":2: not valid YAML: an alias stands inside what it names"),
        (b"name: x\nfinetune: &a\n  <<: *a\n", ":2: not valid YAML: an alias stands inside what it names"),
        (b"[" * 20_000, ":1: not valid YAML: nested too deeply"),
    ],
)
def test_what_is_no_mapping_gets_one_line(path: Path, content: bytes, expected: str) -> None:
    path.write_bytes(content)
    assert problem(path).startswith(f"{path}{expected}")


def test_a_path_that_cannot_be_read_gets_one_line(path: Path) -> None:
    assert problem(path) == f"{path}: cannot be read: No such file or directory"
    assert problem(path.parent) == f"{path.parent}: cannot be read: Is a directory"


def test_byte_order_mark_and_windows_line_ends_are_read(path: Path) -> None:
    text = yaml.safe_dump(SEARCH, sort_keys=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_search(path) == SearchSpec.model_validate(SEARCH)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("max_steps: 40", "max_steps: 0").replace("\n", "\r\n").encode())
    line = text.splitlines().index("  max_steps: 40") + 1
    assert problem(path) == f"{path}:{line}: finetune.max_steps: must be greater than or equal to 1, got 0"


def test_a_located_search_is_valid_from_any_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for name in ("models/a", "models/b", "photos"):
        Path(name).mkdir(parents=True)
    run = {**FOLDER, "model": {"family": "autoencoder_tiny", "pretrained": "models/a"}}
    run["data"] = {"source": "image_folder", "train": "photos", "val": "1e-1", "resolution": 32}
    space = {"model.pretrained": {"choices": ["models/a", "models/b", "org/hub-id"]}}
    spec = load_search(write(path, {**SEARCH, "finetune": run, "search_space": space}))
    assert spec.finetune.data.val == 0.1, "a share that YAML reads as text is no folder"
    with_absolute_paths = spec.with_absolute_paths()
    here = path.parent
    assert with_absolute_paths.finetune.model.pretrained == f"{here}/models/a"
    assert with_absolute_paths.search_space["model.pretrained"].corners() == (
        f"{here}/models/a",
        f"{here}/models/b",
        "org/hub-id",
    )
    monkeypatch.chdir("/")
    assert SearchSpec.model_validate(with_absolute_paths.model_dump(mode="json")) == with_absolute_paths


# ---------------------------------------------------------------------------- anchors and merging

MERGED = """\
name: merged
finetune:
  model: &model
    family: conv_ae
    channels: 8
  data: {source: digits, resolution: 16}
  losses: {mse: 1}
  optimizer: {lr: 1e-3}
  max_steps: 40
search_space:
  optimizer.lr: &lr {low: 1e-4, high: 1e-2}
  losses.mse:
    <<: *lr
    high: 2
  losses.tv: {<<: *lr, low: 0}
objective: {metric: val/psnr, direction: maximize}
"""


def test_anchors_and_merge_keys_work(path: Path) -> None:
    path.write_text(MERGED)
    space = load_search(path).search_space
    assert space["losses.mse"] == Range(low=1e-4, high=2.0)
    assert space["losses.tv"] == Range(low=0.0, high=1e-2)


def test_a_fault_that_was_merged_in_is_shown_where_it_is_written(path: Path) -> None:
    path.write_text(MERGED.replace("&lr {low: 1e-4,", "&lr {lag: 1, low: 1e-4,"))
    with pytest.raises(SpecError) as caught:
        load_search(path)
    assert [line.partition(": unknown")[0] for line in caught.value.problems] == [
        f"{path}:11: search_space.{key}.lag" for key in ("optimizer.lr", "losses.mse", "losses.tv")
    ]


def test_a_key_of_its_own_over_a_merged_one_is_not_given_twice(path: Path) -> None:
    path.write_text(MERGED.replace("    high: 2\n", "    high: 2\n    high: 3\n"))
    assert problem(path) == f"{path}:15: search_space.losses.mse.high: key given twice"


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


@pytest.mark.parametrize("uri", ["http://me:secret@mlflow:5000", "postgresql://me:secret@db/mlflow"])
def test_a_password_in_the_file_is_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(SEARCH | {"tracking": {"uri": uri}}))
    with pytest.raises(SpecError, match=r"tracking\.uri: must not hold a password") as refusal:
        load_search(path)
    assert "secret" not in str(refusal.value)
    for fine in ("http://mlflow:5000", "postgresql://me@db/mlflow", "sqlite:///mlflow.db"):
        path.write_text(yaml.safe_dump(SEARCH | {"tracking": {"uri": fine}}))
        assert load_search(path).tracking.uri == fine


def test_only_a_folder_is_located() -> None:
    for storage, with_absolute_paths in (("s3://bucket/x", "s3://bucket/x"), ("here", str(Path("here").absolute()))):
        search = SEARCH | {"search": {"storage": storage}, "tracking": {"uri": "http://there"}}
        assert SearchSpec.model_validate(search).with_absolute_paths().search.storage == with_absolute_paths


def test_a_local_store_is_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    search = SearchSpec.model_validate(SEARCH | {"tracking": {"uri": "sqlite:///mlflow.db"}})
    assert search.with_absolute_paths().tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert SearchSpec.model_validate(SEARCH).with_absolute_paths().tracking.uri is None


def test_a_trial_runs_on_the_device_that_its_resources_give() -> None:
    def device(**gpus: float) -> str:
        return SearchSpec.model_validate(SEARCH | {"search": {"resources": gpus}}).trial_spec({}).device

    assert (device(gpus=0), device(gpus=0.5)) == ("cpu", "cuda")


def test_gpus_per_trial_is_short_for_workers_with_a_gpu_each() -> None:
    short, long = (
        SearchSpec.model_validate(SEARCH | {"search": {"resources": resources}})
        for resources in ({"gpus_per_trial": 4, "cpus": 2}, {"gpus": 1, "workers": 4, "cpus": 2})
    )
    assert short == long
    assert short.model_dump()["search"]["resources"] == {"cpus": 2.0, "gpus": 1.0, "workers": 4}
    assert short.trial_spec({}).num_threads == 2  # each worker's


@pytest.mark.parametrize(
    ("searched", "problem"),
    [
        ({"choices": [4, 8]}, None),
        ({"low": 4, "high": 16, "step": 4}, None),
        ({"choices": [4, 6, 8]}, "4 workers cannot share batch_size 6 evenly"),
        ({"low": 4, "high": 16}, "4 workers cannot share every batch_size of 4 .. 16, step 1 evenly, use multiples"),
        ({"low": 6, "high": 14, "step": 2}, "4 workers cannot share every batch_size of 6 .. 14, step 2 evenly"),
    ],
)
def test_workers_share_every_batch_evenly(searched: dict[str, Any], problem: str | None) -> None:
    data = SEARCH | {"search": {"resources": {"workers": 4}}, "search_space": {"batch_size": searched}}
    if problem is None:
        assert SearchSpec.model_validate(data).search.resources.workers == 4
    else:
        with pytest.raises(ValidationError, match=f"resources.workers: {problem}"):
            SearchSpec.model_validate(data)
