"""A network with foreign weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ftae.engine.process import check_room

State = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A network, and the keyword arguments that it was built with.

    ``options`` are those of a family, ``facts`` those that the data decide: ``channels_in`` and ``resolution``.
    """

    net: nn.Module
    options: dict[str, Any]
    facts: dict[str, int]

    @classmethod
    def new(cls, net_type: Callable[..., nn.Module], options: dict[str, Any], facts: dict[str, int]) -> "Network":
        """With new weights.

        Raises:
            FtaeError: the weights alone take more memory than the machine has: a file can claim any shape.
        """
        build = partial(net_type, **options, **facts)
        check_room(build, options)
        return cls(build(), options, facts)
