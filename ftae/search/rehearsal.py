"""A few steps of the file's own configuration, made on a worker before the first trial."""

import platform
from typing import Any

from ftae.engine.probe import Probe, probe
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.search import SearchSpec

WHAT_TO_DO = {
    "out of memory": "lower finetune.batch_size (grad_accumulation keeps the images of a step), set "
    "finetune.precision to bf16, or let fewer trials share a GPU (search.resources.gpus)",
    "non-finite loss": "lower finetune.optimizer.lr, or set finetune.precision to fp32",
    "non-finite gradient": "lower finetune.optimizer.lr, set finetune.max_grad_norm, or finetune.precision to fp32",
}


def try_step(search: dict[str, Any], fingerprint: str) -> Probe | str:
    """What one of a trial's workers takes for its share of the file's own configuration; or why it cannot be run."""
    spec = SearchSpec.model_validate(search)
    run = spec.trial_spec({})
    data = run.data.model_copy(update={"fingerprint": fingerprint})
    batch_size = run.batch_size // spec.search.resources.workers
    try:
        return probe(run.model_copy(update={"data": data, "batch_size": batch_size}))
    except TrainingFailed as failure:
        what_to_do = WHAT_TO_DO[failure.reason]
        if failure.step == 0 and failure.reason == "non-finite loss":  # of the model as it was given
            weights = run.model.pretrained
            what_to_do = f"look at the weights (finetune.model.pretrained: {weights}), or set precision to fp32"
        return f"on {platform.node()}: {failure}; {what_to_do}"
    except (FtaeError, OSError) as error:
        return f"on {platform.node()}: {error}"
