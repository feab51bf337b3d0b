"""The outcome of a search on the page of its run: description, leaderboard, best config, report, metrics."""

import json
from typing import Any

from ftae.tracking import Outcome
from ftae.tracking.mlflow_run import now, table_json
from ftae.tracking.mlflow_server import MAX_TAG, Server, clip, points

LEADERBOARD, BEST_CONFIG = "leaderboard.json", "best_config.yaml"
NOTE = "mlflow.note.content"  # the description of a run, as its page shows it
OWN_NOTE = "<!-- What follows is written by ftae, again and again. What stands above stays. -->\n"
TABLES = "mlflow.loggedArtifacts"  # the artifacts that MLflow shows as tables


def publish(server: Server, run_id: str, outcome: Outcome) -> None:
    """Show all of an outcome but its model, in place of the one before. Raises TrackingUnavailable."""
    with server.client() as client:
        found = client.get_run(run_id).data
        tags = dict(outcome.tags)
        if outcome.description is not None:
            tags[NOTE] = _with_notes_kept(found.tags.get(NOTE, ""), outcome.description)
        if outcome.leaderboard is not None:
            client.log_text(run_id, table_json(outcome.leaderboard), LEADERBOARD)
            tables: list[Any] = json.loads(found.tags.get(TABLES, "[]"))
            table = {"path": LEADERBOARD, "type": "table"}
            tags[TABLES] = json.dumps(tables if table in tables else [*tables, table])
        if outcome.best_config is not None:
            client.log_text(run_id, outcome.best_config, BEST_CONFIG)
    for artifact_path, path in outcome.files.items():
        server.upload(run_id, path, artifact_path or None)
    # A point has a time, so the same value sent twice would be two points.
    changed = {key: value for key, value in outcome.metrics.items() if found.metrics.get(key) != value}
    server.log(run_id, points(changed, now(), outcome.num_ended), {}, tags)


def _with_notes_kept(before: str, description: str) -> str:
    """A description below what people wrote above the one before."""
    written, found, _ = before.partition(OWN_NOTE)
    kept = written if found or not before else f"{before.rstrip()}\n\n"
    return clip(f"{kept}{OWN_NOTE}{description}", MAX_TAG)
