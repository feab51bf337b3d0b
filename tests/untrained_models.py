"""Models of any family with random weights, as users load them."""

from typing import Any

from builders import run_spec

from ftae.engine.models.families import build_model
from ftae.engine.process import device_of
from ftae.inference.model import TunedModel


def untrained(**model: Any) -> TunedModel:
    """A model of some family, with the digits 3 and 7."""
    spec = run_spec(model=model, losses={"mse": 1.0}, metrics=["psnr"])
    return TunedModel(build_model(spec, 2), spec, device_of(spec), ("3", "7"))
