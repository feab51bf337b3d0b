"""MLflow as a view of searches and production runs, for people to look at. The only importer of mlflow.

A search is one parent run with a child run per trial. All of it is a projection of the journal's events
(plain dicts here): sending them again changes nothing, because a metric point is identified by its
values, runs are found by their tags before they are made, and an image's name depends on nothing but
its run and step.
"""

import logging
import os

# Read by MLflow while it is imported, so set before any module of this package can do that. The caller
# keeps what could not be sent, so giving up early costs nothing; MLflow's own defaults wait four
# minutes for a server that is gone.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

from ftae.tracking.mlflow_server import TrackingUnavailable, check_experiment, store_uri  # noqa: E402
from ftae.tracking.run_tracker import RunTracker  # noqa: E402
from ftae.tracking.search_tracker import SearchTracker  # noqa: E402

if "MLFLOW_LOGGING_LEVEL" not in os.environ:  # what goes wrong is raised; told once is enough
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

__all__ = ["RunTracker", "SearchTracker", "TrackingUnavailable", "check_experiment", "store_uri"]
