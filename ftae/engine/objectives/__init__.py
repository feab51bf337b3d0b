"""Losses and metrics, and the networks they look through."""
