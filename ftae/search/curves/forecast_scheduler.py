"""``scheduler: forecast``: stops a trial that will hardly beat the best."""

from scipy.special import ndtr

from ftae.search.curves.decisions import Stop, rounded
from ftae.search.curves.forecaster import CurveForecast, Forecaster
from ftae.specs.search.settings import Forecast

# Of so many running trials one goes on, whatever the bar: somebody must come to the end. Of three as well, since one of
# four may have ended just now.
PROTECTED_SHARE = 4


class ForecastScheduler:
    """Stops a trial whose chance to beat the best is small, as the Gaussian process of all curves sees it.

    The file's own configuration is never stopped.
    """

    def __init__(self, forecaster: Forecaster) -> None:
        settings = forecaster.spec.search.scheduler
        assert isinstance(settings, Forecast)
        self._forecaster, self._least = forecaster, settings.min_chance
        self._first = settings.grace_fraction * forecaster.spec.finetune.max_steps

    def stop(self, number: int, step: int, value: float) -> Stop | None:
        """Why trial ``number`` ends with this report; None if it continues. Changes nothing."""
        trial = self._forecaster.record.trials[number]
        if trial.kind == "file" or step < self._first - 0.5:
            return None
        forecast = self._forecaster.current({number: (step, value)})
        if forecast is None:
            return None
        ends, deviations = forecast.process.at_end(self._forecaster.vectors([number]), [number])
        end, deviation = float(ends[0]), float(deviations[0])
        if self._is_protected(forecast, number, step, end):
            return None
        bar = self._bar(forecast, number, end)
        chance = float(ndtr((end - bar) / deviation))
        if chance >= self._least:
            return None
        sign = self._forecaster.sign
        shown = {"mean": sign * end, "sd": deviation, "chance": chance, "best": sign * bar}
        return Stop(
            f"its end is expected at {sign * end:.4g} ± {deviation:.2g}, "
            f"and the chance to beat {sign * bar:.4g} is {chance:.0%}",
            {name: rounded(number) for name, number in shown.items()},
        )

    def record(self, number: int, step: int, value: float) -> None:
        """Nothing to do: the forecaster reads the journal."""

    def _is_protected(self, forecast: CurveForecast, number: int, step: int, end: float) -> bool:
        """Whether the trial is among the most promising ones that run and are at least as far."""
        running = self._forecaster.record.tuned_running
        protected = (len(running) + 1) // PROTECTED_SHARE
        if protected == 0:
            return False
        others = [trial.number for trial in running if trial.number != number and trial.step >= step]
        if not others:
            return True
        ends = forecast.process.at_end(self._forecaster.vectors(others), others)[0]
        return int((ends > end).sum()) < protected

    def _bar(self, forecast: CurveForecast, number: int, end: float) -> float:
        """What the trial has to beat: the best end, or before any trial has ended well, the best expected end."""
        if forecast.bar is not None:
            return forecast.bar
        others = set(forecast.process.observations.trials.astype(int).tolist()) - {number}
        expected = self._forecaster.best_expected(forecast.process, others)
        return end if expected is None else max(end, expected)
