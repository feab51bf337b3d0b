"""A search and its trials, as users of the Python API see them."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftae.results.confirmation import Confirmed, confirmed
from ftae.results.replay import replay
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.results.stored_spec import search_of
from ftae.results.summary import best, choose, find_search, leaderboard, state_of
from ftae.results.verdict import notes, verdict, within_noise
from ftae.specs.search.search import SearchSpec
from ftae.storage.store import Store
from ftae.user_code import code_allowed
from ftae.wording import count, full_trainings

if TYPE_CHECKING:
    import pandas

SHOWN_ROWS = 10  # of a leaderboard in a notebook


@dataclass(frozen=True)
class Trial:
    """One configuration that a search has tried.

    Attributes:
        number: 0 is the baseline, 1 the configuration of the file, the others were chosen by the sampler.
        kind: ``baseline``, ``file`` or ``sampled``.
        status: ``running``, ``finished``, ``pruned``, ``diverged`` or ``failed``.
        params: the searched values, by the path of their leaf.
        metrics: the metrics of the last report, such as ``val/psnr``; empty before the first.
        value: the objective (of several, the first) at the last report; None before the first.
        step: the optimizer step of the last report.
        reason: why the trial was pruned, diverged or failed; else None.
        curve: the metrics of every report, by optimizer step.
    """

    number: int
    kind: str
    status: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    value: float | None
    step: int
    reason: str | None
    curve: Mapping[int, Mapping[str, float]] = field(repr=False)

    @classmethod
    def of(cls, record: TrialRecord) -> "Trial":
        """The trial as the journal has it."""
        return cls(
            number=record.number,
            kind=record.kind,
            status=record.status,
            params=dict(record.params),
            metrics=dict(record.metrics),
            value=record.value,
            step=record.step,
            reason=record.reason,
            curve={report["step"]: dict(report["metrics"]) for report in record.reports},
        )


class Search:
    """A search, as its journal described it when this object was made. ``refresh`` reads the journal again.

    Made by ``ftae.run_search`` and ``ftae.open_search``. A training run is a search of one trial, too.

    Examples:
        >>> search = ftae.open_search("quickstart")
        >>> search.best.params, search.best.value, search.baseline.value
        >>> search.leaderboard().head()
        >>> search.export("exports/quickstart")
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._record: SearchRecord = replay(store.folder)

    @classmethod
    def find(cls, name: str, storage: str) -> "Search":
        """Open a search by its name below ``storage``, or by its folder. Raises FtaeError if there is none."""
        return cls(find_search(name, storage))

    def refresh(self) -> "Search":
        """Read the journal again, and return this search.

        Raises:
            FtaeError: the journal cannot be read.
        """
        self._store.refresh()
        self._record = replay(self._store.folder)
        return self

    # ---------------------------------------------------------------------------------------------- facts

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def folder(self) -> Path:
        """The folder of the search: its journal, and what its trials wrote."""
        return self._store.folder

    @property
    def spec(self) -> SearchSpec:
        """What was searched. Raises FtaeError for a training run, and for a version of ftae with other fields."""
        return search_of(self._record)

    @property
    def status(self) -> str:
        """``complete``, ``interrupted`` or ``failed``; ``running or killed`` while the journal is open."""
        return state_of(self._record)

    @property
    def reason(self) -> str | None:
        """Why the search ended as it did; None if there is nothing to say."""
        return None if self._record.close is None else self._record.close.reason

    @property
    def stopped_by_user(self) -> bool:
        """Whether a person stopped the search, as Ctrl-C does."""
        return self._record.close is not None and self._record.close.by_user

    @property
    def budget(self) -> float | None:
        """What the tuned trials may take together, in full trainings; None if the search has no such limit."""
        return self._record.budget

    @property
    def used_budget(self) -> float:
        """What the tuned trials have taken together, in full trainings: each counts with the share of its steps."""
        return self._record.used_budget

    # --------------------------------------------------------------------------------------------- trials

    @property
    def trials(self) -> list[Trial]:
        """All trials in order of their numbers, the baseline first."""
        return [Trial.of(trial) for trial in self._record.trials.values()]

    @property
    def ranked(self) -> list[Trial]:
        """The tuned trials that ran to their full budget, the best first."""
        return [Trial.of(trial) for trial in self._record.ranked()]

    @property
    def best(self) -> Trial:
        """The best trial that ran to its full budget: of confirmed trials, the one with the best mean over seeds.

        Raises FtaeError while there is none.
        """
        return self.choose()

    @property
    def baseline(self) -> Trial | None:
        """The untuned model; None until it is evaluated."""
        return None if self._record.baseline is None else Trial.of(self._record.baseline)

    @property
    def pareto_front(self) -> list[Trial]:
        """The trials that keep all constraints and that no other such trial beats in every metric of the objective."""
        return [Trial.of(trial) for trial in self._record.pareto_front()]

    @property
    def noise(self) -> float | None:
        """The standard deviation of the objective over runs of one configuration, at most; None where it is not known.

        It is known from ``search.sampler: curve`` or ``search.scheduler: forecast``, once some trials have reported.
        """
        return self._record.noise

    @property
    def within_noise(self) -> list[int]:
        """The numbers of the best trial and of those that may be as good; empty if there are none of those.

        The difference of two runs has the standard deviation ``noise`` times the square root of 2. A trial that is
        behind the best by less is among them.
        """
        return within_noise(self._record)

    @property
    def confirmed(self) -> dict[int, Confirmed]:
        """The trials that ``ftae.confirm`` has trained again with other seeds, by number: mean and spread of each."""
        return confirmed(self._record)

    def choose(self, trial: int | None = None, weights: Mapping[str, float] | None = None) -> Trial:
        """Return a trial that ran to its full budget: by number, the best by ``weights``, or the best.

        Args:
            trial: the number of a trial.
            weights: for an objective of several metrics, how much each counts: ``{"val/psnr": 1, "val/ssim": 0.5}``.

        Raises:
            FtaeError: there is no such trial, or the weights do not fit the objective.
        """
        return Trial.of(choose(self._record, trial, weights))

    def verdict(self, trial: int | None = None) -> str:
        """Compare a trial, by default the best, with the baseline and the constraints, in a sentence or two."""
        return verdict(self._record, choose(self._record, trial))

    def summary(self, trial: int | None = None, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Return what ``ftae best --json`` prints: the chosen trial, its checkpoint, and how it compares.

        Raises:
            FtaeError: as ``choose``.
        """
        return best(self._store, trial, weights)

    # ---------------------------------------------------------------------------------------------- tables

    def rows(self) -> list[dict[str, Any]]:
        """Return the leaderboard as one dict a trial, all with the same keys.

        The trials that ran to their full budget come first, the best on top, then the baseline and the other trials.
        """
        return leaderboard(self._record)

    def leaderboard(self) -> "pandas.DataFrame":
        """Return the leaderboard as a table with a row for each trial, indexed by the number of the trial.

        The columns: ``kind``, ``status``, the metrics of the objective, ``step``, ``params.PATH`` for every searched
        leaf, and ``reason``; also ``front`` for several metrics, ``feasible`` for constraints, ``within_noise`` where
        other trials may be as good as the best, ``forecast`` and
        ``forecast_sd`` for the ends that stopped trials were expected to have, and ``seeds``, ``mean`` and ``sd`` for
        confirmed trials.
        """
        import pandas

        return pandas.DataFrame(self.rows()).set_index("trial")

    def notes(self) -> list[str]:
        """Return what else there is to say of the leaderboard, a line each: which trials are within noise, and which is
        the best by its mean over seeds."""
        return notes(self._record)

    # ---------------------------------------------------------------------------------------------- export

    def export(
        self,
        folder: Path | str,
        trial: int | None = None,
        weights: Mapping[str, float] | None = None,
        *,
        notify: Callable[[str], None] | None = None,
        onnx: bool = False,
        allow_code: bool = False,
    ) -> Path:
        """Write a trial, by default the best, to a new folder.

        The folder contains ``production.yaml`` for ``ftae.run_training``, ``model/``, ``provenance.json``,
        ``README.md`` and a picture of reconstructions. MLflow loads and serves the folder
        (``mlflow.pyfunc.load_model(folder)``). It appears complete or not at all.

        Args:
            folder: the folder to create.
            trial: the number of a trial.
            weights: as for ``choose``.
            notify: receives a line if models trained on the latents of the pretrained model no longer fit, and with
                ``onnx`` one with the largest difference from PyTorch.
            onnx: also write ``encoder.onnx`` and ``decoder.onnx``, or ``translator.onnx``, which needs ``pip install
                'ftae[onnx]'``.
            allow_code: allow code that the search names.

        Returns:
            The folder.

        Raises:
            FtaeError: as ``choose``; the checkpoint of the trial was not kept; ``folder`` exists or lies among images.
        """
        from ftae.engine.training.loop import process_state_kept
        from ftae.results.export import export

        with code_allowed(allow_code), process_state_kept():
            exported = export(self._store, Path(folder), trial, weights, onnx=onnx)
        if notify is not None and exported.onnx is not None:
            of = " and ".join(f"{value:.2g} for {name}" for name, value in exported.onnx.items())
            notify(f"the ONNX graphs differ from PyTorch by at most {of} on validation images")
        if notify is not None and not exported.model.latents_compatible:
            notify(f"the latents differ from those of the model before tuning: see {Path(folder) / 'README.md'}")
        return Path(folder)

    # ---------------------------------------------------------------------------------------------- display

    def __repr__(self) -> str:
        return f"<ftae.Search {self.name!r}: {self._state()}>"

    def _state(self) -> str:
        number = count(len(self._record.trials), "trial")
        state = f"{self.status}, {number}, {full_trainings(self.used_budget, self.budget)}"
        if not self._record.ranked():
            return state
        best = choose(self._record)
        return f"{state}, best is trial {best.number} ({verdict(self._record, best)})"

    def _repr_html_(self) -> str:
        """Show the first rows of the leaderboard in a notebook."""
        rows = self.rows()
        columns = list(rows[0]) if rows else []
        lines = [_line("th", [column.removeprefix("params.") for column in columns])]
        lines += [_line("td", [_cell(row[column]) for column in columns]) for row in rows[:SHOWN_ROWS]]
        more = f"<p>and {len(rows) - SHOWN_ROWS} more</p>" if len(rows) > SHOWN_ROWS else ""
        title = html.escape(f"{self.name}: {self._state()}")
        return f"<p><b>{title}</b></p><table>{''.join(lines)}</table>{more}"


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
