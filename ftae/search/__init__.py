"""Searching: the only importer of ray.tune and optuna."""
