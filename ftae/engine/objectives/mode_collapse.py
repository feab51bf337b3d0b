"""Mode collapse of a generator: what it makes is all alike, at two evaluations in a row.

One such evaluation may pass: while a discriminator adapts to new images, a generator may lose its diversity and find it
again. Precision is no sign: a generator that makes one good image has the best.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ftae.errors import Reason

CHANCES = 2  # evaluations in a row at which a sign is lost before it is gone


@dataclass(frozen=True)
class Sign:
    """A sign of ``metric`` is lost below ``lost``; a generator without one gets it above ``found``."""

    metric: str
    lost: float
    found: float

    def left(self, value: float, before: float) -> float:
        """The share of the chances that are left at ``value``, where it was ``before``: 1 to 0."""
        if value < self.lost:
            return max(0.0, before - 1.0 / CHANCES)
        return 1.0 if value > self.found or before > 0.0 else 0.0


# The bounds were found on digits of 16 pixels (good generators: diversity 0.87, recall 0.6; collapsed ones: 0.45, 0).
SIGNS = {
    Reason.MODE_COLLAPSE: Sign("diversity", 0.55, 0.55),
    Reason.LOST_RECALL: Sign("recall", 0.05, 0.1),
}
PIXELS = Sign("pixel variance", 0.1, 0.1)  # without diversity: tells a generator of one image alone


def with_mode_collapse(
    signs: Mapping[str, float], metrics: Mapping[str, float], before: Mapping[str, float]
) -> dict[str, float]:
    """``signs``, those of mode collapse by the chances that are left.

    Args:
        signs: of this evaluation. Those of a generator have the variance of its pixels over that of validation images.
        metrics: of this evaluation, as reports name them; those in ``SIGNS`` that are among them judge a generator.
        before: what this gave at the evaluation before; empty at the first.
    """
    if Reason.MODE_COLLAPSE not in signs:
        return dict(signs)
    found = {
        reason: (sign, metrics[f"val/{sign.metric}"])
        for reason, sign in SIGNS.items()
        if f"val/{sign.metric}" in metrics
    }
    judged = {Reason.MODE_COLLAPSE: (PIXELS, signs[Reason.MODE_COLLAPSE])} | found
    return {**signs, **{str(r): sign.left(value, before.get(r, 0.0)) for r, (sign, value) in judged.items()}}
