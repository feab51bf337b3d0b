"""Runs a model with the features of its frozen start taken from a store: for all epochs, trials and searches.

What frozen stages compute from an image depends on the image alone. These features are stored when a batch first
needs them, and read from then on: the encoded images, never a sample of their posterior, and what frozen decoder
stages make of the mode. The numbers of a run stay the same to the last bit.
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

from ftae.engine.data.batches import Batch, ImageIds
from ftae.engine.data.stores.folder import digest
from ftae.engine.frozen_cache import store as feature_store
from ftae.engine.frozen_cache.store import FeatureStore, Layout
from ftae.engine.models.autoencoder import Autoencoder, Encoding, NoiseFn, StageChain
from ftae.engine.models.staged_model import Stage, run_stages

logger = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when the same stages would be stored in another way
Features = tuple[Tensor, ...]  # the encoded images; and behind decoder stages also what these make of them


@dataclass(frozen=True)
class SplitPoint:
    """A place in a chain of stages: after its first ``encoder`` stages, and then after its first ``decoder`` stages.

    If ``decoder`` is above 0, ``encoder`` counts all stages of the encoder.
    """

    encoder: int
    decoder: int = 0

    def stages_before(self, chain: StageChain) -> list[Stage]:
        codebook = [chain.codebook] if self.decoder and chain.codebook is not None else []
        return [*chain.encoder[: self.encoder], *codebook, *chain.decoder[: self.decoder]]

    def run_before(self, chain: StageChain, images: Tensor) -> Features:
        """The features that the stages before the point compute from images in the model's range."""
        encoded = run_stages(chain.encoder[: self.encoder], images)
        if not self.decoder:
            return (encoded,)
        return encoded, run_stages(chain.decoder[: self.decoder], chain.bottleneck(encoded, None).latents)

    def run_after(self, chain: StageChain, features: Features, noise: NoiseFn | None) -> tuple[Encoding, Tensor]:
        """The encoding and the reconstructions that the stages after the point compute from features."""
        encoding = chain.bottleneck(run_stages(chain.encoder[self.encoder :], features[0]), noise)
        start = features[1] if self.decoder else encoding.latents
        return encoding, run_stages(chain.decoder[self.decoder :], start)


@dataclass(frozen=True)
class CachePoint:
    """A split point whose features can be stored, and the name of the stage before it."""

    split: SplitPoint
    stage: str
    bytes_per_image: int


@torch.no_grad()
def cache_points(autoencoder: Autoencoder, image: Tensor, *, sampled: bool) -> list[CachePoint]:
    """The points at which features of the frozen start can be stored, the deepest last.

    Args:
        image: any image, (1, C, H, W).
        sampled: whether the decoder is given samples of the posterior, where there is one: what it computes from
            them is not stored.
    """
    chain = autoencoder.chain
    if chain is None:
        return []
    frozen = _frozen_start(autoencoder, chain)
    found: list[tuple[SplitPoint, Stage, list[Tensor]]] = []
    x = autoencoder.to_range(image)
    for i, stage in enumerate(chain.encoder[: frozen.encoder], start=1):
        x = run_stages([stage], x)
        found.append((SplitPoint(i), stage, [x]))
    if frozen.decoder:
        encoding = chain.bottleneck(x, None)
        y = encoding.latents
        for i, stage in enumerate(chain.decoder[: frozen.decoder], start=1):
            y = run_stages([stage], y)
            if stage.run is not None and (encoding.posterior is None or not sampled):
                found.append((SplitPoint(len(chain.encoder), i), stage, [x, y]))
    points = []
    for split, stage, features in found:
        layouts = [Layout.of(feature) for feature in features]
        if all(layouts):
            points.append(CachePoint(split, stage.name, sum(layout.num_bytes for layout in layouts if layout)))
    return points


def is_frozen_at_start(autoencoder: Autoencoder) -> bool:
    """Whether the first stage is frozen."""
    return autoencoder.stages[0] not in autoencoder.trainable_stages()


def _frozen_start(autoencoder: Autoencoder, chain: StageChain) -> SplitPoint:
    trained = autoencoder.trainable_stages()

    def num_leading(stages: Sequence[Stage]) -> int:
        return next((i for i, stage in enumerate(stages) if stage in trained), len(stages))

    encoder = num_leading(chain.encoder)
    is_whole = encoder == len(chain.encoder) and chain.codebook not in trained
    return SplitPoint(encoder, num_leading(chain.decoder) if is_whole else 0)


class FrozenFeatureCache:
    """Runs a model on batches, with the features of its frozen start from the store where possible.

    The first batch whose features are all in the store is computed as well: if the two differ, the store is removed
    and the model runs as a whole from then on.

    Args:
        point: where the features are stored; None for no store.
        budget: bytes that all stores of this machine may take together.
        conditions: plain values: all that the numbers stored depend on beside stages and images.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        point: CachePoint | None = None,
        *,
        budget: int = 0,
        conditions: Sequence[Any] = (),
    ) -> None:
        self._autoencoder, self._point, self._budget = autoencoder, point, budget
        self._conditions = conditions
        self._stages_key: str | None = None
        self._stores: dict[str, FeatureStore] = {}  # by the key of the images
        self._verified = False

    def run(self, inputs: Tensor, batch: Batch, noise: NoiseFn | None = None) -> tuple[Encoding, Tensor]:
        """What ``Autoencoder.run`` returns for a batch, whose ``inputs`` are in the model's range here."""
        autoencoder = self._autoencoder
        if self._point is None or not batch.ids:
            return autoencoder.run(inputs, batch.labels, noise)
        assert autoencoder.chain is not None
        split = self._point.split
        return split.run_after(autoencoder.chain, self._features(inputs, batch, split), noise)

    def _features(self, inputs: Tensor, batch: Batch, split: SplitPoint) -> Features:
        parts = [(ids, torch.from_numpy(ids.positions)) for ids in batch.ids if len(ids.positions)]
        stores = [self._store(ids) for ids, _ in parts]
        filled = [s for s, (_, places) in zip(stores, parts, strict=True) if s is not None and s.filled(places).all()]
        if len(filled) < len(parts):
            features = self._compute(inputs, split)
            self._keep(parts, stores, features)
            return features
        read = [store.read(places) for store, (_, places) in zip(filled, parts, strict=True)]
        rows = read[0] if len(read) == 1 else [torch.cat(pieces) for pieces in zip(*read, strict=True)]
        layouts = filled[0].layouts
        if self._verified:
            stored = (layout.tensor(its) for layout, its in zip(layouts, rows, strict=True))
            return tuple(feature.to(inputs.device) for feature in stored)
        features = self._compute(inputs, split)
        self._verified = all(
            layout == Layout.of(feature) and torch.equal(layout.rows(feature), its)
            for layout, feature, its in zip(layouts, features, rows, strict=True)
        )
        if not self._verified:
            self._give_up(filled)
        return features

    @torch.no_grad()
    def _compute(self, inputs: Tensor, split: SplitPoint) -> Features:
        assert self._autoencoder.chain is not None
        return split.run_before(self._autoencoder.chain, inputs)

    def _keep(
        self,
        parts: Sequence[tuple[ImageIds, Tensor]],
        stores: Sequence[FeatureStore | None],
        features: Features,
    ) -> None:
        """Store features just computed, and compare them with those of the same images that are stored already."""
        layouts = [Layout.of(feature) for feature in features]
        rows = [layout.rows(feature) for layout, feature in zip(layouts, features, strict=True) if layout is not None]
        start = 0
        for (ids, places), found in zip(parts, stores, strict=True):
            own = [tensor[start : start + len(places)] for tensor in rows]
            start += len(places)
            store = found or self._create(ids, [layout for layout in layouts if layout is not None])
            if store is None:
                return
            filled = store.filled(places)
            if filled.any():
                before = filled.nonzero().squeeze(1)
                stored = store.read(places[before])
                if not all(torch.equal(a.index_select(0, before), b) for a, b in zip(own, stored, strict=True)):
                    return self._give_up([store])
            new = (~filled).nonzero().squeeze(1)
            store.write(places[new], [tensor.index_select(0, new) for tensor in own])

    # ------------------------------------------------------------------------------------------ the stores

    def _store(self, ids: ImageIds) -> FeatureStore | None:
        if ids.key not in self._stores:
            found = feature_store.find(self._key(ids))
            if found is not None:
                self._stores[ids.key] = found
        return self._stores.get(ids.key)

    def _create(self, ids: ImageIds, layouts: Sequence[Layout]) -> FeatureStore | None:
        try:
            store = feature_store.create(self._key(ids), ids.num_images, layouts, self._budget)
        except OSError as error:
            self._point = None
            logger.warning("frozen features are not cached, which only costs time: %s", error.strerror or error)
            return None
        self._stores[ids.key] = store
        return store

    def _give_up(self, stores: Sequence[FeatureStore]) -> None:
        """Stored features differ from computed ones: remove them, and store nothing more."""
        self._point = None
        for store in stores:
            logger.warning("the cached features in %s differ from computed ones and are removed", store.folder)
            shutil.rmtree(store.folder, ignore_errors=True)
        self._stores.clear()

    def _key(self, ids: ImageIds) -> str:
        assert self._point is not None
        assert self._autoencoder.chain is not None
        if self._stages_key is None:
            split = self._point.split
            stages = [_state_digest(stage) for stage in split.stages_before(self._autoencoder.chain)]
            place = [split.encoder, split.decoder]
            self._stages_key = digest([FORMAT, place, stages, list(self._conditions), _machine()])
        return digest([self._stages_key, ids.key, ids.num_images])


def _state_digest(stage: Stage) -> str:
    """Depends on the structure and state of a stage, and on the memory format, which the last digits depend on."""
    found = hashlib.blake2b(repr((stage.name, stage.modules)).encode(), digest_size=16)
    for module in stage.modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def _machine() -> list[str]:
    """What the last digits depend on; and the boot of the system: a crash may have lost what was written before it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    gpu = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = torch.backends.cpu.get_cpu_capability()
    booted = boot.read_text().strip() if boot.exists() else ""
    return [platform.node(), platform.processor(), capability, torch.__version__, *gpu, booted, str(os.cpu_count())]
