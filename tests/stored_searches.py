"""A small search file, and searches of it whose trials have ended, written without a training step."""

from pathlib import Path

from builders import eval_report, search_dict

from ftae.results.search_record import SearchRecord
from ftae.search.state import SearchState
from ftae.specs import SearchSpec
from ftae.storage.backends import FolderStore

SEARCH = search_dict(
    **{
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search_space.max_grad_norm": {"choices": [1.0, None]},
        "search": {"num_trials": 3},
    }
)


def make_search(folder: Path, *psnr: float, status: str | None = "complete") -> SearchRecord:
    """A search folder whose trials, the baseline first, ended with these values; the one after them diverged."""
    folder.mkdir(parents=True)
    spec = SearchSpec.model_validate(SEARCH | {"name": folder.name})
    state = SearchState(spec, FolderStore(folder))
    for number, value in enumerate(psnr):
        state.next_trial()
        checkpoint = folder / f"trials/{number:04d}/checkpoints/step-00000012"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        state.report(number, eval_report(12 if number else 0, value, checkpoint="checkpoints/step-00000012"))
    state.next_trial()
    state.end(len(psnr), "diverged", "non-finite loss at step 3")
    if status is not None:
        state.close(status)
    return state.record
