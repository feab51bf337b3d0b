"""Losses and metrics, and the frozen networks they use."""
