"""Whether tuning helped: a trial against the untuned model, the constraints, and the noise of a run."""

import math
from collections.abc import Iterator, Mapping

from ftae.results.confirmation import chosen_by_mean, confirmed
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.finetune.metrics import in_unit, is_held_out, known_facts, unit_of
from ftae.wording import listed

# A kernel distance to training images of so small a share of that to held-out ones, and so far below it, says that a
# generator memorises. Of digits: 0.24 and 0.50 after training on 40 images, 0.30 and 0.33 after training on 700.
MEMORISED_SHARE, MEMORISED_GAP = 0.7, 0.05

# ------------------------------------------------------------------------------------------------- noise


def within_noise(record: SearchRecord) -> list[int]:
    """The best trial and those that may be as good, best first; an empty list where there are no others.

    ``record.noise`` is the standard deviation of one run. The difference of two runs has that times the square root of
    2, and a trial that is behind the best by less counts as within noise. With constraints, all of them keep them.
    """
    ranked = [trial for trial in record.ranked() if record.is_feasible(trial)]
    if record.noise is None or len(record.objective.goals) > 1 or not ranked:
        return []
    least = record.noise * math.sqrt(2.0)
    values = {trial.number: record.objective.point(trial.metrics)[0] for trial in ranked}
    best = values[ranked[0].number]
    near = [number for number, value in values.items() if value == best or best - value < least]
    return near if len(near) > 1 else []


def notes(record: SearchRecord) -> list[str]:
    """What the leaderboard cannot show, a line each: ``within_noise``, the best mean over seeds, by what the metrics of
    the best trial are read, ``doubts``, and why there is no baseline."""
    lines, metric = [], record.objective.first.metric
    if (near := within_noise(record)) and record.noise is not None:
        unit = f" {unit_of(metric)}".rstrip()
        lines.append(
            f"trials {listed(near)} are within noise of each other: the standard deviation of a run is "
            f"at most {record.noise:.2g}{unit} of {metric}"
        )
    if (best := chosen_by_mean(record)) is not None:
        seeds = confirmed(record)[best.number]
        lines.append(
            "; ".join([f"trial {best.number} has the best mean: {seeds.description(metric)}", *seeds.faults()])
        )
    lines += [*_read_by(record), *doubts(record)]
    return [*lines, *([] if (reason := unmeasured(record)) is None else [f"the baseline {reason}"])]


def _read_by(record: SearchRecord) -> Iterator[str]:
    """The metrics of the leaderboard beside their floor and their value for training images, of the best trial."""
    for trial in record.ranked()[:1]:
        for name in record.objective.shown_metrics:
            ends = () if (facts := known_facts(name)) is None else facts.beside
            beside = [other for end in ends if (other := f"{name}_{end}") in trial.metrics]
            if beside:
                values = [f"{each} {in_unit(trial.metrics[each], each)}" for each in (name, *beside)]
                yield f"{trial.name}: {', '.join(values)}"


def doubts(record: SearchRecord) -> list[str]:
    """What the metrics of the best trial say against it, whatever its objective, a line each."""
    return [
        f"{trial.name}: {doubt}"
        for trial in record.ranked()[:1]
        for doubt in (*_of_single_metrics(trial.metrics), *_nearer_to_training(trial.metrics))
    ]


def _of_single_metrics(metrics: Mapping[str, float]) -> Iterator[str]:
    for name, value in metrics.items():
        facts = known_facts(name) if is_held_out(name) else None
        if facts is not None and (doubt := facts.why_doubtful(value)) is not None:
            yield f"{doubt} ({name} is {in_unit(value, name)})"


def _nearer_to_training(metrics: Mapping[str, float]) -> Iterator[str]:
    """A generator that knows its training images by heart makes images much nearer to them than to held-out ones."""
    kid, of_train = metrics.get("val/kid"), metrics.get("val/kid_train")
    if kid is not None and of_train is not None and of_train < MEMORISED_SHARE * kid and kid - of_train > MEMORISED_GAP:
        yield (
            f"its images are nearer to those of training than to held-out ones, as of a generator that memorises "
            f"(val/kid_train is {of_train:.4g}, val/kid {kid:.4g})"
        )


# --------------------------------------------------------------------------------------------- the untuned model


def unmeasured(record: SearchRecord) -> str | None:
    """Why the untuned model has no metrics yet, to complete "the baseline ..."; None if it has, or did not begin."""
    untuned = record.trials.get(0)
    if untuned is None or untuned.status == "finished":
        return None
    if untuned.status == "running":
        return "is running" if record.close is None else "is unfinished"
    return f"{untuned.status}: {untuned.reason}" if untuned.reason else untuned.status


def beats_baseline(record: SearchRecord, trial: TrialRecord) -> bool | None:
    """Whether tuning helped: the trial keeps the constraints, and the untuned model either does not, or is worse in
    the objective (of several metrics, in at least one). None if one of the two was not measured.

    The objective of a confirmed trial is its mean over seeds. See ``is_within_noise`` for gains that may be luck.
    """
    untuned = record.baseline
    if untuned is None or not untuned.reports or not trial.reports:
        return None
    if not record.is_feasible(trial):
        return False
    return not record.is_feasible(untuned) or any(gain > 0.0 for gain in _gains(record, trial, untuned).values())


def is_within_noise(record: SearchRecord, trial: TrialRecord) -> bool:
    """Whether a trial beats the untuned model by no more than one standard deviation of a run (of several metrics, in
    none by more). The untuned model is not trained, and has no noise of its own.

    A model that keeps the constraints gains by that, where the untuned model does not. False without an estimate.
    """
    untuned = record.baseline
    if not beats_baseline(record, trial) or untuned is None or not record.is_feasible(untuned):
        return False
    noise = noise_of(record, trial)
    return bool(noise) and all(
        gain <= noise.get(metric, 0.0) for metric, gain in _gains(record, trial, untuned).items()
    )


def noise_of(record: SearchRecord, trial: TrialRecord) -> dict[str, float]:
    """The standard deviation of a run of a trial, by the metrics of the objective: measured over its seeds, or what the
    model of the curves takes for an upper bound. Empty where it is not known.
    """
    goals = [goal.metric for goal in record.objective.goals]
    if (seeds := confirmed(record).get(trial.number)) is not None:
        measured = {metric: sd for metric in goals if (sd := seeds.sd_of(metric)) is not None}
        if measured:
            return measured
    return {} if record.noise is None or len(goals) > 1 else {goals[0]: record.noise}


def needs_warning(record: SearchRecord, trial: TrialRecord) -> bool:
    """Whether a trial misses constraints, or does not beat the untuned model by more than noise."""
    beaten = beats_baseline(record, trial)
    return record.is_feasible(trial) is False or beaten is False or is_within_noise(record, trial)


def _gains(record: SearchRecord, trial: TrialRecord, untuned: TrialRecord) -> dict[str, float]:
    """By how much a trial is better than the untuned model, by the metrics of the objective."""
    return {
        goal.metric: goal.sign * (_value(record, trial, goal.metric) - untuned.metrics[goal.metric])
        for goal in record.objective.goals
    }


def _value(record: SearchRecord, trial: TrialRecord, metric: str) -> float:
    """A metric of a trial, the mean over seeds where it is confirmed."""
    seeds = confirmed(record).get(trial.number)
    return trial.metrics[metric] if seeds is None else seeds.mean_of(metric)


# ----------------------------------------------------------------------------------------------- in words


def verdict(record: SearchRecord, trial: TrialRecord) -> str:
    """Compare a trial with the constraints, the untuned model and the noise, in a sentence or two."""
    text = _comparison(record, trial)
    return f"WARNING: {text}" if needs_warning(record, trial) else text


def _comparison(record: SearchRecord, trial: TrialRecord) -> str:
    objective, untuned = record.objective, record.baseline
    changes = "; ".join(_change(record, goal.metric, trial, untuned) for goal in objective.goals)
    if (seeds := confirmed(record).get(trial.number)) is not None:
        changes = "; ".join([changes, *seeds.faults()])
    missed = objective.missed(trial.metrics) if trial.reports else []
    if missed and not any(record.is_feasible(t) for t in record.ranked()):
        return f"no trial keeps the constraints. This one misses {', '.join(missed)}. {changes}."
    if missed:
        return f"this trial misses {', '.join(missed)}. {changes}."
    if untuned is None or not untuned.reports or not trial.reports:
        reason = unmeasured(record)
        return f"{changes}; the baseline {f'was not measured: it {reason}' if reason else 'was not measured.'}"
    if not beats_baseline(record, trial):
        return f"the untuned model was not beaten. {changes}. Use the model as it was."
    if is_within_noise(record, trial):
        noise = ", ".join(f"{sd:.2g}" for sd in noise_of(record, trial).values())
        return f"{changes}, which is within noise ({noise}): not a gain"
    missed = objective.missed(untuned.metrics)
    return f"{changes}. The untuned model misses {', '.join(missed)}" if missed else changes


def _change(record: SearchRecord, metric: str, trial: TrialRecord, untuned: TrialRecord | None) -> str:
    seeds = confirmed(record).get(trial.number)
    if untuned is None or not untuned.reports or not trial.reports:
        return f"{metric} {trial.metrics.get(metric) if seeds is None else seeds.description(metric)}"
    before, after = untuned.metrics[metric], _value(record, trial, metric)
    now = f"{after:.4f}" if seeds is None else seeds.description(metric)
    return f"{metric} {before:.4f} -> {now} ({after - before:+.4f})"
