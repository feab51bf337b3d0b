"""What samplers and schedulers decide, with what the journal says about it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Proposal:
    """The params of a new trial. ``facts``: further fields of its ``suggest`` event."""

    params: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop:
    """Why a trial ends before its budget, in a few words. ``forecast``: of its end, if there is one."""

    reason: str
    forecast: dict[str, float] | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of the ``end`` event."""
        return {"reason": self.reason} | ({} if self.forecast is None else {"forecast": self.forecast})


def rounded(value: float) -> float:
    """Six significant digits: enough of a forecast, whatever the unit of the objective."""
    return float(f"{value:.6g}")
