"""What is left out of diffusers is there as soon as anybody asks for it."""

import subprocess
import sys

ASKED = """
import ftae.engine.diffusers_models as models
import diffusers.hooks, scipy.stats, torch, torchvision.ops
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders import AutoencoderKLWan
from diffusers.models.unets import UNet2DModel
from diffusers.utils import import_utils
from importlib.metadata import packages_distributions
from scipy.integrate import quad

assert AutoencoderKL is models.AutoencoderKL is diffusers.models.autoencoders.AutoencoderKL
assert UNet2DModel.__module__ == "diffusers.models.unets.unet_2d"
assert callable(diffusers.hooks.apply_faster_cache)
assert not hasattr(diffusers.hooks, "nothing")
assert scipy.stats.norm.cdf(0.0) == 0.5
assert quad(lambda x: x, 0.0, 2.0)[0] == 2.0
assert torch.compiler.disable(quad) is not quad  # marked again
assert vars(import_utils._package_map) == {}  # of what is installed, nothing was read so far
assert import_utils._package_map["PIL"] == ["pillow"]
assert dict(import_utils._package_map) == packages_distributions()
"""


def test_it_is_as_if_all_had_been_imported() -> None:
    result = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
