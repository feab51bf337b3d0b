"""What a network takes before it is built, and what this machine has."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ftae.errors import FtaeError
from ftae.units import size


def check_room(build: Callable[[], nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse a network whose weights this machine cannot hold, before the system ends the process that tries.

    ``options``: what was asked for, for the message. Nothing is drawn from the random generators.

    Raises:
        FtaeError: its weights alone take more than there is.
    """
    with torch.device("meta"):
        net = build()
    needed = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        asked = ", ".join(f"{name} {value}" for name, value in options.items()) or "its defaults"
        raise FtaeError(
            f"the model cannot be built with {asked}: its weights take {size(needed)}, this machine has {size(there)}"
        )
