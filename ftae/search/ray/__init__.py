"""Trials on Ray: nodes, workers, Tune. Imports nothing of the rest of ``ftae.search``."""
