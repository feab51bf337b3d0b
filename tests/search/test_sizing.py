"""What a search takes of its storage, against what real runs leave there."""

from pathlib import Path
from typing import Any

import pytest

from ftae.engine.sizing.summary import summarize
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError
from ftae.search.sizing import Space, check_quota, space_needed
from ftae.specs import SearchSpec


def search(uri: str | None = "http://there:5000", **settings: Any) -> SearchSpec:
    return SearchSpec.model_validate(
        {
            "name": "made-up",
            "finetune": {
                "model": {"family": "conv_vae", "channels": 32, "depth": 1, "latent_dim": 16},
                "data": {"source": "digits", "resolution": 16},
                "losses": {"mse": 1.0},
                "optimizer": {"lr": 1e-3},
                "max_steps": 12,
                "num_evals": 4,
                "metrics": ["psnr"],
            },
            "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            "objective": {"metric": "val/psnr", "direction": "maximize"},
            "search": settings,
            "tracking": {"uri": uri},
        }
    )


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_takes_what_was_reckoned(tmp_path: Path) -> None:
    spec = search(num_trials=1, keep_checkpoints=1)
    checkpoint = summarize(spec.finetune, None).checkpoint_bytes
    for _ in finetune(spec.finetune, tmp_path):
        pass
    running = space_needed(spec, checkpoint).per_running_trial
    # One more is there while it is written.
    assert running * 2 / 3 == pytest.approx(bytes_in(tmp_path / "checkpoints"), rel=0.15)
    pictures = space_needed(spec, 0).lasting / 2  # of the untuned model there is one, but it is counted as a trial
    assert bytes_in(tmp_path / "images") < pictures


def test_the_embedded_store_holds_copies() -> None:
    apart, beside = space_needed(search(), 1000), space_needed(search(uri=None), 1000)
    pictures = apart.lasting - 3 * 1000
    assert beside == Space(4 * 1000 + 2 * pictures, apart.per_running_trial)
    assert apart.total(4) == apart.lasting + 4 * 3 * 1000


def test_the_quota_names_both_numbers() -> None:
    check_quota(search(), 10**15)
    check_quota(search(max_storage_gb=2), 2_000_000_000)
    with pytest.raises(FtaeError) as refusal:
        check_quota(search(max_storage_gb=2), 2_100_000_000)
    assert str(refusal.value) == (
        "search.max_storage_gb: 2 GB are allowed, the search takes about 2.1 GB. Allow more, or lower "
        "search.keep_checkpoints, search.max_concurrent, search.num_trials or finetune.num_evals"
    )
