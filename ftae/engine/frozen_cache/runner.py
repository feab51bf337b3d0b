"""The frozen start of a model's line: computed once for each image, for all epochs, trials and searches.

What frozen stages make of an image depends on the image alone. It is stored (``prefix_store``) when a batch
first needs it, and read from then on: the encoded images, never a sample of their posterior, and what frozen
decoder stages make of their mode. The numbers of a run are the same to the last bit.
"""

import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftae.engine.data.batches import Batch, Rows
from ftae.engine.data.cache import digest
from ftae.engine.frozen_cache import store as prefix_store
from ftae.engine.frozen_cache.store import Layout, PrefixStore
from ftae.engine.models.autoencoder import Autoencoder, Encoding, NoiseFn, StageChain
from ftae.engine.models.staged_model import Stage, run_stages

logger = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when the same stages would be stored otherwise

Values = tuple[Tensor, ...]  # what lies at a cut: the encoded images, and behind decoder stages what these make of them


@dataclass(frozen=True)
class Cut:
    """A place on a line: behind its first ``encoder`` stages, and then behind its first ``decoder`` stages.

    Where there are decoder stages, those of the encoder are all.
    """

    encoder: int
    decoder: int = 0

    def stages(self, chain: StageChain) -> list[Stage]:
        """Those before it."""
        codebook = [chain.codebook] if self.decoder and chain.codebook is not None else []
        return [*chain.encoder[: self.encoder], *codebook, *chain.decoder[: self.decoder]]

    def before(self, chain: StageChain, images: Tensor) -> Values:
        """What the stages before it make of images in the model's range."""
        encoded = run_stages(chain.encoder[: self.encoder], images)
        if not self.decoder:
            return (encoded,)
        return encoded, run_stages(chain.decoder[: self.decoder], chain.bottleneck(encoded, None).latents)

    def behind(self, chain: StageChain, values: Values, noise: NoiseFn | None) -> tuple[Encoding, Tensor]:
        """What the model says of the images, and their reconstructions."""
        encoding = chain.bottleneck(run_stages(chain.encoder[self.encoder :], values[0]), noise)
        start = values[1] if self.decoder else encoding.latents
        return encoding, run_stages(chain.decoder[self.decoder :], start)


@dataclass(frozen=True)
class Boundary:
    """A cut that may be stored, the name of the stage before it, and the bytes of an image there."""

    cut: Cut
    stage: str
    num_bytes: int


@torch.no_grad()
def boundaries(autoencoder: Autoencoder, image: Tensor, *, sampled: bool) -> list[Boundary]:
    """Where the output of the frozen start can be stored, the deepest last; empty where nothing is frozen there.

    ``image``: any one, (1, C, H, W). ``sampled``: the decoder is given samples of a posterior, if there is one.
    """
    chain = autoencoder.chain
    if chain is None:
        return []
    frozen, found = _frozen_start(autoencoder, chain), []
    x = autoencoder.to_range(image)
    for i, stage in enumerate(chain.encoder[: frozen.encoder], start=1):
        x = run_stages([stage], x)
        found.append((Cut(i), stage, [x]))
    if frozen.decoder:
        encoding = chain.bottleneck(x, None)
        y = encoding.latents
        for i, stage in enumerate(chain.decoder[: frozen.decoder], start=1):
            y = run_stages([stage], y)
            if stage.run is not None and (encoding.posterior is None or not sampled):
                found.append((Cut(len(chain.encoder), i), stage, [x, y]))
    laid = [(cut, stage.name, [Layout.of(value) for value in values]) for cut, stage, values in found]
    return [Boundary(cut, name, sum(its.num_bytes for its in of if its)) for cut, name, of in laid if all(of)]


def is_frozen_at_start(autoencoder: Autoencoder) -> bool:
    """Whether the first stage is frozen."""
    return autoencoder.stages[0] not in autoencoder.trainable_stages()


def _frozen_start(autoencoder: Autoencoder, chain: StageChain) -> Cut:
    trained = autoencoder.trainable_stages()

    def leading(stages: Sequence[Stage]) -> int:
        return next((i for i, stage in enumerate(stages) if stage in trained), len(stages))

    encoder = leading(chain.encoder)
    whole = encoder == len(chain.encoder) and chain.codebook not in trained
    return Cut(encoder, leading(chain.decoder) if whole else 0)


class Prefix:
    """What runs a model on batches, with its frozen start from the store where that is possible.

    Args:
        boundary: what is stored; None for nothing.
        budget: bytes of all stores of this machine together.
        circumstances: plain values: all that the stored numbers depend on beside stages and images.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        boundary: Boundary | None = None,
        *,
        budget: int = 0,
        circumstances: Sequence[Any] = (),
    ) -> None:
        self._autoencoder, self._boundary, self._budget = autoencoder, boundary, budget
        self._circumstances = circumstances
        self._of_stages: str | None = None
        self._stores: dict[str, PrefixStore] = {}  # by the images
        self._trusted = False

    def run(self, inputs: Tensor, batch: Batch, noise: NoiseFn | None = None) -> tuple[Encoding, Tensor]:
        """What ``encode`` and ``decode`` of the model give for a batch, whose ``inputs`` are in its range here."""
        autoencoder = self._autoencoder
        if self._boundary is None or not batch.rows:
            encoding = autoencoder.encode(inputs, batch.labels, noise)
            return encoding, autoencoder.decode(encoding.latents, batch.labels)
        assert autoencoder.chain is not None
        cut = self._boundary.cut
        return cut.behind(autoencoder.chain, self._values(inputs, batch, cut), noise)

    def _values(self, inputs: Tensor, batch: Batch, cut: Cut) -> Values:
        parts = [(rows, torch.from_numpy(rows.numbers)) for rows in batch.rows if len(rows.numbers)]
        stores = [self._store(rows) for rows, _ in parts]
        found = [s for s, (_, numbers) in zip(stores, parts, strict=True) if s is not None and s.filled(numbers).all()]
        if len(found) < len(parts):
            values = self._computed(inputs, cut)
            self._keep(parts, stores, values)
            return values
        read = [store.read(numbers) for store, (_, numbers) in zip(found, parts, strict=True)]
        rows = read[0] if len(read) == 1 else [torch.cat(its) for its in zip(*read, strict=True)]
        layouts = found[0].layouts
        stored = tuple(layout.tensor(its) for layout, its in zip(layouts, rows, strict=True))
        if self._trusted:
            return tuple(value.to(inputs.device) for value in stored)
        values = self._computed(inputs, cut)
        same = all(
            layout == Layout.of(value) and torch.equal(layout.rows(value), its)
            for layout, value, its in zip(layouts, values, rows, strict=True)
        )
        self._trusted = same
        if not same:
            self._give_up(found)
        return values

    @torch.no_grad()
    def _computed(self, inputs: Tensor, cut: Cut) -> Values:
        assert self._autoencoder.chain is not None
        return cut.before(self._autoencoder.chain, inputs)

    def _keep(self, parts: Sequence[tuple[Rows, Tensor]], stores: Sequence[PrefixStore | None], values: Values) -> None:
        """Store what was computed, and see whether it is what others have stored before."""
        layouts = [Layout.of(value) for value in values]
        rows = [layout.rows(value) for layout, value in zip(layouts, values, strict=True) if layout is not None]
        start = 0
        for (its, numbers), found in zip(parts, stores, strict=True):
            own = [part[start : start + len(numbers)] for part in rows]
            start += len(numbers)
            store = found or self._create(its, [layout for layout in layouts if layout is not None])
            if store is None:
                return
            filled = store.filled(numbers)
            if filled.any():
                before = filled.nonzero().squeeze(1)
                theirs = store.read(numbers[before])
                if not all(torch.equal(a.index_select(0, before), b) for a, b in zip(own, theirs, strict=True)):
                    return self._give_up([store])
            new = (~filled).nonzero().squeeze(1)
            store.write(numbers[new], [part.index_select(0, new) for part in own])

    # ------------------------------------------------------------------------------------------ the stores

    def _store(self, rows: Rows) -> PrefixStore | None:
        if rows.key not in self._stores:
            found = prefix_store.find(self._key(rows))
            if found is not None:
                self._stores[rows.key] = found
        return self._stores.get(rows.key)

    def _create(self, rows: Rows, layouts: Sequence[Layout]) -> PrefixStore | None:
        try:
            store = prefix_store.create(self._key(rows), rows.num_images, layouts, self._budget)
        except OSError as error:
            self._boundary = None
            logger.warning("no prefix is cached, which takes time alone: %s", error.strerror or error)
            return None
        self._stores[rows.key] = store
        return store

    def _give_up(self, stores: Sequence[PrefixStore]) -> None:
        """What is stored is not what is computed here: it is removed, and nothing more is stored."""
        self._boundary = None
        for store in stores:
            logger.warning("the cached prefix %s is not what is computed here, and is not used", store.folder)
            shutil.rmtree(store.folder, ignore_errors=True)
        self._stores.clear()

    def _key(self, rows: Rows) -> str:
        assert self._boundary is not None
        assert self._autoencoder.chain is not None
        if self._of_stages is None:
            chain = self._autoencoder.chain
            stages = [_state_digest(stage) for stage in self._boundary.cut.stages(chain)]
            cut = [self._boundary.cut.encoder, self._boundary.cut.decoder]
            self._of_stages = digest([FORMAT, cut, stages, list(self._circumstances), _machine()])
        return digest([self._of_stages, rows.key, rows.num_images])


def _state_digest(stage: Stage) -> str:
    """Of all that its modules are and hold, in the memory format that the last digits depend on."""
    found = hashlib.blake2b(repr((stage.name, stage.modules)).encode(), digest_size=16)
    for module in stage.modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def _machine() -> list[str]:
    """What the last digits depend on, and the start of the system: its crash may lose what was written."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    gpu = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = torch.backends.cpu.get_cpu_capability()
    booted = boot.read_text().strip() if boot.exists() else ""
    return [platform.node(), platform.processor(), capability, torch.__version__, *gpu, booted, str(os.cpu_count())]
