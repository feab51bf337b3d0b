"""A few steps of the file's own configuration, made by one worker before the first trial."""

import platform
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ftae.engine.estimate import Probe
from ftae.engine.probe import probe
from ftae.errors import FtaeError, Reason, TrainingFailed
from ftae.search.survey import reason_of, results
from ftae.specs.search import SearchSpec

ADVICE: dict[str, str] = {
    Reason.OUT_OF_MEMORY: "lower finetune.batch_size (grad_accumulation keeps the images of a step), set "
    "finetune.precision to bf16, or let fewer trials share a GPU (search.resources.gpus)",
    Reason.NON_FINITE_LOSS: "lower finetune.optimizer.lr, or set finetune.precision to fp32",
    Reason.NON_FINITE_GRADIENT: "lower finetune.optimizer.lr, set finetune.max_grad_norm, "
    "or finetune.precision to fp32",
    Reason.POSTERIOR_COLLAPSE: "lower finetune.losses.kl",
    Reason.CODEBOOK_COLLAPSE: "lower finetune.optimizer.lr",
    Reason.BLOW_UP: "lower finetune.discriminator.lr and its r1 and lecam, or finetune.losses.adversarial",
}
LOST = "a worker that is killed is most often short of memory: lower finetune.batch_size or search.max_concurrent"


def rehearse(spec: SearchSpec, fingerprint: str, say: Callable[[str], None]) -> Probe:
    """What a step of the file's own configuration takes of a trial's worker.

    A worker or node that is lost over it costs one of ``search.max_failures``. ``say`` is told of that, and of long
    waits.

    Raises:
        FtaeError: the step fails, or one worker after the other is lost: why, and what to do.
    """
    resources = spec.search.resources
    task = ray.remote(try_step).options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)
    doing = "a worker tries a step of the file's own configuration, or waits for room"
    for left in range(spec.search.max_failures, -1, -1):
        asked = {task.remote(spec.model_dump(mode="json"), fingerprint): None}
        [(_, found)] = results(asked, doing, say)
        if isinstance(found, Probe):
            return found
        if not isinstance(found, RayError):
            raise _failed(found)
        if isinstance(found, RayTaskError):
            raise _failed(reason_of(found))
        if left:
            say(f"preflight: the worker that tried a step was lost ({reason_of(found)}); another one tries it")
    raise _failed(f"its worker was lost ({reason_of(found)}); {LOST}")


def try_step(search: dict[str, Any], fingerprint: str) -> Probe | str:
    """The worker's side: what it took for its share of the configuration; or why that cannot be run."""
    spec = SearchSpec.trusted(search)
    run = spec.trial_spec({})
    data = run.data.model_copy(update={"fingerprint": fingerprint})
    batch_size = run.batch_size // spec.search.resources.workers
    try:
        return probe(run.model_copy(update={"data": data, "batch_size": batch_size}))
    except TrainingFailed as failure:
        advice = ADVICE.get(failure.reason)
        if failure.step == 0 and failure.reason == Reason.NON_FINITE_LOSS:  # of the model as it was given
            advice = (
                f"look at the weights (finetune.model.pretrained: {run.model.pretrained}), or set precision to fp32"
            )
        return f"on {platform.node()}: {failure}" + (f"; {advice}" if advice else "")
    except (FtaeError, OSError) as error:
        return f"on {platform.node()}: {error}"


def _failed(why: str) -> FtaeError:
    return FtaeError(f"a step of the file's own configuration was tried and failed: {why}")
