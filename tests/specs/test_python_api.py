"""Specs built in Python: sections as objects or dicts, the messages of a file, descriptions for the docs."""

import re
from typing import Any, get_args

import pytest
from builders import run_dict, run_spec, search_dict, search_spec
from pydantic import BaseModel, ValidationError
from spec_classes import specs_below

import ftae.specs
from ftae.specs import (
    METRICS,
    Asha,
    Choices,
    ConvVae,
    Digits,
    FinetuneSpec,
    Losses,
    Objective,
    Optimizer,
    ProductionSpec,
    Range,
    SearchSettings,
    SearchSpec,
)
from ftae.specs.reading.problems import problems
from ftae.specs.reading.schema import alternatives, descriptions, model_of

RUN = FinetuneSpec(
    model=ConvVae(channels=4, depth=1, latent_dim=4),
    data=Digits(resolution=16, classes=(3, 7)),
    losses=Losses(mse=1.0, kl=1e-3),
    optimizer=Optimizer(lr=1e-2),
    max_steps=12,
    num_evals=2,
)


def test_sections_may_be_objects_or_dicts() -> None:
    assert run_spec() == RUN
    assert FinetuneSpec(**run_dict()) == RUN
    assert FinetuneSpec(**run_dict(model=ConvVae(channels=4, depth=1, latent_dim=4))) == RUN
    assert run_spec().digest() == RUN.digest()


def test_a_search_is_built_of_objects() -> None:
    built = SearchSpec(
        name="small",
        finetune=RUN,
        search_space={
            "optimizer.lr": Range(low=1e-6, high=1e-2, log=True),
            "optimizer.name": Choices(choices=("adamw", "sgd")),
        },
        objective=Objective(metric="val/psnr", direction="maximize"),
        search=SearchSettings(num_trials=2, scheduler=Asha(reduction_factor=2.0)),
    )
    from_dict = search_spec(
        search={"num_trials": 2, "scheduler": {"name": "asha", "reduction_factor": 2}},
        **{"search_space.optimizer.name": {"choices": ["adamw", "sgd"]}},
    )
    assert built == from_dict
    assert built.digest() == from_dict.digest()


def test_a_tag_must_stand_in_a_file_all_the_same() -> None:
    with pytest.raises(ValidationError) as caught:
        run_spec(**{"model.family": ...})
    assert [location for location, _ in problems(FinetuneSpec, caught.value)] == [("model", "family")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_steps": 0}, ["max_steps: must be greater than or equal to 1, got 0"]),
        ({"model.family": "conv_va"}, ["model.family: must be one of mlp_vae, .*, got 'conv_va', did you mean 'conv_"]),
        ({"data.resolution": "big"}, ["data.resolution: must be a whole number, got 'big'"]),
        ({"losses.kll": 1.0}, ["losses.kll: unknown key, must be one of mse, .*, did you mean 'kl'?"]),
        ({"losses": {"ce": 1.0}, "metrics": ["mig"]}, ["metrics.0: mig needs images with known factors of variation"]),
        ({"optimizer.lr": 0, "freeze": "encoder"}, ["freeze: must be a list", "optimizer.lr: must be greater than 0"]),
        ({"optimizer.lr": True}, ["optimizer.lr: must be a number, got true"]),
    ],
)
def test_a_constructor_raises_the_messages_of_a_file(changes: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        FinetuneSpec(**run_dict(**changes))
    first, *found = str(caught.value).splitlines()
    assert first.endswith(" for FinetuneSpec")
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert re.match(rf"  {start}", line), line
        assert "Input should" not in line
    # Such an error is read like any other.
    assert len(problems(FinetuneSpec, caught.value)) == len(expected)


def test_a_section_that_is_built_by_itself_raises_them_too() -> None:
    with pytest.raises(ValidationError, match=r"for Optimizer\n  momentum: has no effect on adamw, it takes betas"):
        Optimizer(lr=1e-3, momentum=0.9)
    with pytest.raises(ValidationError, match="high: must be greater than low"):
        Range(low=2, high=1)
    with pytest.raises(ValidationError, match="names no leaf of finetune: unknown key 'lrr' in optimizer"):
        SearchSpec(**search_dict(search_space={"optimizer.lrr": Range(low=1e-4, high=1e-2)}))


def test_sections_are_validated_without_a_call_of_their_constructors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker validates a spec for every trial."""

    def refuse(self: BaseModel, **values: Any) -> None:
        raise AssertionError("a constructor was called")

    monkeypatch.setattr(Optimizer, "__init__", refuse)
    assert run_spec() == RUN


def test_every_public_name_is_there() -> None:
    assert all(hasattr(ftae.specs, name) for name in ftae.specs.__all__)
    families = {model_of(kind) for kind in alternatives(FinetuneSpec.model_fields["model"].annotation)}
    assert families <= {getattr(ftae.specs, name) for name in ftae.specs.__all__ if name != "METRICS"}


SPECS = sorted(specs_below(ProductionSpec, specs_below(SearchSpec, {Range, Choices})), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("spec_type", SPECS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_description_for_the_docs(spec_type: type[BaseModel]) -> None:
    assert spec_type.__doc__
    described = descriptions(spec_type)
    for name, field in spec_type.model_fields.items():
        is_tag = len(get_args(field.annotation)) == 1 and name in ("family", "source", "name")
        assert is_tag or described[name].endswith("."), f"{spec_type.__name__}.{name}"


def test_every_metric_and_every_need_has_a_description() -> None:
    for name, metric in METRICS.items():
        assert metric.description, name
        assert metric.low < metric.high
        assert all(need.description for need in metric.needs)
    assert all(need.description for needs in Losses.TERMS.values() for need in needs)
