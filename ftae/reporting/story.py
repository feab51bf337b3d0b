"""The texts of a report: the figures at its top, metrics side by side, and facts."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftae.reporting.plots import better_side, with_unit
from ftae.results.conclusion import BY_STATUS, by_state
from ftae.results.confirmation import confirmed
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.results.summary import progress, worker_hours
from ftae.results.verdict import is_within_noise, noise_of, notes
from ftae.specs.finetune.metrics import in_unit, is_held_out
from ftae.wording import done_of_asked, duration, full_trainings, plus_minus


@dataclass(frozen=True)
class Card:
    """A figure that answers a question: ``title``, ``value``, and a line below."""

    title: str
    value: str
    note: str = ""


def cards(record: SearchRecord, winner: TrialRecord | None) -> list[Card]:
    """Baseline, the file's own configuration, the best, their difference, trials and costs."""
    goal, untuned = record.objective.first, record.baseline
    found = [Card("Baseline", _value(untuned, goal.metric), "the model as it was given")]
    if record.kind == "search":
        own = record.trials.get(1)
        found.append(Card("The file's own configuration", _value(own, goal.metric), _state_of(record, own)))
    found.append(Card("Best", _value(winner, goal.metric), _best_note(record, winner)))
    if record.kind == "search":
        found.append(_trials(record))
    return [*found, _cost(record)]


def _value(trial: TrialRecord | None, metric: str) -> str:
    if trial is None or trial.metrics.get(metric) is None:
        return "-"
    return in_unit(trial.metrics[metric], metric)


def _state_of(record: SearchRecord, trial: TrialRecord | None) -> str:
    if trial is None:
        return "not begun"
    state = BY_STATUS.get(trial.status, trial.status)
    return f"{trial.name}, {state}" if trial.status == "finished" else f"{trial.name}, {state} at step {trial.step}"


def _best_note(record: SearchRecord, winner: TrialRecord | None) -> str:
    goal, untuned = record.objective.first, record.baseline
    if winner is None:
        return "no trial has finished"
    parts = [winner.name]
    if untuned is not None and untuned.metrics and winner.metrics:
        gain = winner.metrics[goal.metric] - untuned.metrics[goal.metric]
        parts.append(f"{gain:+.4g} against the baseline")
    seeds = confirmed(record).get(winner.number)
    if seeds is not None and seeds.sd is not None:
        parts.append(f"{plus_minus(seeds.mean, seeds.sd)} over {seeds.num_seeds} seeds")
    elif noise := noise_of(record, winner).get(goal.metric):
        word = "within" if is_within_noise(record, winner) else "beyond"
        parts.append(f"{word} noise (at most {noise:.2g})")
    return ", ".join(parts)


def _trials(record: SearchRecord) -> Card:
    counts = progress(record)
    return Card("Trials", done_of_asked(counts["done"], record.num_trials), by_state(record) or "none yet")


def _cost(record: SearchRecord) -> Card:
    settings = record.search["search"]
    resources = settings.get("resources") or {}
    hours, processes = worker_hours(record), max(1, int(resources.get("workers") or 1))
    gpus, cpus = float(resources.get("gpus") or 0.0), float(resources.get("cpus") or 1.0)
    unit, each = ("GPU", gpus) if gpus else ("CPU", cpus)
    used = full_trainings(record.used_budget, record.budget) if record.kind == "search" else ""
    times = progress(record)
    if times["began"] is not None and times["newest_event"] is not None:
        elapsed = duration(times["newest_event"] - times["began"])
        used = f"{used}{', ' if used else ''}{elapsed} from first to last event"
    return Card(f"{unit} time", duration(3600.0 * hours * each * processes), used)


def metric_rows(record: SearchRecord, winner: TrialRecord | None) -> list[dict[str, str]]:
    """Every held-out metric of baseline, file and best, a row each, and whether it got better."""
    trials = [record.baseline, record.trials.get(1) if record.kind == "search" else None, winner]
    names = dict.fromkeys(name for trial in trials if trial is not None for name in trial.metrics if is_held_out(name))
    return [
        _metric_row(name, *(None if trial is None else trial.metrics.get(name) for trial in trials)) for name in names
    ]


def _metric_row(name: str, untuned: float | None, own: float | None, best: float | None) -> dict[str, str]:
    change, verdict_word = "", ""
    if untuned is not None and best is not None:
        change, better = f"{best - untuned:+.4g}", better_side(name)
        if better is not None and best != untuned:
            verdict_word = "better" if (best > untuned) == (better == "maximize") else "worse"
    texts = ["-" if value is None else f"{value:.5g}" for value in (untuned, own, best)]
    return {"metric": with_unit(name), **dict(zip(("untuned", "own", "best"), texts, strict=True))} | {
        "change": change,
        "word": verdict_word,
    }


def remarks(record: SearchRecord) -> list[str]:
    """What else there is to say of the ranking, and why the search ended as it did."""
    found = notes(record)
    if record.close is not None and record.close.reason:
        found.append(f"The search ended as {record.close.status}: {record.close.reason}")
    return found


def facts(record: SearchRecord, storage: str) -> dict[str, str]:
    """What the search is, and what it ran on: by name."""
    search, known = record.search, record.facts
    versions = known.get("versions")
    probe = known.get("probe") or {}
    data = search["finetune"].get("data") or {}
    model = search["finetune"].get("model") or {}
    settings = search["search"]
    found: dict[str, Any] = {
        "objective": str(record.objective),
        "model": ", ".join(str(model[key]) for key in ("family", "pretrained") if model.get(key)),
        "data": _text({key: value for key, value in data.items() if value not in (None, [], False)}),
        "full training": f"{record.max_steps} steps",
        "sampler": settings.get("sampler"),
        "scheduler": _text(settings.get("scheduler") or {}),
        "seed": settings.get("seed"),
        "storage": storage,
        "tracking": (search.get("tracking") or {}).get("uri") or "the embedded MLflow store",
        "dataset fingerprint": known.get("dataset_fingerprint"),
        "digest of the weights": known.get("pretrained_digest"),
        "git commit": known.get("git_commit"),
        "device": probe.get("device"),
        "step": duration(probe["step_seconds"]) if isinstance(probe.get("step_seconds"), int | float) else None,
        "versions": _text(versions) if isinstance(versions, dict) else None,
        "skipped images": len(known["skipped_images"]) if known.get("skipped_images") else None,
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def at(seconds: float) -> str:
    """A time of this machine: ``2026-11-30 13:05 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
