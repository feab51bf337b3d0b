"""Confirmations: further runs of the best trials with other seeds, which tell a good configuration from a lucky run."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from ftae.results import ranking
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.search.objective import Goal, Metrics
from ftae.specs.search.settings import Confirm
from ftae.wording import count, plus_minus

NUM_SEEDS = 2**31  # that a run may have


@dataclass(frozen=True)
class Confirmed:
    """A trial that was trained again with other seeds.

    Attributes:
        trial: its number.
        metric: the objective (of several metrics, the first).
        runs: the metrics of each run that came to its end, by seed; those of the trial itself come first.
        num_diverged: how many of the further runs diverged.
        num_missing: how many runs, the trial's own among them, came to their end and miss constraints.
    """

    trial: int
    metric: str
    runs: Mapping[int, Metrics]
    num_diverged: int
    num_missing: int

    @property
    def num_seeds(self) -> int:
        """The runs that came to their end."""
        return len(self.runs)

    @property
    def values(self) -> dict[int, float]:
        """The objective by seed."""
        return {seed: metrics[self.metric] for seed, metrics in self.runs.items()}

    @property
    def mean(self) -> float:
        """The mean of the objective over seeds."""
        return self.mean_of(self.metric)

    @property
    def sd(self) -> float | None:
        """The standard deviation over seeds; None for a single run."""
        return self.sd_of(self.metric)

    def mean_of(self, metric: str) -> float:
        """The mean of a metric over seeds."""
        return fmean(metrics[metric] for metrics in self.runs.values())

    def sd_of(self, metric: str) -> float | None:
        """The standard deviation of a metric over seeds; None for a single run."""
        values = [metrics[metric] for metrics in self.runs.values()]
        return stdev(values) if len(values) > 1 else None

    def description(self, metric: str) -> str:
        """``23.701 ± 0.052 over 4 seeds``."""
        sd, over = self.sd_of(metric), f"over {count(self.num_seeds, 'seed')}"
        mean = self.mean_of(metric)
        return f"{mean:.4f} {over}" if sd is None else f"{plus_minus(mean, sd)} {over}"

    def faults(self) -> list[str]:
        """What went wrong in some of the runs, in a few words each."""
        runs = self.num_seeds + self.num_diverged
        faults = {"diverged": self.num_diverged, "missed constraints": self.num_missing}
        return [f"{number} of {runs} runs {fault}" for fault, number in faults.items() if number]


def confirmed(record: SearchRecord) -> dict[int, Confirmed]:
    """The trials of which a confirmation has finished or diverged, by number, in the order of the ranking."""
    further: dict[int, list[TrialRecord]] = {}
    for run in record.confirmations.values():
        if run.of is not None and run.status in ("finished", "diverged"):
            further.setdefault(run.of, []).append(run)
    return {t.number: _confirmed(record, t, further[t.number]) for t in record.ranked() if t.number in further}


def _confirmed(record: SearchRecord, trial: TrialRecord, further: list[TrialRecord]) -> Confirmed:
    ended = [trial, *(run for run in further if run.status == "finished")]
    return Confirmed(
        trial.number,
        record.objective.first.metric,
        {_seed(record, run): run.metrics for run in ended},
        num_diverged=sum(run.status == "diverged" for run in further),
        num_missing=sum(not record.is_feasible(run) for run in ended),
    )


def chosen_by_mean(record: SearchRecord) -> TrialRecord | None:
    """The confirmed trial with the best mean; None where the first of the ranking is not confirmed.

    Only trials whose checkpoints are kept, the best of the ranking, can be chosen.
    Trials come first of whose runs fewer diverged or missed constraints. Several metrics are ordered as trials are.
    """
    ranked = record.ranked()
    kept = {trial.number for trial in ranked[: record.search["search"].get("keep_checkpoints", len(ranked))]}
    known = {number: found for number, found in confirmed(record).items() if number in kept}
    if not ranked or ranked[0].number not in known:
        return None
    fewest = min(c.num_diverged + c.num_missing for c in known.values())
    points = {
        number: _mean_point(record.objective.goals, c)
        for number, c in known.items()
        if c.num_diverged + c.num_missing == fewest
    }
    return record.trials[ranking.ordered(points)[0]]


def _mean_point(goals: tuple[Goal, ...], trial: Confirmed) -> tuple[float, ...]:
    return tuple(goal.sign * trial.mean_of(goal.metric) for goal in goals)


def missing_confirmations(record: SearchRecord, asked: Confirm) -> list[tuple[TrialRecord, int]]:
    """The confirmations that have not begun, in their order: each the trial that it repeats, and its seed.

    The best ``asked.top`` trials have ``asked.seeds`` further seeds each, which follow their own. All of them get
    their first further seed before any gets its second. A seed that has begun, however it ended, is not begun again.
    """
    begun = {(run.of, run.changes["seed"]) for run in record.confirmations.values()}
    finalists = record.ranked()[: asked.top]
    wanted = (
        (trial, (_seed(record, trial) + further) % NUM_SEEDS)
        for further in range(1, asked.seeds + 1)
        for trial in finalists
    )
    return [(trial, seed) for trial, seed in wanted if (trial.number, seed) not in begun]


def _seed(record: SearchRecord, trial: TrialRecord) -> int:
    return int(trial.settings.get("seed", record.search["finetune"].get("seed", 0)))
