"""``data.degrade``: at least one kind of degradation, none larger than the image."""

from typing import Any

import pytest
from builders import production_spec, run_spec
from pydantic import ValidationError

from ftae.specs.finetune.images import Degradation
from ftae.specs.finetune.sources.builtin import Digits
from ftae.specs.reading.problems import problems
from ftae.specs.search.lint import warnings


def data(**fields: Any) -> dict[str, Any]:
    return {"source": "digits", "resolution": 16, **fields}


@pytest.mark.parametrize(
    ("degrade", "place", "rule"),
    [
        ({}, "degrade.blocks", "nothing is degraded"),
        ({"noise": 0.0, "blur": 0.0}, "degrade.blocks", "nothing is degraded"),
        ({"noise": -0.1}, "degrade.noise", "greater than or equal to 0"),
        ({"jpeg": 0}, "degrade.jpeg", "greater than or equal to 1"),
        ({"blur": 6.0}, "degrade.blur", r"3 sigma must be less than resolution \(16\), got 6"),
        ({"blocks": {"share": 0.5, "size": 16}}, "degrade.blocks.size", r"must be less than resolution \(16\), got 16"),
        ({"blocks": {"share": 1.0, "size": 4}}, "degrade.blocks.share", "less than 1"),
    ],
)
def test_a_degradation_without_effect_or_too_large_is_refused(degrade: dict[str, Any], place: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule) as error:
        Digits.model_validate(data(degrade=degrade))
    assert [".".join(map(str, location)) for location, _ in problems(Digits, error.value)] == [place]


def test_a_degradation_describes_itself() -> None:
    degrade = Degradation.model_validate({"noise": 0.1, "jpeg": 30, "blocks": {"share": 0.25, "size": 4}})
    assert str(degrade) == "noise 0.1, jpeg 30, 25% in blocks of 4 pixels"


def test_input_psnr_needs_other_inputs_than_targets() -> None:
    with pytest.raises(ValidationError, match="input_psnr needs inputs that differ from the images to give"):
        run_spec(metrics=["input_psnr"])
    spec = run_spec(metrics=["psnr", "input_psnr"], **{"data.degrade": {"noise": 0.1}})
    assert spec.metrics == ("psnr", "input_psnr")


def test_labels_that_no_loss_uses_get_a_warning() -> None:
    spec = production_spec(**{"data.labelled_fraction": 0.1})
    assert any("data.labelled_fraction has no effect" in text for text in warnings(spec))


def test_photos_have_no_labels_to_leave_out() -> None:
    with pytest.raises(ValidationError, match="photos has no labels"):
        run_spec(data={"source": "photos", "resolution": 16, "labelled_fraction": 0.5})
