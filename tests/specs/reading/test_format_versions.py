"""Files of version 1 are read as if this version had written them; files of a newer one are refused."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import production_spec, run_dict, search_dict

from ftae.errors import FtaeError, SpecError
from ftae.specs import FinetuneSpec, SearchSpec
from ftae.specs.files import dump, load_any, load_production
from ftae.specs.reading.format_versions import FORMAT, Kind, migrate

MODEL = {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4}

KINDS: list[Kind] = ["journal", "checkpoint", "model_folder", "production"]


def old_run() -> dict[str, Any]:
    return run_dict(model=MODEL | {"outer_stages": 1}, prefix_cache_gb=0.5)


def new_run() -> dict[str, Any]:
    return run_dict(model=MODEL | {"resolution_adapters": 1}, frozen_cache_gb=0.5)


CHOICES = {"choices": [0, 1]}

# By kind: content of version 1, and what this version makes of it.
CONTENTS: list[tuple[Kind, dict[str, Any], dict[str, Any]]] = [
    (
        "journal",
        {
            "event": "open",
            "time": 1.0,
            "digest": "0" * 16,
            "search": search_dict(finetune=old_run(), **{"search_space.model.outer_stages": CHOICES}),
        },
        {
            "event": "open",
            "time": 1.0,
            "digest": "0" * 16,
            "search": search_dict(finetune=new_run(), **{"search_space.model.resolution_adapters": CHOICES}),
        },
    ),
    (
        "journal",
        {"event": "suggest", "trial": 1, "params": {"model.outer_stages": 1, "optimizer.lr": 1e-3}},
        {"event": "suggest", "trial": 1, "params": {"model.resolution_adapters": 1, "optimizer.lr": 1e-3}},
    ),
    (
        "journal",
        {"event": "adapt", "trial": 1, "changes": {"prefix_cache_gb": 0.0, "batch_size": 4}},
        {"event": "adapt", "trial": 1, "changes": {"frozen_cache_gb": 0.0, "batch_size": 4}},
    ),
    (
        "checkpoint",
        {"report": {"step": 6}, "vitals": {"posterior collapse": 3.0}, "spec": old_run()},
        {"report": {"step": 6}, "collapse_signs": {"posterior collapse": 3.0}, "spec": new_run()},
    ),
    (
        "model_folder",
        {"family": "conv_vae", "options": {"channels": 4}, "outer_stages": 1, "resolution": 16},
        {"family": "conv_vae", "options": {"channels": 4}, "resolution_adapters": 1, "resolution": 16},
    ),
    (
        "production",
        {"name": "old", "finetune": old_run(), "from_search": {"search": "old", "trial": 1}},
        {"name": "old", "finetune": new_run(), "from_search": {"search": "old", "trial": 1}},
    ),
]


@pytest.mark.parametrize(("kind", "old", "new"), CONTENTS)
def test_content_of_version_1_is_converted_and_left_unchanged(
    kind: Kind, old: dict[str, Any], new: dict[str, Any]
) -> None:
    before = deepcopy(old)
    result = migrate(old, kind)
    assert result == new
    assert list(result) == list(new)  # also the order of keys
    assert old == before


@pytest.mark.parametrize(("kind", "old", "new"), CONTENTS)
def test_content_of_this_version_stays_as_it_is(kind: Kind, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert migrate(new, kind) == new
    assert migrate({"format": FORMAT, **new}, kind) == new


def test_converted_specs_are_valid() -> None:
    by_kind = {kind: migrate(old, kind) for kind, old, _ in reversed(CONTENTS)}
    assert FinetuneSpec.model_validate(by_kind["checkpoint"]["spec"]).frozen_cache_gb == 0.5
    search = by_kind["journal"]["search"]
    search["finetune"]["data"]["resolution"] = 32
    assert SearchSpec.model_validate(search).finetune.model.model_dump()["resolution_adapters"] == 1


def test_a_user_s_own_options_keep_their_names() -> None:
    own = {"family": "m:Net", "image_range": "0..1", "kwargs": {"outer_stages": 1, "prefix_cache_gb": 2}}
    for kind in ("production", "checkpoint"):
        section = "spec" if kind == "checkpoint" else "finetune"
        assert migrate({section: run_dict(model=own)}, kind) == {section: run_dict(model=own)}
    event = {"event": "suggest", "params": {"model.kwargs.outer_stages": 1}}
    assert migrate(event, "journal") == event


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_format_is_refused_in_one_sentence(kind: Kind) -> None:
    with pytest.raises(FtaeError, match=r"^X was written by a newer ftae \(format 3, this one reads up to 2\)"):
        migrate({"format": 3}, kind, "X")
    with pytest.raises(FtaeError, match=f"^the {kind.replace('_', ' ')} was written by a newer ftae"):
        migrate({"format": 3}, kind)


@pytest.mark.parametrize("number", ["2", 2.0, True, 0, -1, None, [], {}])
def test_a_format_that_is_no_number_is_refused(number: Any) -> None:
    with pytest.raises(FtaeError, match="the checkpoint is damaged: its format is"):
        migrate({"format": number}, "checkpoint")


@pytest.mark.parametrize("damaged", [None, 1, "text", [], [1]])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_content_is_left_to_its_reader(kind: Kind, damaged: Any) -> None:
    for key in ("search", "params", "changes", "spec", "vitals", "finetune", "outer_stages"):
        migrate({key: damaged}, kind)
    for content in ({"search": {"finetune": damaged, "search_space": damaged}}, {"finetune": {"model": damaged}}):
        assert migrate(content, kind) == content


def test_a_production_file_says_its_format_and_version_1_can_be_read(tmp_path: Path) -> None:
    spec = production_spec(frozen_cache_gb=0.5, **{"model.resolution_adapters": 1})
    text = dump(spec)
    assert text.startswith(f"format: {FORMAT}\n")
    (tmp_path / "new.yaml").write_text(text)
    old = yaml.safe_load(text)
    del old["format"]
    old["finetune"]["prefix_cache_gb"] = old["finetune"].pop("frozen_cache_gb")
    old["finetune"]["model"]["outer_stages"] = old["finetune"]["model"].pop("resolution_adapters")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    for name in ("new.yaml", "old.yaml"):
        assert load_production(tmp_path / name) == load_any(tmp_path / name) == spec
    override = load_production(tmp_path / "old.yaml", ["frozen_cache_gb=0"])
    assert override.finetune.frozen_cache_gb == 0.0


def test_a_production_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(dump(production_spec()).replace(f"format: {FORMAT}", "format: 3"))
    with pytest.raises(SpecError, match=r"new.yaml: was written by a newer ftae \(format 3, this one reads up to 2\)"):
        load_production(file)
