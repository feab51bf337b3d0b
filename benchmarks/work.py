"""How much of a search was training and evaluating: what was done, by each side's files, times what it takes alone.

Search efficiency = (steps x a bare step + images evaluated x a bare evaluation of one) / (workers x wall clock).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ftae.results.replay import replay


@dataclass(frozen=True)
class Work:
    """What the trials of a search did.

    ``evaluations``: one for each step that a trial reports, and one of the untuned model, which is the same for all
    trials; ``repeated`` are those of it beyond the first, of a side that evaluates it in every trial. Steps and
    evaluations that a lost worker's trial did twice count once. ``best``: the objective's best value at the full
    budget, None where no trial came so far. ``stopped``: trials that did not.
    """

    steps: int
    evaluations: int
    repeated: int
    trials: int
    stopped: int
    best: float | None

    def seconds(self, step: float, image: float, num_images: int) -> float:
        """Of one worker that does nothing else, where a step and the evaluation of an image take so long."""
        return self.steps * step + self.evaluations * num_images * image


def efficiency(work_seconds: float, workers: int, wall: float) -> float:
    """The share of the workers' time that the work alone would have taken."""
    return work_seconds / (workers * wall)


def done_by_ftae(folder: Path, max_steps: int) -> Work:
    """From the journal of a search."""
    reported: list[dict[int, float]] = []
    untuned = 0
    for trial in replay(folder).trials.values():
        values = {report["step"]: report["value"] for report in trial.reports}
        untuned += 0 in values
        if trial.kind != "baseline":
            reported.append({step: value for step, value in values.items() if step > 0})
    return _work(reported, max_steps, untuned)


def done_by_tune(folder: Path, max_steps: int) -> Work:
    """From the ``result.json`` of each trial in a folder of Tune's."""
    reported = []
    for file in sorted(folder.glob("*/result.json")):
        results = [json.loads(line) for line in file.read_text().splitlines()]
        reported.append({result["step"]: result["val_psnr"] for result in results})
    return _work(reported, max_steps, untuned=0)


def _work(reported: list[dict[int, float]], max_steps: int, untuned: int) -> Work:
    """Of what each tuned trial reported, by step; ``untuned`` trials reported the untuned model."""
    full = [values[max_steps] for values in reported if max_steps in values]
    return Work(
        steps=sum(max(values, default=0) for values in reported),
        evaluations=sum(len(values) for values in reported) + min(untuned, 1),
        repeated=max(untuned - 1, 0),
        trials=len(reported),
        stopped=len(reported) - len(full),
        best=max(full, default=None),
    )
