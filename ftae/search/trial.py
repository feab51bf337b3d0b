"""What runs in a worker: one trial, a thin wrapper of the engine's generator."""

import gc
import json
from pathlib import Path
from typing import Any

import torch
from ray import tune

from ftae.engine.checkpoint import latest_checkpoint
from ftae.engine.loop import finetune
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.search import SearchSpec


def run_trial(config: dict[str, Any], *, search: dict[str, Any], folder: str) -> None:
    """Tune's function trainable. ``config``: number, kind and params of the trial.

    Everything a report names is on disk before it is reported, since Tune may end the function inside
    any report. Faults of the params, of the user and of the storage are said, not raised: only a fault
    of the machine may raise, and the trial is tried again.
    """
    workdir = Path(folder) / "trials" / f"{config['number']:04d}"
    _free_memory()
    try:
        spec = SearchSpec.model_validate(search).trial_spec(config["params"])
        resume_from = latest_checkpoint(workdir)
        for report in finetune(spec, workdir, resume_from=resume_from):
            _say({"report": vars(report)})
    except TrainingFailed as failure:
        _say({"diverged": str(failure)})
    except FtaeError as error:
        _say({"failed": str(error)})
    except OSError as error:
        _say({"storage": f"trial {config['number']} cannot use its files: {error}"})


def _say(message: dict[str, Any]) -> None:
    # As JSON: Tune flattens nested results with the "/" that metric names contain.
    tune.report({"message": json.dumps(message)})


def _free_memory() -> None:
    """A reused worker still holds what the trial before it left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
