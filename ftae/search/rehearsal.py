"""A few steps of the file's own configuration, made before the first trial by the worker that will run it."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ftae.engine.estimate import Probe
from ftae.errors import FtaeError, Reason
from ftae.units import duration

REHEARSAL, WARM_UP = -1, -2  # in the place of a trial's number
SILENT_SECONDS = 10.0  # of waiting without a word
SAY_SECONDS = 60.0
WHAT_TO_DO: dict[str, str] = {
    Reason.OUT_OF_MEMORY: "lower finetune.batch_size (grad_accumulation keeps the images of a step), set "
    "finetune.precision to bf16, or let fewer trials share a GPU (search.resources.gpus)",
    Reason.NON_FINITE_LOSS: "lower finetune.optimizer.lr, or set finetune.precision to fp32",
    Reason.NON_FINITE_GRADIENT: "lower finetune.optimizer.lr, set finetune.max_grad_norm, "
    "or finetune.precision to fp32",
    Reason.POSTERIOR_COLLAPSE: "lower finetune.losses.kl",
    Reason.CODEBOOK_COLLAPSE: "lower finetune.optimizer.lr",
    Reason.BLOW_UP: "lower finetune.discriminator.lr and its r1 and lecam, or finetune.losses.adversarial",
}


class Rehearsal:
    """The driver's side of it. No trial starts before it is over.

    ``accept`` is given what was measured, ``say`` told while that takes long. ``others``: how many workers warm up
    meanwhile.
    """

    def __init__(self, accept: Callable[[Probe], None], say: Callable[[str], None], others: int = 0) -> None:
        self._accept, self._say, self._others = accept, say, others
        self._begun: float | None = None
        self._patience = SILENT_SECONDS
        self.is_over = False

    def assign(self) -> dict[str, Any] | None:
        """What to hand out instead of a trial: the rehearsal to one worker, a warm-up to the others."""
        if self._begun is None:
            self._begun = time.monotonic()
            return {"number": REHEARSAL}
        if self.is_over or self._others == 0:
            return None
        self._others -= 1
        return {"number": WARM_UP}

    def take(self, message: Mapping[str, Any]) -> None:
        """What the worker found.

        Raises:
            FtaeError: the step failed: why, and what to do; or what ``accept`` raises.
        """
        if "refused" in message:
            raise _failed(message["refused"])
        self.is_over = True
        self._accept(Probe(**message["probe"]))

    def lost(self, why: str) -> NoReturn:
        """Its worker is gone.

        Raises:
            FtaeError: always; a worker that dies in it would die in a trial, too.
        """
        raise _failed(f"its worker was lost ({why}); {WHAT_TO_DO[Reason.OUT_OF_MEMORY]}")

    def remind(self) -> None:
        """Say that it is waited for, now and then."""
        if self._begun is None or self.is_over:
            return
        waited = time.monotonic() - self._begun
        if waited > self._patience:
            doing = "a worker tries a step of the file's own configuration, or waits for room"
            self._say(f"preflight: {doing}, {duration(waited)} so far")
            self._patience = waited + SAY_SECONDS


def _failed(why: str) -> FtaeError:
    return FtaeError(f"a step of the file's own configuration was tried and failed: {why}")
