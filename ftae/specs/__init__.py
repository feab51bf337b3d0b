"""Descriptions of runs and searches: pure data, no torch, no Ray."""

from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.distributions import Choices, Distribution, Range
from ftae.specs.search.search import ProductionSpec, SearchSpec

__all__ = ["Choices", "Distribution", "FinetuneSpec", "ProductionSpec", "Range", "SearchSpec"]
