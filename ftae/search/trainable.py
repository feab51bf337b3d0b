"""What Tune hands to workers. They alone import what it runs."""

from typing import Any


def run_trial(config: dict[str, Any], *, search: dict[str, Any], fingerprint: str) -> None:
    """See ``trial.run_trial``."""
    from ftae.search import trial

    trial.run_trial(config, search=search, fingerprint=fingerprint)
