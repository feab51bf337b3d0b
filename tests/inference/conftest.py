"""Models that were really trained, if only for a moment: a search of them, its export, a production run."""

from pathlib import Path

import numpy as np
import pytest
from builders import small_search
from PIL import Image
from production_runs import untracked

from ftae.engine.data.dataset import load_dataset
from ftae.engine.training.loop import finetune
from ftae.inference.model import TunedModel, load_model
from ftae.inference.source import find_model
from ftae.results.export import export
from ftae.search.production import train
from ftae.search.provenance import provenance
from ftae.search.state import SearchState
from ftae.storage.backends import FolderStore

SEARCH = small_search()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``searches/small``, its ``exports/small``, and ``runs/digits``."""
    home = tmp_path_factory.mktemp("tuned")
    folder = home / "searches" / "small"
    folder.mkdir(parents=True)
    state = SearchState(SEARCH, FolderStore(folder), provenance(SEARCH, load_dataset(SEARCH.finetune.data)))
    while (trial := state.next_trial()) is not None:
        for report in finetune(SEARCH.trial_spec(trial.params), folder / "trials" / f"{trial.number:04d}"):
            if not state.report(trial.number, report):
                break
    state.close("complete")
    export(FolderStore(folder), home / "exports" / "small")
    train(
        untracked("digits", SEARCH.finetune),
        home / "runs" / "digits",
        storage=home / "searches",
        notify=lambda line: None,
    )
    return home


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve RGB pictures of 20x24 pixels in two class folders, one file that is none, names out of the way."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(12):
        path = folder / ("3" if i % 2 else "7") / f"picture {i:02d}: as taken.png"
        path.parent.mkdir(exist_ok=True)
        smooth = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((4, 4, 1)))
        Image.fromarray(smooth.astype(np.uint8)).save(path)
    (folder / "3" / "picture 99: broken.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="session")
def model(home: Path) -> TunedModel:
    return load_model(find_model(str(home / "runs/digits"), "searches", notify=lambda line: None))
