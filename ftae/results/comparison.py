"""Two models side by side, as far as they were measured in the same way on the same images."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftae.errors import FtaeError
from ftae.results.candidate import Candidate, candidate
from ftae.specs.finetune import needs
from ftae.specs.finetune.metrics import metric_facts
from ftae.specs.finetune.needs import Need
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.overrides import leaves
from ftae.specs.reading.schema import KeepsValidation, Means, fields_with, roles_in
from ftae.wording import listed

Side = Literal["a", "b"]

# The fact that has to be the same for a metric with a need, and what the user calls it.
_MEASURED_BY: dict[Need, tuple[str, str]] = {
    needs.perceptual: ("perceptual_digest", "weights of finetune.perceptual"),
    needs.features: ("features_digest", "weights of finetune.features"),
    needs.reference: ("pretrained_digest", "pretrained models"),
}


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of both models.

    Attributes:
        metric: its name, such as ``val/psnr``.
        a: the value of the first model.
        b: the value of the second.
        difference: ``b - a``.
        better: which of the two is better; None where they are equal, or where either side may be wanted.
        within_noise: whether the difference may be luck: it is less than one standard deviation of such a difference.
            None where that is not known.
    """

    metric: str
    a: float
    b: float
    difference: float
    better: Side | None
    within_noise: bool | None


@dataclass(frozen=True)
class Comparison:
    """Two models that were measured on the same images.

    Attributes:
        a: the first.
        b: the second.
        metrics: the metrics that both have and that mean the same.
        differing: the settings that differ, by path, each with the values of both; None where one has no such setting.
        warnings: what cannot be compared, and why.
    """

    a: Candidate
    b: Candidate
    metrics: tuple[ComparedMetric, ...]
    differing: Mapping[str, tuple[Any, Any]]
    warnings: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """The comparison as plain values, which ``ftae compare --json`` prints."""
        names = ("name", "kind", "trial", "full_trainings", "hours")
        return {
            "a": {name: getattr(self.a, name) for name in names},
            "b": {name: getattr(self.b, name) for name in names},
            "metrics": [asdict(metric) for metric in self.metrics],
            "differing": {path: {"a": a, "b": b} for path, (a, b) in self.differing.items()},
            "warnings": list(self.warnings),
        }


def compare(a: str, b: str, storage: str) -> Comparison:
    """Compare what two names stand for; see ``candidate``.

    Raises:
        FtaeError: as ``candidate``; or the two were measured on different images, or share no metric.
    """
    one, other = candidate(a, storage), candidate(b, storage)
    _check_same_images(one, other)
    warnings = [*_unsure(one, other)]
    shared = [name for name in one.metrics if name in other.metrics]
    reasons = {name: reason for name in shared if (reason := _measured_otherwise(name, one, other))}
    comparable = [name for name in shared if name not in reasons]
    warnings += [f"{name} is left out: {reason}" for name, reason in reasons.items()]
    for model, metrics in ((one, other.metrics), (other, one.metrics)):
        if alone := [name for name in model.metrics if name not in metrics]:
            warnings.append(f"only {model.description} was measured by {listed(alone)}")
    if not comparable:
        raise FtaeError(f"{one.description} and {other.description} share no metric: {'; '.join(warnings)}")
    return Comparison(
        one, other, tuple(_compared(name, one, other) for name in comparable), _differing(one, other), tuple(warnings)
    )


# ---------------------------------------------------------------------------------------------- comparable


def _check_same_images(a: Candidate, b: Candidate) -> None:
    """Raises FtaeError where the models were measured on different images."""
    prints = [_fingerprint(each)[0] for each in (a, b)]
    names = f"{a.description} and {b.description}"
    if all(prints) and prints[0] != prints[1]:
        raise FtaeError(
            f"{names} were measured on different images (dataset fingerprints {prints[0]} and {prints[1]}), so that "
            "their metrics cannot be compared; ftae evaluate measures both on the same"
        )
    views = [_view(each.run) for each in (a, b)]
    if differing := [
        path for path in dict.fromkeys([*views[0], *views[1]]) if views[0].get(path) != views[1].get(path)
    ]:
        raise FtaeError(
            f"{names} were measured on the same files in different ways: {listed(differing)} differ, so that their "
            "metrics cannot be compared"
        )


def _fingerprint(model: Candidate) -> tuple[str, str]:
    """The fingerprints of the images and of the replayed images; empty where they are not known."""
    own, _, of_replay = str(model.facts.get("dataset_fingerprint") or "").partition("+")
    return own, of_replay


def _view(run: FinetuneSpec) -> dict[str, Any]:
    """The settings of the data by which images of one fingerprint may still be measured in different ways."""
    folders = {leaf.removeprefix("data.") for leaf in run.data.image_folders()}
    rest = {
        "fingerprint",
        "replay",
        "source",
        *folders,
        *roles_in(type(run.data), KeepsValidation),
        *roles_in(type(run.data), Means),
    }
    dumped = run.data.model_dump(mode="json", exclude=rest)
    return {f"data.{name}": value for name, value in dumped.items()}


def _unsure(a: Candidate, b: Candidate) -> Iterator[str]:
    """Doubts about the comparison as a whole."""
    for model in (a, b):
        if not _fingerprint(model)[0]:
            yield f"whether the images are the same is not known: {model.description} has no fingerprint of them"
    versions = [(each.facts.get("versions") or {}).get("ftae") for each in (a, b)]
    if all(versions) and versions[0] != versions[1]:
        yield f"ftae {versions[0]} and {versions[1]} measured the two, and may have defined a metric differently"


def _measured_otherwise(name: str, a: Candidate, b: Candidate) -> str | None:
    """Why a metric does not mean the same for both; None if it does."""
    if name.startswith("val_source/") and _fingerprint(a)[1] != _fingerprint(b)[1]:
        return "the images of data.replay differ"
    for need in metric_facts(name).needs:
        fact, called = _MEASURED_BY.get(need, ("", ""))
        if fact and a.facts.get(fact) != b.facts.get(fact):
            return f"the {called} differ"
    return None


# ------------------------------------------------------------------------------------------------ compared


def _compared(name: str, a: Candidate, b: Candidate) -> ComparedMetric:
    before, after = a.metrics[name], b.metrics[name]
    difference, direction = after - before, _direction(name, a, b)
    better: Side | None = None
    if direction is not None and difference != 0.0:
        better = "b" if (difference > 0.0) == (direction == "maximize") else "a"
    known = [each.deviations.get(name) for each in (a, b)]
    deviations = [sd for sd in known if sd is not None]
    if len(deviations) == 1:  # the other has about the same
        deviations *= 2
    near = abs(difference) < math.hypot(*deviations) or difference == 0.0 if deviations else None
    return ComparedMetric(name, before, after, difference, better, near)


def _direction(name: str, a: Candidate, b: Candidate) -> str | None:
    """The side that is better: by the objectives, if they agree, else by the metric itself."""
    asked = {goal.direction for each in (a, b) for goal in each.objective.goals if goal.metric == name}
    return asked.pop() if len(asked) == 1 else metric_facts(name).better


def _differing(a: Candidate, b: Candidate) -> dict[str, tuple[Any, Any]]:
    """The leaves of the runs that differ; of two searches also the settings by which they were done."""
    found = [leaves(_run(each.run)) for each in (a, b)]
    if a.settings and b.settings:
        found = [own | leaves(each.settings) for own, each in zip(found, (a, b), strict=True)]
    one, other = found
    return {path: pair for path in one | other if (pair := (one.get(path), other.get(path)))[0] != pair[1]}


def _run(run: FinetuneSpec) -> dict[str, Any]:
    return run.model_dump(mode="json", exclude={*fields_with(FinetuneSpec, Means)})
