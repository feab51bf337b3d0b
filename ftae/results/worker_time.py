"""The time that trials spent on workers, from the journal."""

from dataclasses import dataclass

from ftae.results.search_record import SearchRecord, TrialRecord

HOUR = 3600.0


@dataclass(frozen=True)
class Segment:
    """The time that a trial spent on one worker, in seconds since the epoch."""

    trial: TrialRecord
    node: str
    begin: float
    end: float


def segments_of(record: SearchRecord) -> list[Segment]:
    """Where each trial ran, in the order of time. A trial that was retried has one for each start."""
    found: list[Segment] = []
    for trial in record.all_trials.values():
        newest = max([trial.started, *(report["time"] for report in trial.reports)])
        ended = trial.ended if trial.ended is not None else newest
        starts = [(start["time"], str(start.get("node") or "")) for start in trial.starts] or [(trial.started, "")]
        ends = [*(time for time, _ in starts[1:]), ended]
        found += [Segment(trial, node, begin, max(begin, end)) for (begin, node), end in zip(starts, ends, strict=True)]
    return sorted(found, key=lambda segment: (segment.begin, segment.trial.number))


def worker_hours(record: SearchRecord) -> float:
    """The hours that all trials ran, together."""
    return sum(segment.end - segment.begin for segment in segments_of(record)) / HOUR
