"""Searches as jobs of a running Ray cluster: the only importer of Ray Jobs.

Every attempt at a search is one job, named ``<search>-a<number>``. Ray never restarts a job, so each driver leaves a
watcher on the head node, which submits the next attempt if the driver dies.
"""
