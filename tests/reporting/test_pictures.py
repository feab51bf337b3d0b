"""Stored pictures in a report: cut into the samples of the engine, limited in number, and never from elsewhere."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reporting.journals import Story

from ftae.reporting import pictures
from ftae.reporting.pictures import Gallery, Layout
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord
from ftae.storage.journal import FILE_NAME


def gallery(story: Story, degraded: bool = False) -> dict[str, Any] | None:
    store = story.write()
    if degraded:
        journal = (store.folder / FILE_NAME).read_text()
        (store.folder / FILE_NAME).write_text(journal.replace('"degrade": null', '"degrade": {"noise": 0.2}'))
    record = replay(store.folder)
    winner = record.ranked()[0] if record.ranked() else None
    return Gallery(store, record, winner).content()


def with_pictures(folder: Path, num_trials: int = 2, degraded: bool = False) -> Story:
    story = Story(folder)
    story.add("suggest", trial=0, params={}, kind="baseline")
    story.report(0, 0, 18.0, story.picture(0, 0, degraded))
    story.end(0, "finished")
    for number in range(1, num_trials + 1):
        story.add("suggest", trial=number, params=story.params(), kind="sampled")
        for step in (30, 60, 90):
            story.report(number, step, 19.0 + number, story.picture(number, step, degraded))
        story.end(number, "finished")
    return story


def strip(url: str) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("L")).reshape(12, 16, 16)


def test_samples_are_those_of_the_stored_picture(tmp_path: Path) -> None:
    found = gallery(with_pictures(tmp_path / "s"))
    assert found is not None
    assert (found["count"], found["height"], found["width"], found["whole"]) == (12, 16, 16, False)
    assert "input" not in found
    with Image.open(tmp_path / "s/trials/0002/images/step-00000090.png") as stored:
        grid = np.asarray(stored)[::6, ::6]
    assert (strip(found["target"])[0] == grid[:16, :16]).all()
    assert (strip(found["trials"]["2"][90])[1] == grid[:16, 64:80]).all(), "the second sample is beside the first"
    assert found["winner"] == 2


def test_a_degraded_input_has_its_target_in_the_third_cell(tmp_path: Path) -> None:
    found = gallery(with_pictures(tmp_path / "s", degraded=True), degraded=True)
    assert found is not None
    assert not (strip(found["target"]) == strip(found["input"])).all()


@pytest.mark.parametrize(
    ("data", "cells", "target"),
    [
        ({"source": "digits"}, 3, 0),
        ({"source": "pairs"}, 4, 2),
        ({"source": "digit_edges"}, 4, 2),
        ({"source": "digit_domains"}, 4, 3),
        ({"source": "unpaired", "val_paired": False}, 3, None),
        ({"source": "unpaired", "val_paired": True}, 4, 3),
    ],
)
def test_the_data_tell_the_cells_of_a_sample(data: dict[str, Any], cells: int, target: int | None) -> None:
    record = SearchRecord(search={"finetune": {"data": data | {"resolution": 96}}})
    layout = Layout.of(record)
    assert layout is not None
    assert layout.target == target
    picture = np.repeat(np.arange(2 * cells, dtype=np.uint8), 96)[None, :, None].repeat(6 * 96, 0).repeat(3, 2)
    found = layout.cells(picture)
    assert found is not None
    assert found.shape == (12, cells, 96, 96, 3)
    assert found[:2, :, 0, 0, 0].ravel().tolist() == list(range(2 * cells))


def test_the_winner_has_its_steps_and_the_others_their_last(tmp_path: Path) -> None:
    found = gallery(with_pictures(tmp_path / "s", 4))
    assert found is not None
    assert {number: sorted(steps) for number, steps in found["trials"].items()} == {
        "0": [0],
        "1": [30, 60, 90],
        "2": [90],
        "3": [90],
        "4": [30, 60, 90],
    }


def test_pictures_stop_at_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 10)
    found = gallery(with_pictures(tmp_path / "s", 4))
    assert found is not None
    assert list(found["trials"]) == ["0"]


def test_another_layout_is_shown_as_it_is(tmp_path: Path) -> None:
    story = with_pictures(tmp_path / "s")
    for path in (tmp_path / "s/trials").rglob("*.png"):
        Image.new("L", (50, 40), 99).save(path)
    found = gallery(story)
    assert found is not None
    assert (found["whole"], found["count"], found["width"]) == (True, 1, 50)


def test_missing_and_damaged_pictures_are_left_out(tmp_path: Path) -> None:
    story = with_pictures(tmp_path / "s")
    first, *others = sorted((tmp_path / "s/trials").rglob("*.png"))
    first.write_bytes(first.read_bytes()[:80])
    for path in others:
        path.unlink()
    assert gallery(story) is None


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    story = with_pictures(tmp_path / "s")
    secret = tmp_path / "secret.png"
    Image.new("L", (576, 576), 1).save(secret)
    for path in (tmp_path / "s/trials").rglob("*.png"):
        path.unlink()
        path.symlink_to(secret)
    assert gallery(story) is None
