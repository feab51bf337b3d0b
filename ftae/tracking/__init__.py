"""Experiment trackers: where people look at searches and production runs.

``Tracker`` is the protocol, ``tracker_for`` the factory. MLflow is the only tracker so far; the modules ``mlflow_*``
are the only importers of mlflow. Importing this package loads none of it.
"""

from ftae.tracking.tracker import Outcome, Tracker, TrackingUnavailable, store_uri, tracker_for

__all__ = ["Outcome", "Tracker", "TrackingUnavailable", "store_uri", "tracker_for"]
