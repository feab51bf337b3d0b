"""What cached features of frozen stages save: training steps and evaluations, with the cache and without.

    python -m benchmarks.frozen_cache [--pretrained FOLDER] [--images FOLDER] [--depths N ...] [--json FILE]

Trains an AutoencoderKL whose first stages are frozen: its encoder, and then more and more of its decoder; on
samples of the posterior and on its mode. By default the model is Stable Diffusion's in small, of random weights, and
the images are patches of scikit-learn's photographs. In one process and on one thread, the sides take steps in turns,
and are evaluated in turns; figures are medians. The weights of both must be the same to the last bit in the end.
How much of the decoder is frozen is told by the time that its stages take forward: the late ones take most of it.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ftae.engine.data.batches import val_batches
from ftae.engine.models.staged_model import run_stages
from ftae.engine.training.evaluator import evaluate_all
from ftae.engine.training.trainer import Trainer
from ftae.specs.finetune.run import FinetuneSpec

SIDES = ("without", "with")
SHARE_ROUNDS = 9  # of each stage of the decoder by itself


def random_model(folder: Path) -> str:
    """Stable Diffusion's AutoencoderKL at a quarter of its width: 16 stages, of which 8 are the encoder's."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=16,
    ).save_pretrained(folder)
    return str(folder)


def spec_of(given: argparse.Namespace, pretrained: str, depth: int, sampled: bool, cached: bool) -> FinetuneSpec:
    data: dict[str, Any] = {"source": "photos", "num_patches": 200}
    if given.images is not None:
        data = {"source": "image_folder", "train": str(given.images), "val": 0.2}
    return FinetuneSpec.model_validate(
        {
            "model": {"family": "autoencoder_kl", "pretrained": pretrained},
            "data": {**data, "resolution": given.resolution},
            "freeze_depth": depth,
            "losses": {"mse": 1.0},
            "optimizer": {"lr": 1e-4},
            "batch_size": given.batch_size,
            "max_steps": 1_000_000,
            "metrics": ["psnr"],
            "sample_posterior": sampled,
            "device": given.device,
            "num_threads": 1,
            "frozen_cache_gb": 4.0 if cached else 0.0,
        }
    )


def seconds(action: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def frozen_share(training: Trainer) -> float:
    """Of the time that the decoder takes forward on a batch, that of its frozen stages."""
    autoencoder, spec = training.autoencoder, training.spec
    assert autoencoder.chain is not None
    batch = next(val_batches(training.data.val, spec.data, batch_size=spec.batch_size, device=training.device))
    x = autoencoder.encode(autoencoder.to_range(batch.images)).latents
    trained, taken = autoencoder.trainable_stages(), {True: 0.0, False: 0.0}
    for stage in autoencoder.chain.decoder:
        taken[stage in trained] += median(
            seconds(partial(run_stages, [stage], x), training.device) for _ in range(SHARE_ROUNDS)
        )
        x = run_stages([stage], x)
    return taken[False] / sum(taken.values())


def measured(given: argparse.Namespace, pretrained: str, depth: int, sampled: bool) -> dict[str, Any]:
    """Medians of both sides, in milliseconds: of a step, and of an evaluation per batch."""
    sides = {side: Trainer(spec_of(given, pretrained, depth, sampled, side == "with")) for side in SIDES}
    times: dict[str, list[float]] = {f"{what} {side}": [] for what in ("step", "evaluation") for side in SIDES}
    for training in sides.values():
        torch.manual_seed(0)
        # Every image once, and the batches that are compared: all is stored then.
        training.train_to(2 + len(training.data.train) // given.batch_size)
        evaluate_all(training.eval_sets)
        evaluate_all(training.eval_sets)
    for number in range(given.steps):
        for side, training in sides.items():
            torch.manual_seed(number)
            times[f"step {side}"].append(seconds(training.train_step, training.device))
    for _ in range(given.evaluations):
        for side, training in sides.items():
            taken = seconds(partial(evaluate_all, training.eval_sets), training.device)
            times[f"evaluation {side}"].append(taken / -(-len(training.data.val) // given.batch_size))
    weights = [training.autoencoder.state_dict() for training in sides.values()]
    row: dict[str, Any] = {name: 1000.0 * median(values) for name, values in times.items()}
    return row | {
        "freeze_depth": depth,
        "decoder_share": frozen_share(sides["without"]),
        "sampled": sampled,
        "same": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
        "seconds": times,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(
        *("frozen stages", "share of the decoder", "decodes", "step, ms", "cached", "gain"),
        *("evaluated batch, ms", "cached", "gain", "same"),
    )
    for row in rows:
        cells = [str(row["freeze_depth"]), f"{row['decoder_share']:.0%}", "samples" if row["sampled"] else "the mode"]
        for what in ("step", "evaluation"):
            without, cached = row[f"{what} without"], row[f"{what} with"]
            cells += [f"{without:.1f}", f"{cached:.1f}", f"{without / cached:.2f}x"]
        shown.add_row(*cells, "yes" if row["same"] else "NO")
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, help="an AutoencoderKL, as diffusers saves it")
    parser.add_argument("--images", type=Path, help="a folder of them")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 10, 12, 13])
    parser.add_argument("--steps", type=int, default=15, help="of each side, at least 5")
    parser.add_argument("--evaluations", type=int, default=5, help="of each side, at least 5")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    given = parser.parse_args()
    for name in ("steps", "evaluations"):
        if getattr(given, name) < 5:
            parser.error(f"--{name} must be at least 5, got {getattr(given, name)}")
    return given


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
        os.environ["FTAE_CACHE"] = f"{folder}/cache"
        pretrained = str(given.pretrained) if given.pretrained else random_model(Path(folder) / "model")
        rows = [measured(given, pretrained, depth, sampled) for depth in given.depths for sampled in (True, False)]
    Console(width=130).print(table(rows))
    if given.json is not None:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
        given.json.write_text(json.dumps(machine | vars(given) | {"rows": rows}, indent=2, default=str))


if __name__ == "__main__":
    main()
