"""``data.intensity``: the meaning of the values in image files."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ftae.specs.finetune.data import AnyData

DATA: TypeAdapter[Any] = TypeAdapter(AnyData)
FOLDER = {"source": "image_folder", "train": "d", "resolution": 16}


@pytest.mark.parametrize(
    ("intensity", "levels"),
    [
        ({"bits": 12}, (0, 4095)),
        ({"bits": 16}, (0, 65535)),
        ({"window": [-1000, 300.5], "unit": "HU"}, (-1000, 300.5)),
        ({"percentile": [0.5, 99.5]}, None),
        ({"dtype_range": True}, None),
        ({"percentile": [0.5, 99.5], "measured": [-3, 700]}, (-3, 700)),
        ({"per_image": "minmax"}, None),
    ],
)
def test_black_and_white_are_known_where_the_file_tells(intensity: Any, levels: tuple[float, float] | None) -> None:
    assert DATA.validate_python({**FOLDER, "intensity": intensity}).meaning.levels == levels


def test_images_of_8_bits_need_no_meaning() -> None:
    assert DATA.validate_python(FOLDER).meaning is None


@pytest.mark.parametrize(
    ("intensity", "rule"),
    [
        ({}, "must have one of bits .*, got none"),
        ({"bits": 12, "window": [0, 10]}, "got bits, window"),
        ({"dtype_range": False}, "got none"),
        ({"per_image": "minmax", "unit": "HU"}, "unit has no effect"),
        ({"percentile": [99, 1]}, "LOW below HIGH"),
        ({"bits": 12, "measured": [0, 10]}, "measured has no effect on bits"),
        ({"dtype_range": True, "measured": [10, 0]}, "LOW below HIGH"),
        ({"percentile": [1, 101]}, "less than or equal to 100"),
        ({"bits": 7}, "greater than or equal to 8"),
        ({"bits": 17}, "less than or equal to 16"),
        ({"window": [10, 10]}, "LOW below HIGH"),
        ({"window": [0, float("inf")]}, "finite number"),
        ({"window": [1]}, "Field required"),
        ({"gamma": 2}, "Extra inputs"),
    ],
)
def test_an_intensity_that_means_nothing_is_refused(intensity: Any, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        DATA.validate_python({**FOLDER, "intensity": intensity})


@pytest.mark.parametrize("source", ["digits", "photos", "shapes"])
def test_images_without_files_have_no_intensity(source: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        DATA.validate_python({"source": source, "resolution": 16, "intensity": {"bits": 12}})
