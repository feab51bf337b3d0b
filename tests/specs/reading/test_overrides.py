"""Leaves by path: finding them, converting values to their types, replacing one without touching the rest."""

from typing import Any

import pytest
from pydantic import ValidationError

from ftae.errors import FtaeError
from ftae.specs import FinetuneSpec, ProductionSpec, SearchSpec
from ftae.specs.reading.overrides import apply_overrides, leaf, leaf_in, locate, value_at, with_value

RUN = FinetuneSpec.model_validate(
    {
        "model": {
            "family": "my.models:build",
            "image_range": "0..1",
            "kwargs": {"width": 8, "rate": 0.5, "on": True, "name": "a", "net": {"depth": 2}, "a.b": 1},
        },
        "data": {"source": "image_folder", "train": "photos", "resolution": 64},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3, "lr_multipliers": {"encoder": 0.1, "decoder.*": 2.0}},
        "max_steps": 100,
    }
)


@pytest.mark.parametrize(
    ("path", "given", "held"),
    [
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", 1, 1.0),
        ("freeze_depth", 3.0, 3),
        ("freeze_depth", "3", 3),
        ("max_grad_norm", None, None),
        ("max_grad_norm", "0.5", 0.5),
        ("freeze", ["encoder.*"], ("encoder.*",)),
        ("optimizer.betas", [0.9, "0.99"], (0.9, 0.99)),
        ("optimizer.lr_multipliers.head", 2, 2.0),
        ("data.val", "1e-1", 0.1),
        ("data.val", "held-out", "held-out"),
        ("data.flip", True, True),
        ("model.stages.encoder", ["enc"], ("enc",)),
        ("model.kwargs.width", 16.0, 16),
        ("model.kwargs.rate", 1, 1.0),
        ("model.kwargs.name", "b", "b"),
    ],
)
def test_a_leaf_converts_values_as_its_field_does(path: str, given: Any, held: Any) -> None:
    value = leaf(RUN, path).coerce(given)
    assert value == held
    assert type(value) is type(held)
    assert value_at(apply_overrides(RUN, {path: given}), path) == held


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("optimizer.lr", 0),
        ("optimizer.lr", None),
        ("optimizer.lr", float("inf")),
        ("freeze_depth", 1.5),
        ("freeze_depth", -1),
        ("precision", "fp16"),
        ("optimizer.lr_multipliers.head", 0),
        ("data.val", 1.5),
        ("model.kwargs.width", 1.5),
    ],
)
def test_a_leaf_refuses_what_its_field_refuses(path: str, given: Any) -> None:
    with pytest.raises(ValidationError):
        leaf(RUN, path).coerce(given)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("optimizer.lr", float),
        ("max_grad_norm", float),
        ("freeze_depth", int),
        ("num_threads", int),
        ("optimizer.lr_multipliers.anything.at.all", float),
        ("model.kwargs.width", int),
        ("model.kwargs.net.depth", int),
        ("model.kwargs.rate", float),
        ("model.kwargs.on", None),
        ("model.kwargs.name", None),
        ("optimizer.name", None),
        ("freeze", None),
        ("data.val", None),  # a share or a folder
        ("data.flip", None),
    ],
)
def test_the_number_type_of_a_leaf(path: str, expected: type | None) -> None:
    assert leaf(RUN, path).number_type() is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("optimiser.lr", "unknown key 'optimiser', must be one of model, data,"),
        ("optimizer.lrr",
         "unknown key 'lrr' in optimizer, must be one of name, lr, lr_multipliers, weight_decay, betas, "
         "momentum, did you mean 'lr'?"),
        ("data.shift", "unknown key 'shift' in data, must be one of resolution,"),
        ("model.hidden",
         "unknown key 'hidden' in model, must be one of pretrained, family, kwargs, stages, image_range"),
        ("optimizer", "a whole section, add one of name, lr,"),
        ("model.stages", "a whole section, add one of encoder, bottleneck, decoder"),
        ("optimizer.lr_multipliers", "a whole mapping, add one of its keys"),
        ("optimizer.lr.x", "optimizer.lr is set as a whole and has no 'x'"),
        ("metrics.0", "metrics is set as a whole and has no '0'"),
        ("", "unknown key '', must be one of model,"),
        ("optimizer..lr", "unknown key '' in optimizer, must be one of name,"),
    ],
)  # fmt: skip
def test_a_path_to_no_leaf_is_refused_with_the_choices(path: str, expected: str) -> None:
    with pytest.raises(FtaeError) as caught:
        leaf(RUN, path)
    assert str(caught.value).startswith(expected)


def test_a_key_behind_a_mapping_may_contain_dots() -> None:
    data = RUN.model_dump()
    assert locate(FinetuneSpec, data, "optimizer.lr_multipliers.decoder.*")[0] == (
        "optimizer",
        "lr_multipliers",
        "decoder.*",
    )
    # A new key is one key, even where a part of it is there.
    assert locate(FinetuneSpec, data, "optimizer.lr_multipliers.encoder.conv")[0][2:] == ("encoder.conv",)
    assert locate(FinetuneSpec, data, "model.kwargs.a.b")[0] == ("model", "kwargs", "a.b")
    assert locate(FinetuneSpec, data, "model.kwargs.net.depth")[0] == ("model", "kwargs", "net", "depth")
    assert locate(FinetuneSpec, data, "model.kwargs.net.width")[0] == ("model", "kwargs", "net", "width")


def test_the_parts_of_a_distribution_are_found_behind_an_existing_key_only() -> None:
    data = {"search_space": {"optimizer.lr": {"low": 1, "high": 2}}}
    assert locate(SearchSpec, data, "search_space.optimizer.lr.choices")[0] == (
        "search_space",
        "optimizer.lr",
        "choices",
    )
    assert locate(SearchSpec, data, "search_space.optimizer.lr")[0] == ("search_space", "optimizer.lr")
    assert locate(SearchSpec, data, "search_space.losses.kl.low")[0] == ("search_space", "losses.kl.low")
    assert locate(SearchSpec, {}, "search_space.losses.kl")[0] == ("search_space", "losses.kl")
    assert locate(ProductionSpec, {}, "finetune.optimizer.lr")[0] == ("finetune", "optimizer", "lr")


def test_a_union_without_a_valid_tag_takes_the_keys_of_every_member() -> None:
    unknown = {"model": {"family": "mlp_vea"}, "data": 3}
    for path in ("model.hidden", "model.subfolder", "model.kwargs.x", "data.train", "data.classes"):
        leaf_in(FinetuneSpec, unknown, path)
    with pytest.raises(FtaeError):
        leaf_in(FinetuneSpec, {"model": {"family": "mlp_vae"}}, "model.subfolder")


def test_apply_overrides_changes_those_leaves_and_nothing_else() -> None:
    before = RUN.model_dump()
    changed = apply_overrides(
        RUN, {"optimizer.lr": "2e-3", "optimizer.lr_multipliers.head": 3, "model.kwargs.net.depth": 5}
    )
    assert RUN.model_dump() == before
    expected = RUN.model_dump()
    expected["optimizer"]["lr"] = 2e-3
    expected["optimizer"]["lr_multipliers"]["head"] = 3.0
    expected["model"]["kwargs"]["net"]["depth"] = 5
    assert changed.model_dump() == expected


def test_apply_overrides_validates_the_whole() -> None:
    with pytest.raises(ValidationError, match="at least one of mse"):
        apply_overrides(RUN, {"losses.mse": 0.0})
    with pytest.raises(FtaeError, match="unknown key 'lrr'"):
        apply_overrides(RUN, {"optimizer.lrr": 0.0})


def test_with_value_leaves_shared_parts_alone() -> None:
    shared = {"k": 1}
    data = {"a": shared, "b": shared, "c": None}
    assert with_value(data, ("a", "k"), 2) == {"a": {"k": 2}, "b": {"k": 1}, "c": None}
    assert with_value(data, ("c", "d", "e"), 3)["c"] == {"d": {"e": 3}}
    assert data == {"a": {"k": 1}, "b": {"k": 1}, "c": None}


def test_value_at_a_missing_key_of_a_mapping_is_none() -> None:
    assert value_at(RUN, "optimizer.lr_multipliers.head") is None
    assert value_at(RUN, "model.stages.encoder") is None
    assert value_at(RUN, "optimizer.lr_multipliers.decoder.*") == 2.0
    with pytest.raises(FtaeError):
        value_at(RUN, "optimizer.lrr")
