"""Random weights of torchvision networks, in files as torchvision offers them; what they say of images is real."""

import tempfile
from functools import lru_cache
from pathlib import Path

import torch
import torchvision

NAMES = {"squeezenet": "squeezenet1_1"}
FOLDER = tempfile.TemporaryDirectory(prefix="ftae-weights-")  # removed at exit: some 100 MB
PARTS = ("features.", "conv1", "bn1", "layer")  # without a classifier, which is most of VGG's file and never used


@lru_cache
def random_weights(net: str) -> str:
    """The path of a state dict with He's weights (2015)."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, NAMES.get(net, net))(weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in shapes.items():
        if not name.startswith(PARTS) and net != "inception_v3":
            continue
        if tensor.ndim == 4:
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        else:
            one = name.endswith(("running_var", ".weight"))
            state[name] = torch.full(tensor.shape, float(one)).to(tensor.dtype)
    path = Path(FOLDER.name) / f"{net}.pth"
    torch.save(state, path)
    return str(path)
