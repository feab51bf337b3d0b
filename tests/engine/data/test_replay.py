"""Replay: what a batch contains, what is measured on the replayed domain, and which images are pinned."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from PIL import Image

from ftae.engine.data.batches import Batch, train_batch, training_batch
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.data.source_base import ImageSet
from ftae.engine.data.stored_parts import ImagesChanged
from ftae.engine.training.evaluator import evaluate_all
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.finetune.sources.builtin import Digits
from ftae.specs.finetune.sources.folders import ImageFolder


def data(share: float, own: dict[str, Any] | None = None, **source: Any) -> Digits:
    replay = {"source": "digits", "share": share, "classes": [0, 1, 2], **source}
    fields = {"source": "digits", "resolution": 16, "classes": [5, 6], "shift": "invert", "replay": replay}
    return Digits.model_validate(fields | (own or {}))


def drawn(spec: Digits, batch: int = 3, batch_size: int = 8, seed: int = 1, rows: slice = slice(None)) -> Batch:
    return training_batch(
        load_dataset(spec), spec, batch_size=batch_size, batch=batch, seed=seed, device="cpu", rows=rows
    )


def known(batch: torch.Tensor, images: ImageSet) -> list[bool]:
    pixels = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    those = {image.tobytes() for image in images.images}
    return [image.tobytes() in those for image in pixels]


# -------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.05, 0), (0.25, 2), (0.5, 4), (0.99, 7)])
def test_a_share_of_every_batch_is_replayed(share: float, count: int) -> None:
    spec = data(share)
    sets = load_dataset(spec)
    assert sets.replay is not None
    for number in range(4):
        batch = drawn(spec, number)
        assert known(batch.images, sets.replay.train) == [False] * (8 - count) + [True] * count
        assert known(batch.images, sets.train) == [True] * (8 - count) + [False] * count


def test_replayed_images_have_no_labels_here() -> None:
    labels = drawn(data(0.25)).labels
    assert labels is not None
    assert labels[:6].ge(0).all()
    assert labels[6:].eq(-1).all()


def test_images_without_labels_stay_without() -> None:
    photos = {"source": "photos", "share": 0.5, "num_patches": 10}
    spec = data(0.0, own={"source": "digits", "replay": photos})
    sets = load_dataset(spec)
    sets = replace(sets, train=replace(sets.train, labels=None))
    batch = training_batch(sets, spec, batch_size=4, batch=0, seed=0, device="cpu")
    assert batch.images.shape == (4, 1, 16, 16)
    assert batch.labels is None


def test_a_batch_is_a_function_of_seed_and_number_and_rows_are_as_in_the_whole() -> None:
    noise = {"degrade": {"noise": 0.2}}
    spec = data(0.4, own={"random_crop_from": 20, "flip": True, **noise}, random_crop_from=18, flip=True, **noise)
    whole = drawn(spec)
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn(spec).inputs.equal(whole.inputs)
    assert not drawn(spec, batch=4).images.equal(whole.images)
    assert not drawn(spec, seed=2).images.equal(whole.images)
    for cuts in ((0, 2, 4, 6, 8), (0, 5, 8), (0, 1, 7, 8)):
        parts = [drawn(spec, rows=slice(a, b)) for a, b in pairwise(cuts)]
        assert torch.cat([part.images for part in parts]).equal(whole.images)
        assert torch.cat([part.inputs for part in parts]).equal(whole.inputs)
        assert torch.cat([part.labels for part in parts]).equal(whole.labels)  # type: ignore[misc, arg-type]


def test_each_domain_goes_through_its_own_epochs() -> None:
    spec = data(0.5)
    sets = load_dataset(spec)
    assert sets.replay is not None
    alone = train_batch(sets.replay.train, spec.replay, batch_size=4, batch=7, seed=1, device="cpu")  # type: ignore[arg-type]
    assert drawn(spec, batch=7).images[4:].equal(alone.images)


def test_only_what_is_degraded_is_degraded() -> None:
    batch = drawn(data(0.5, degrade={"noise": 0.3}))
    assert batch.inputs[:4].equal(batch.images[:4])
    assert not batch.inputs[4:].equal(batch.images[4:])


# --------------------------------------------------------------------------------------- what is measured


def spec_of(share: float = 0.25, **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "data": data(share).model_dump(),
        "losses": {"mse": 1.0, "ce": 0.1},
        "max_steps": 4,
        "metrics": ["psnr", "accuracy", "kl"],
        "num_threads": 1,
    }
    return run_spec(**(fields | changes))


def held_out(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val")}


def test_what_can_be_measured_of_the_source_is(tmp_path: Path) -> None:
    names = {"val/psnr", "val/accuracy", "val/kl", "val_source/psnr", "val_source/kl"}
    for report in finetune(spec_of(), tmp_path):
        assert held_out(report.metrics).keys() == names


def test_the_source_is_measured_as_if_it_were_the_data() -> None:
    source = spec_of().data.replay
    assert source is not None
    alone = spec_of(data=source.model_dump(exclude={"share"}), metrics=["psnr", "kl"], losses={"mse": 1.0})
    expected, _ = evaluate_all(Trainer(alone).eval_sets)
    found, _ = evaluate_all(Trainer(spec_of(losses={"mse": 1.0}, metrics=["psnr", "kl"])).eval_sets)
    assert {n: v for n, v in found.items() if n.startswith("val_source/")} == pytest.approx(
        {n.replace("val/", "val_source/"): v for n, v in expected.items()}, rel=1e-6
    )


def test_a_share_of_nothing_trains_as_without_and_still_measures(tmp_path: Path) -> None:
    with_it = list(finetune(spec_of(0.0), tmp_path / "a"))
    plain = spec_of(data=data(0.0).model_dump(exclude={"replay"}))
    without = list(finetune(plain, tmp_path / "b"))
    for ours, theirs in zip(with_it, without, strict=True):
        assert {n: v for n, v in ours.metrics.items() if not n.startswith("val_source/")} == theirs.metrics
        assert ours.metrics["val_source/psnr"] != ours.metrics["val/psnr"]


def test_a_resumed_run_replays_as_it_would_have(tmp_path: Path) -> None:
    whole = list(finetune(spec_of(), tmp_path / "whole"))
    part = finetune(spec_of(), tmp_path / "part")
    stopped = [next(part), next(part)]
    part.close()
    checkpoint = tmp_path / "part" / str(stopped[-1].checkpoint)
    resumed = list(finetune(spec_of(), tmp_path / "on", resume_from=checkpoint))
    assert [r.metrics for r in resumed] == [r.metrics for r in whole[1:]]


def test_replay_keeps_what_was_known(tmp_path: Path) -> None:
    """A model of dark digits is tuned to bright ones: with replay it forgets less."""
    model = {"family": "conv_vae", "channels": 4, "latent_dim": 8}
    common: dict[str, Any] = {"model": model, "losses": {"mse": 1.0}, "metrics": ["psnr"], "num_evals": 1}
    source = spec_of(data={"source": "digits", "resolution": 16, "classes": [0, 1, 2]}, max_steps=150, **common)
    last = list(finetune(source, tmp_path / "source"))[-1]
    export_model(source, tmp_path / "source" / str(last.checkpoint), tmp_path / "model")
    tuned = {}
    for share in (0.0, 0.5):
        spec = spec_of(share, **{**common, "model": {"family": "conv_vae", "pretrained": str(tmp_path / "model")}})
        spec = spec.model_copy(update={"max_steps": 100})
        tuned[share] = list(finetune(spec, tmp_path / str(share)))
    first = [tuned[share][0].metrics["val_source/psnr"] for share in tuned]
    assert first == pytest.approx([last.metrics["val/psnr"]] * 2, rel=1e-4)
    assert tuned[0.0][-1].metrics["val_source/psnr"] < first[0] - 3.0
    assert tuned[0.5][-1].metrics["val_source/psnr"] > tuned[0.0][-1].metrics["val_source/psnr"] + 3.0


# --------------------------------------------------------------------------------------------- the images


def folder(root: Path, shade: int, count: int = 6) -> str:
    root.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (8, 8), shade + i).save(root / f"{i}.png")
    return str(root)


def folders(own: str, source: str, **fields: Any) -> ImageFolder:
    replay = {"source": "image_folder", "share": 0.5, "train": source, **fields.pop("replay", {})}
    required = {"source": "image_folder", "train": own, "resolution": 8, "color": "grey", "replay": replay}
    return ImageFolder.model_validate(required | fields)


def load(spec: ImageFolder) -> Dataset:
    load_dataset.cache_clear()
    return load_dataset(spec)


def test_both_are_pinned_by_one_fingerprint(tmp_path: Path) -> None:
    spec = folders(folder(tmp_path / "own", 0), folder(tmp_path / "source", 100))
    before = load(spec)
    assert before.replay is not None
    (tmp_path / "source" / "0.png").unlink()
    pinned = spec.model_copy(update={"fingerprint": before.fingerprint})
    again = load(pinned)  # from this machine's cache
    assert again.fingerprint == before.fingerprint
    assert again.replay is not None
    assert len(again.replay.train) + len(again.replay.val) == 6
    assert load(spec).fingerprint != before.fingerprint
    assert load(spec).fingerprint.split("+")[0] == before.fingerprint.split("+")[0]


def test_other_images_than_the_pinned_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = folders(folder(tmp_path / "own", 0), folder(tmp_path / "source", 100))
    pinned = spec.model_copy(update={"fingerprint": load(spec).fingerprint})
    (tmp_path / "source" / "0.png").unlink()
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(ImagesChanged, match=r"the images of .*source are not those"):
        load(pinned)
    load_dataset.cache_clear()


def test_validation_images_of_one_are_not_training_images_of_the_other(tmp_path: Path) -> None:
    own, source, val = folder(tmp_path / "own", 0), folder(tmp_path / "source", 100), folder(tmp_path / "val", 200)
    with pytest.raises(FtaeError, match=r"data\.replay\.train .* and data\.val .* must be separate"):
        load(folders(own, val, val=val))
    with pytest.raises(FtaeError, match=r"data\.train .* and data\.replay\.val .* must be separate"):
        load(folders(own, source, replay={"val": own}))


def test_what_cannot_be_read_is_named_for_both(tmp_path: Path) -> None:
    spec = folders(folder(tmp_path / "own", 0), folder(tmp_path / "source", 100))
    for name in ("own", "source"):
        (tmp_path / name / "broken.png").write_text("no image")
    assert [Path(entry.split(": ")[0]).parent.name for entry in load(spec).skipped] == ["own", "source"]
