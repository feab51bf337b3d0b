"""Descriptions of runs and searches: pure data, no torch, no Ray."""

from ftae.specs.distributions import Choices, Distribution, Range
from ftae.specs.finetune import FinetuneSpec
from ftae.specs.search import ProductionSpec, SearchSpec

__all__ = ["Choices", "Distribution", "FinetuneSpec", "ProductionSpec", "Range", "SearchSpec"]
