"""What a search has led to, in words: the headline, and the commands to run next."""

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ftae.results.confirmation import confirmed
from ftae.results.search_record import PRODUCTION_TRIAL, SearchRecord, TrialRecord
from ftae.results.summary import choose
from ftae.results.verdict import beats_baseline, needs_warning, verdict
from ftae.specs.finetune.generators import GENERATOR_FAMILIES
from ftae.specs.finetune.metrics import in_unit
from ftae.storage.store import Store, is_url
from ftae.wording import count

STORAGE = "searches"  # where commands look without --storage
BY_STATUS = {"finished": "finished", "pruned": "stopped", "diverged": "diverged", "failed": "failed"}


def winner_of(record: SearchRecord) -> TrialRecord | None:
    """The best trial that ran to its full budget; the only one of a production run; None before the first report."""
    if record.kind == "production":
        trial = record.trials.get(PRODUCTION_TRIAL)
        return trial if trial is not None and trial.reports else None
    return choose(record) if record.ranked() else None


def by_state(record: SearchRecord) -> str:
    """How the tuned trials ended: ``9 finished, 14 stopped, 1 running``; empty before the first."""
    counts: Counter[str] = Counter(trial.status for trial in record.tuned)
    return ", ".join(f"{counts[s]} {word}" for s, word in (BY_STATUS | {"running": "running"}).items() if counts[s])


def headline(record: SearchRecord, winner: TrialRecord | None) -> str:
    """What the search has found, in a sentence or two."""
    if winner is not None:
        found = verdict(record, winner).removeprefix("WARNING: ").replace("->", "→")
        own = record.trials.get(1)
        if needs_warning(record, winner) or own is None or record.kind == "production" or own.status != "finished":
            return f"{winner.name.capitalize()}: {found}"
        if own is winner:
            return f"The file's own configuration is the best: {found}"
        metric = record.objective.first.metric
        end = f"The file's own configuration reaches {in_unit(own.metrics[metric], metric)}."
        return f"{winner.name.capitalize()} is the best: {found.rstrip('.')}. {end}"
    running = len(record.running)
    if running:
        return f"No trial has finished yet; {count(running, 'trial')} {'runs' if running == 1 else 'run'}."
    return "No trial has finished."


def tone(record: SearchRecord, winner: TrialRecord | None) -> str:
    """``good``, ``warning`` or ``open``, for the mark beside the headline."""
    if winner is None:
        return "open"
    return "warning" if needs_warning(record, winner) or beats_baseline(record, winner) is None else "good"


@dataclass(frozen=True)
class Command:
    """A command to run next, and what for."""

    line: str
    purpose: str


def commands(record: SearchRecord, winner: TrialRecord | None, storage: str) -> list[Command]:
    """What to run next, the most sensible first. ``storage``: where the search is."""
    if record.kind == "production":
        return _next_of_production(record)
    close, found = record.close, list[Command]()
    tail = f" {shlex.quote(record.name)}{_option(storage)}"
    if close is None:
        found.append(
            Command(f"ftae status{tail}", "how far the search is; ftae resume continues it if its driver died")
        )
    elif close.status != "complete":
        found.append(Command(f"ftae resume{tail}", "continue where the search was left"))
    if winner is None:
        return found
    if needs_warning(record, winner):
        more = "--trials 10" if record.budget is None else "--budget 10"  # a budget may hold no further trial
        found.append(Command(f"ftae extend{tail} {more}", "look further: this is no clear gain"))
    elif close is not None:
        found.append(Command(f"ftae export{tail}", "the best model as a folder that production starts from"))
        if not confirmed(record):
            found.append(Command(f"ftae confirm{tail}", "train the best again with other seeds: was it luck?"))
    if is_of_generators(record):
        return [*found, Command(f"ftae sample{tail} --out samples", "new images, a file each")]
    scores = f"ftae evaluate{tail} --out scores --heatmaps 6"
    return [*found, Command(scores, "the error of every validation image, and the worst as maps")]


def is_of_generators(record: SearchRecord) -> bool:
    """Whether the models make images of noise; False where the journal does not tell."""
    model = record.search["finetune"].get("model")
    return isinstance(model, dict) and model.get("family") in GENERATOR_FAMILIES


def _next_of_production(record: SearchRecord) -> list[Command]:
    folder = shlex.quote(record.name)
    if record.close is not None and record.close.status == "complete":
        return [Command(f"ftae evaluate runs/{folder} --out scores", "the error of every validation image")]
    line = f"ftae train runs/{folder}/production.yaml --out runs/{folder} --resume"
    return [Command(line, "continue the run from its newest checkpoint")]


def _option(storage: str) -> str:
    return "" if not is_url(storage) and Path(storage).name == STORAGE else f" --storage {shlex.quote(storage)}"


def storage_of(store: Store) -> str:
    """The storage that holds a search, as options name it."""
    where = str(store)
    return where.rpartition("/")[0] if "://" in where else str(Path(where).parent)
