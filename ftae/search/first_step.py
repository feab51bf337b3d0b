"""The worker's side of a rehearsal."""

import platform

from ftae.engine.estimate import Probe
from ftae.engine.probe import probe
from ftae.engine.warm import Warm
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.search.rehearsal import WHAT_TO_DO
from ftae.specs.search import SearchSpec


def try_step(search: SearchSpec, fingerprint: str, warm: Warm | None = None) -> Probe | str:
    """What one of a trial's workers takes for its share of the file's own configuration; or why it cannot be run.

    ``warm``: what the worker keeps for its trials.
    """
    run = search.trial_spec({})
    data = run.data.model_copy(update={"fingerprint": fingerprint})
    batch_size = run.batch_size // search.search.resources.workers
    try:
        return probe(run.model_copy(update={"data": data, "batch_size": batch_size}), warm=warm)
    except TrainingFailed as failure:
        what_to_do = WHAT_TO_DO.get(failure.reason)
        if failure.step == 0 and failure.reason == Reason.NON_FINITE_LOSS:  # of the model as it was given
            weights = run.model.pretrained
            what_to_do = f"look at the weights (finetune.model.pretrained: {weights}), or set precision to fp32"
        return f"on {platform.node()}: {failure}" + (f"; {what_to_do}" if what_to_do else "")
    except (FtaeError, OSError) as error:
        return f"on {platform.node()}: {error}"
