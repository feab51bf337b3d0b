"""What the images of a search cost, beside what they cost a script.

    python -m benchmarks.data [--images FOLDER] [--resolution N] [--processes N] [--json FILE]

Three tables. Epochs: files decoded and images per second with nothing in the cache, later on, and in the next
search; and of torchvision's ImageFolder in a DataLoader, which decodes every image in every epoch. A node: so many
processes at once on an empty cache, what they decode in all, and their memory. Steps: the share of a training step
for which the model waits for its batch. Every row is measured in a new process, on one thread; times are medians.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.images import SPAWN, Decoded, endless, one_thread, pss, script_loader, write_jpegs, write_pngs
from ftae.engine.data.batches import Batch, train_batch
from ftae.engine.data.dataset import Dataset, load_dataset
from ftae.engine.models.families import build_model
from ftae.engine.tasks.task import build_optimizer
from ftae.engine.training import trainer as training
from ftae.engine.training.trainer import Trainer
from ftae.specs.finetune.run import FinetuneSpec

EPOCHS = 6  # the first is not as the others
WINDOWS = 5
BATCH_SIZE = 32
Row = dict[str, Any]

decoded: Decoded
at_once: Barrier


def run(function: Callable[..., Any], *arguments: Any, counter: Decoded, processes: int = 1) -> list[Any]:
    """What ``function`` returns in each of so many new processes at once."""
    shared = (counter, SPAWN.Barrier(processes))
    with ProcessPoolExecutor(processes, mp_context=SPAWN, initializer=_begin, initargs=shared) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for _ in range(processes)]]


def _begin(counter: Decoded, barrier: Barrier) -> None:
    global decoded, at_once
    decoded, at_once = counter, barrier
    decoded.watch()
    one_thread()


def spec_of(folder: Path, resolution: int, **fields: Any) -> FinetuneSpec:
    data = {"source": "image_folder", "train": str(folder), "resolution": resolution, "flip": True}
    run = {"losses": {"mse": 1.0, "kl": 1e-6}, "optimizer": {"name": "adamw", "lr": 1e-4}, "max_steps": 10_000}
    return FinetuneSpec.model_validate(
        {"model": {"family": "conv_vae"}, "data": data, "batch_size": BATCH_SIZE, "num_threads": 1} | run | fields
    )


# --------------------------------------------------------------------------------------------- epochs


def of_ftae(spec: FinetuneSpec) -> tuple[float, list[tuple[int, float]]]:
    """Seconds until the images are there, and the images and seconds of every epoch."""
    begin = time.perf_counter()
    data = load_dataset(spec.data)
    ready = time.perf_counter() - begin
    return ready, [_drawn(batch.images for batch in _epoch(spec, data, epoch)) for epoch in range(EPOCHS)]


def _epoch(spec: FinetuneSpec, data: Dataset, epoch: int) -> Iterator[Batch]:
    batches = len(data.train) // spec.batch_size
    for number in range(epoch * batches, (epoch + 1) * batches):
        yield train_batch(data.train, spec.data, batch_size=spec.batch_size, batch=number, seed=spec.seed, device="cpu")


def of_script(spec: FinetuneSpec, folder: Path, workers: int) -> tuple[float, list[tuple[int, float]]]:
    import torchvision  # noqa: F401  # takes seconds, which are no part of reading images

    begin = time.perf_counter()
    loader = script_loader(folder, spec.data, spec.batch_size, workers, decoded)
    ready = time.perf_counter() - begin
    return ready, [_drawn(images for images, _ in loader) for _ in range(EPOCHS)]


def _drawn(batches: Iterable[Tensor]) -> tuple[int, float]:
    """How many images there are in batches of them, and the seconds that they took."""
    begin = time.perf_counter()
    count = sum(len(images) for images in batches)
    return count, time.perf_counter() - begin


def epochs(folder: Path, resolution: int, counter: Decoded) -> Iterator[Row]:
    """The speed of the first epoch includes what it takes until the images are there."""
    spec = spec_of(folder, resolution)
    ways = [("ftae, first search", of_ftae, (spec,)), ("ftae, next search", of_ftae, (spec,))]
    ways += [(f"script, {n} workers", of_script, (spec, folder, n)) for n in (0, 2)]
    for name, way, arguments in ways:
        ((ready, drawn),) = run(way, *arguments, counter=counter)
        (first, seconds), *later = drawn
        yield {
            "who": name,
            "ready_seconds": ready,
            "first_epoch_images_per_second": first / (ready + seconds),
            "images_per_second": statistics.median(images / taken for images, taken in later),
            "epochs": EPOCHS,
        } | counter.take()


# --------------------------------------------------------------------------------------------- a node


def of_worker(spec: FinetuneSpec) -> dict[str, int]:
    """Memory of this process with a model that has been trained a step, and then with the images of an epoch."""
    model = build_model(spec, None)
    optimizer = build_optimizer(model, spec.optimizer)
    images = torch.rand(spec.batch_size, spec.data.channels, spec.data.resolution, spec.data.resolution)
    encoding = model.encode(model.to_range(images), None)
    mse_loss(model.decode(encoding.latents, None), images).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    at_once.wait()
    before = pss()
    at_once.wait()
    data = load_dataset(spec.data)
    _drawn(batch.images for batch in _epoch(spec, data, 0))
    assert data.train.images.sum() + data.val.images.sum() > 0  # every page has been seen
    at_once.wait()
    memory = {"before": before, "after": pss(), "images": pss("images.npy")}
    at_once.wait()
    return memory


def node(folder: Path, resolution: int, processes: int, counter: Decoded) -> Row:
    spec = spec_of(folder, resolution)
    begin = time.perf_counter()
    found = run(of_worker, spec, counter=counter, processes=processes)
    seconds = time.perf_counter() - begin
    total = {key: sum(its[key] for its in found) for key in found[0]}
    data = load_dataset(spec.data)
    one = data.train.images.nbytes + data.val.images.nbytes
    return {
        "processes": processes,
        "seconds": seconds,
        "array_mb": one / 1e6,
        "images_mb": total["images"] / 1e6,
        "models_mb": total["before"] / 1e6,
        "all_mb": total["after"] / 1e6,
        "all_over_models_and_one_array": total["after"] / (total["before"] + one),
    } | counter.take()


# ---------------------------------------------------------------------------------------------- steps


def of_steps(spec: FinetuneSpec, folder: Path | None, workers: int, steps: int) -> list[tuple[float, float]]:
    """Of every window of ``steps``: its seconds, and those of them that the batches took. ``folder``: a script's."""
    waited = 0.0
    make: Callable[..., Batch] = training.training_batch
    if folder is not None:
        batches = endless(script_loader(folder, spec.data, spec.batch_size, workers, decoded))
        make = lambda *_, **__: next(batches)  # noqa: E731

    def timed(*arguments: Any, **options: Any) -> Batch:
        nonlocal waited
        begin = time.perf_counter()
        batch = make(*arguments, **options)
        waited += time.perf_counter() - begin
        return batch

    training.training_batch = timed
    run = Trainer(spec)
    run.train_to(3)  # what comes first takes longer
    windows = []
    for _ in range(WINDOWS):
        waited, begin = 0.0, time.perf_counter()
        run.train_to(run.step + steps)
        windows.append((time.perf_counter() - begin, waited))
    return windows


def steps(jpegs: Path, folder: Path, counter: Decoded) -> Iterator[Row]:
    from diffusers import AutoencoderKL

    digits = spec_of(jpegs, 16, data={"source": "digits", "resolution": 16, "flip": True})
    write_pngs(folder / "digits", load_dataset(digits.data).train.images)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        norm_num_groups=16,
        sample_size=32,
    ).save_pretrained(folder / "kl")
    kl = spec_of(jpegs, 32, model={"family": "autoencoder_kl", "pretrained": str(folder / "kl")}, batch_size=16)
    cases = (("conv_vae, digits", digits, folder / "digits", 100), ("autoencoder_kl", kl, jpegs, 10))
    for name, spec, images, count in cases:
        ways = {"ftae": (None, 0), "script, 0 workers": (images, 0), "script, 2 workers": (images, 2)}
        for who, (source, workers) in ways.items():
            (windows,) = run(of_steps, spec, source, workers, count, counter=counter)
            yield {
                "model": f"{name}, {spec.data.resolution} px, batch {spec.batch_size}",
                "who": who,
                "step_ms": statistics.median(1000 * taken / count for taken, _ in windows),
                "wait_ms": statistics.median(1000 * waited / count for _, waited in windows),
                "wait_share": statistics.median(waited / taken for taken, waited in windows),
            }
    counter.take()


# --------------------------------------------------------------------------------------------- output


def tables(epochs: list[Row], nodes: list[Row], steps: list[Row]) -> Iterator[Table]:
    shown = Table("epochs of", "ready s", "first, images/s", "later, images/s", f"decoded in {EPOCHS} epochs", "MB")
    for row in epochs:
        speeds = [f"{row[key]:,.0f}" for key in ("first_epoch_images_per_second", "images_per_second", "decoded")]
        shown.add_row(row["who"], f"{row['ready_seconds']:.2f}", *speeds, f"{row['decoded_mb']:.2f}")
    yield shown
    keys = ("array_mb", "images_mb", "models_mb", "all_mb")
    shown = Table(
        "processes",
        "seconds",
        "decoded",
        "images, MB",
        "resident, MB",
        "models, MB",
        "all, MB",
        "all / (models + images)",
    )
    for row in nodes:
        memory = [f"{row[key]:,.0f}" for key in keys]
        ratio = f"{row['all_over_models_and_one_array']:.2f}"
        shown.add_row(str(row["processes"]), f"{row['seconds']:.1f}", f"{row['decoded']:,}", *memory, ratio)
    yield shown
    shown = Table("step of", "batches of", "step ms", "waits ms", "waits")
    for row in steps:
        shown.add_row(
            row["model"], row["who"], f"{row['step_ms']:.2f}", f"{row['wait_ms']:.3f}", f"{row['wait_share']:.1%}"
        )
    yield shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder with a sub-folder for each class, not 2,000 made ones")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def measure(given: argparse.Namespace, folder: Path) -> dict[str, list[Row]]:
    images: Path = given.images or folder / "jpegs"
    if given.images is None:
        write_jpegs(images, 2000)
    counter = Decoded()
    nodes = []
    for processes in (1, given.processes):
        os.environ["FTAE_CACHE"] = str(folder / f"cache-{processes}")
        nodes.append(node(images, given.resolution, processes, counter))
    os.environ["FTAE_CACHE"] = str(folder / "cache")
    return {
        "epochs": list(epochs(images, given.resolution, counter)),
        "nodes": nodes,
        "steps": list(steps(images, folder, counter)),
    }


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
        rows = measure(given, Path(folder))
    console = Console(width=140)
    for shown in tables(**rows):
        console.print(shown)
    if given.json is not None:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps(machine | vars(given) | rows, indent=2, default=str))


if __name__ == "__main__":
    main()
