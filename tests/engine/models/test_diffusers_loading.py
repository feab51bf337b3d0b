"""diffusers beside ftae: complete, unchanged, and quiet while ftae loads a model."""

import logging
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest

from ftae.engine.process import LIBRARIES, quiet_libraries

IMPORTS = """
import importlib.metadata, sys
read = importlib.metadata.packages_distributions
import ftae.engine.models.diffusers_loading as models
assert importlib.metadata.packages_distributions is read
import diffusers.hooks, torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders import AutoencoderKLWan
from diffusers.models.unets import UNet2DModel

assert AutoencoderKL is models.NETWORKS["autoencoder_kl"] is diffusers.models.autoencoders.AutoencoderKL
assert UNet2DModel.__module__ == "diffusers.models.unets.unet_2d"
assert callable(diffusers.hooks.apply_faster_cache)
made = [name for name, module in sys.modules.items() if type(module).__module__.startswith("ftae")]
assert made == [], made
"""


def test_diffusers_is_complete_for_later_imports() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_libraries_are_quiet_inside_the_block_alone(capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disable_progress_bars("a_group")
    levels = [logging.getLogger(name).level for name in LIBRARIES]
    with suppress(KeyError), quiet_libraries(), quiet_libraries():
        diffusers_logging.get_logger("diffusers.models.anything").error("loud")
        logging.getLogger("huggingface_hub.file_download").critical("loud")
        warnings.warn("loud", UserWarning, stacklevel=1)
        list(diffusers_logging.tqdm(range(3), desc="loud"))
        assert are_progress_bars_disabled()
        raise KeyError
    assert capfd.readouterr() == ("", "")
    assert [logging.getLogger(name).level for name in LIBRARIES] == levels
    assert diffusers_logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
    assert are_progress_bars_disabled("a_group")
    enable_progress_bars()
