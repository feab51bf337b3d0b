"""diffusers as it is, beside ftae: nothing of it is left out, changed, or heard."""

import logging
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest

from ftae.engine.process import LIBRARIES, quiet_libraries

ASKED = """
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


def test_diffusers_is_whole_for_whoever_imports_it_later() -> None:
    result = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_libraries_are_quiet_inside_alone(capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging as its_logging
    from huggingface_hub.utils import are_progress_bars_disabled

    levels = [logging.getLogger(name).level for name in LIBRARIES]
    with suppress(KeyError), quiet_libraries(), quiet_libraries():
        its_logging.get_logger("diffusers.models.anything").error("loud")
        logging.getLogger("huggingface_hub.file_download").critical("loud")
        warnings.warn("loud", UserWarning, stacklevel=1)
        list(its_logging.tqdm(range(3), desc="loud"))
        assert are_progress_bars_disabled()
        raise KeyError
    assert capfd.readouterr() == ("", "")
    assert [logging.getLogger(name).level for name in LIBRARIES] == levels
    assert its_logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
