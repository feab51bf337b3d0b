"""Replay: images of the domain a model comes from, mixed into its batches, so that it forgets less of that domain."""

import torch

from ftae.engine.batches import Batch, train_batch
from ftae.engine.data import Dataset
from ftae.specs.data import DataSpec
from ftae.specs.finetune import FinetuneSpec


def training_batch(
    data: Dataset,
    spec: DataSpec,
    *,
    batch_size: int,
    batch: int,
    seed: int,
    device: torch.device | str,
    rows: slice = slice(None),
) -> Batch:
    """As ``train_batch``, the last rows of it replayed: drawn in the same way, as their own spec has it, unlabelled."""
    num_replayed = 0 if spec.replay is None else spec.replay.rows(batch_size)
    if num_replayed == 0:
        return train_batch(data.train, spec, batch_size=batch_size, batch=batch, seed=seed, device=device, rows=rows)
    assert spec.replay is not None
    assert data.replay is not None
    num_own = batch_size - num_replayed
    start, stop, _ = rows.indices(batch_size)
    own = train_batch(
        data.train,
        spec,
        batch_size=num_own,
        batch=batch,
        seed=seed,
        device=device,
        rows=slice(min(start, num_own), min(stop, num_own)),
    )
    replayed = train_batch(
        data.replay.train,
        spec.replay,
        batch_size=num_replayed,
        batch=batch,
        seed=seed,
        device=device,
        rows=slice(max(start - num_own, 0), max(stop - num_own, 0)),
    )
    labels = None if own.labels is None else torch.cat([own.labels, own.labels.new_full((len(replayed.images),), -1)])
    known = own.rows + replayed.rows if own.rows and replayed.rows else ()
    images, inputs = torch.cat([own.images, replayed.images]), torch.cat([own.inputs, replayed.inputs])
    return Batch(images, inputs, labels, rows=known)


def source_spec(spec: FinetuneSpec) -> FinetuneSpec:
    """``spec`` with the replayed images in place of its own, and the metrics that these can have."""
    return spec.model_copy(update={"data": spec.data.replay, "metrics": spec.source_metrics()})
