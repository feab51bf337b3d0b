"""What the driver refuses before Ray is started."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import search_spec
from PIL import Image

from ftae.errors import FtaeError
from ftae.results.replay import find_existing_search
from ftae.results.search_record import SearchRecord
from ftae.search import driver
from ftae.search.driver import run_search
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore
from ftae.storage.journal import FILE_NAME
from ftae.storage.store import open_store

pytestmark = pytest.mark.usefixtures("ray_session")

BASE: dict[str, Any] = {
    "name": "made-up",
    "finetune.data": {"source": "digits", "resolution": 16},
    "finetune.optimizer": {"lr": 1e-3},
    "finetune.num_evals": 3,
    "finetune.metrics": ["psnr", "ssim"],
    "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}},
    "search": {"num_trials": 4},
}


def spec(storage: Path, **changes: Any) -> SearchSpec:
    """``changes``: values by path, ``__`` in place of its first dots."""
    changes = {path.replace("__", "."): value for path, value in changes.items()}
    return search_spec(**BASE | {"search.storage": str(storage)} | changes)


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    """The storage of a search that was interrupted after one trial."""
    search = spec(tmp_path)
    (tmp_path / search.name).mkdir()
    state = SearchState(search, FolderStore(tmp_path / search.name))
    for number in (0, 1, 2):
        state.next_trial()
        if number < 2:
            state.end(number, "failed")
    state.close("interrupted", "stopped by the user")
    return tmp_path


def test_an_existing_search_is_not_started_again(existing: Path) -> None:
    before = (existing / "made-up" / FILE_NAME).read_bytes()
    with pytest.raises(FtaeError) as refusal:
        run_search(spec(existing))
    assert str(refusal.value) == (
        f"{existing}/made-up holds a search already (1 of 4 trials done). "
        "Continue it with --resume, or give the new one another name (--set name=...)"
    )
    assert (existing / "made-up" / FILE_NAME).read_bytes() == before


def test_a_search_that_does_not_exist_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=r"nothing to resume in .*/made-up; start the search without --resume"):
        run_search(spec(tmp_path), resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"finetune__max_steps": 24}, "finetune"),
        ({"finetune__seed": 1}, "finetune"),
        ({"search_space__optimizer.lr": {"low": 1e-4, "high": 0.5, "log": True}}, "search_space"),
        ({"search_space__batch_size": {"low": 4, "high": 8}}, "search_space"),
        ({"objective__metric": "val/ssim"}, "objective"),
        ({"search__sampler": "random"}, "search.sampler"),
        ({"search__seed": 1}, "search.seed"),
        ({"search__scheduler": {"name": "fifo"}}, "search.scheduler"),
        ({"search__resources": {"cpus": 2}}, "finetune.num_threads (by search.resources)"),
        (
            {"search__scheduler": {"name": "asha", "reduction_factor": 4}, "search__seed": 2},
            "search.scheduler, search.seed",
        ),
    ],
)
def test_a_search_with_other_results_is_not_resumed(existing: Path, change: dict[str, Any], named: str) -> None:
    before = (existing / "made-up" / FILE_NAME).read_bytes()
    with pytest.raises(FtaeError, match="comparable with those of the search to resume: ") as refusal:
        run_search(spec(existing, **change), resume=True)
    assert f": {named} differ." in str(refusal.value)
    assert (existing / "made-up" / FILE_NAME).read_bytes() == before


def test_settings_without_influence_on_results_may_change(existing: Path) -> None:
    changed = spec(
        existing,
        search__num_trials=40,
        search__max_hours=0.5,
        search__max_concurrent=2,
        search__resources={"cpus": 1.5},
        search__keep_checkpoints=1,
        search__max_failures=0,
        finetune__frozen_cache_gb=0.5,
        tracking__uri="http://another:5000",
        tracking__experiment="another",
    )
    before = find_existing_search(changed, resume=True)
    assert before is not None
    driver._check_comparable(before, changed, before.facts)


def test_every_setting_either_may_change_or_decides_results() -> None:
    settings = SearchSpec.model_fields["search"].annotation.model_fields  # type: ignore[union-attr]
    assert set(settings) == {*driver.MAY_CHANGE, "sampler", "scheduler", "seed", "warm_start"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"finetune__freeze_depth": 1, "search_space__freeze_depth": {"low": 0, "high": 30}},
            r"search_space\.freeze_depth: with 30: .*stages",
        ),
        ({"finetune__data": {"source": "image_folder", "train": "no/such/folder", "resolution": 16}}, "no/such/folder"),
        ({"finetune__freeze": ["no_such_stage"]}, "no_such_stage"),
        ({"finetune__model": {"family": "conv_vae", "pretrained": "no/such/model"}}, "no/such/model"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_starts(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(FtaeError, match=message):
        run_search(spec(tmp_path, **change))
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FtaeError, match=r"search\.storage: cannot make the folder .*/file/made-up"):
        run_search(spec(tmp_path / "file"))


def test_a_journal_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "made-up").mkdir()
    journal = tmp_path / "made-up" / FILE_NAME
    journal.write_text("no JSON at all\n" + json.dumps({"event": "close"}) + "\n")
    for resume in (False, True):
        with pytest.raises(FtaeError, match="is damaged"):
            run_search(spec(tmp_path), resume=resume)
    assert journal.read_text().startswith("no JSON at all")


def test_a_refused_driver_leaves_the_mirror_of_the_running_one_alone(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path))
    search = spec(Path("unused"), search__storage=bucket, tracking__uri="http://127.0.0.1:9")
    state = SearchState(search, open_store(bucket, search.name, "driver"))
    state.next_trial()
    with state.writer.journal.path.open("ab") as file:
        file.write(b"half a line")
    before = state.writer.journal.path.read_bytes()
    with pytest.raises(FtaeError, match=f"^{bucket}/made-up holds a search already"):
        run_search(search)
    with pytest.raises(FtaeError, match="is being run by another ftae process"):
        run_search(search, resume=True)
    assert state.writer.journal.path.read_bytes() == before


def test_a_search_is_not_resumed_with_other_images_or_weights(tmp_path: Path) -> None:
    search = spec(tmp_path)
    found = {"dataset_fingerprint": "a", "pretrained_digest": None}
    record = SearchRecord(search.model_dump(mode="json"), found)
    driver._check_comparable(record, search, found)
    with pytest.raises(FtaeError, match="to resume: dataset fingerprint differ"):
        driver._check_comparable(record, search, found | {"dataset_fingerprint": "b"})
    with pytest.raises(FtaeError, match="to resume: pretrained digest differ"):
        driver._check_comparable(record, search, found | {"pretrained_digest": "c"})


def test_skipped_images_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "FLUSH_SECONDS", 0.1)  # for a tracking server that is not there
    for i in range(4):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.new("L", (16, 16), 60 * i).save(tmp_path / "d" / f"{i}.png")
    (tmp_path / "d" / "x.heic").touch()
    (tmp_path / "d" / "dead.png").symlink_to("/nowhere")
    data = {"source": "image_folder", "train": str(tmp_path / "d"), "resolution": 16}

    def no_further(*given: Any, **settings: Any) -> None:
        raise FtaeError("so far and no further")

    monkeypatch.setattr(driver, "preflight", no_further)
    with pytest.raises(FtaeError, match="so far and no further"):
        driver.drive(
            spec(tmp_path / "searches", finetune__data=data, tracking={"uri": "http://127.0.0.1:9"}),
            False,
            is_local=True,
        )
    messages = capsys.readouterr().err
    assert f"1 image cannot be read and is skipped: {tmp_path / 'd'}/dead.png: a link to nothing" in messages
    assert f"{tmp_path / 'd'}: 1 file of other kinds left out: .heic 1" in messages
