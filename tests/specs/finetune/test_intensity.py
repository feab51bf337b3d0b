"""``data.intensity``: the meaning of the values of 16-bit grey images."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ftae.specs.finetune.data import AnyData

DATA: TypeAdapter[Any] = TypeAdapter(AnyData)
FOLDER = {"source": "image_folder", "train": "d", "resolution": 16}


@pytest.mark.parametrize(
    ("intensity", "levels", "bits"),
    [
        (None, None, None),
        ({"bits": 12}, (0, 4095), 12),
        ({"bits": 16}, (0, 65535), 16),
        ({"window": [100, 300]}, (100, 300), None),
    ],
)
def test_black_and_white_are_known(intensity: Any, levels: tuple[int, int] | None, bits: int | None) -> None:
    data = DATA.validate_python({**FOLDER, "intensity": intensity})
    assert (data.grey_levels, data.most_bits) == (levels, bits)


@pytest.mark.parametrize(
    ("intensity", "rule"),
    [
        ({}, "must have bits"),
        ({"bits": 12, "window": [0, 10]}, "one of the two"),
        ({"bits": 7}, "greater than or equal to 8"),
        ({"bits": 17}, "less than or equal to 16"),
        ({"window": [10, 10]}, "LOW below HIGH"),
        ({"window": [-5, 10]}, "greater than or equal to 0"),
        ({"window": [0, 65536]}, "less than or equal to 65535"),
        ({"window": [1]}, "Field required"),
        ({"percentile": 99}, "Extra inputs"),
    ],
)
def test_an_intensity_that_means_nothing_is_refused(intensity: Any, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        DATA.validate_python({**FOLDER, "intensity": intensity})


@pytest.mark.parametrize("source", ["digits", "photos", "shapes"])
def test_images_without_files_have_no_intensity(source: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        DATA.validate_python({"source": source, "resolution": 16, "intensity": {"bits": 12}})
