"""Distributed hyperparameter search for fine-tuning autoencoders."""

__version__ = "0.2.0"
