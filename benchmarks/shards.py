"""What images cost that lie in shards: the first start of a search, against the same images as files.

    python -m benchmarks.shards [--images N] [--shards N] [--json FILE]

The images, small JPEGs, are decoded from a folder, from tar files on the disk, and from these tar files on an S3 server
on this machine, which answers from a process of its own; each in a new process, with a new cache. Times are those of
``load_dataset``: listing or indexing, fingerprint, decoding. A row tells whether what was decoded, and the losses of a
short training, are those of the folder to the bit.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.images import SPAWN, write_jpegs

SIDE, HELD_OUT, BUCKET = 32, 200, "benchmark"
Row = dict[str, Any]
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def write_shards(images: Path, shards: Path, number: int) -> None:
    """The files of a folder in tar files, each with a part of them in the order of names."""
    shards.mkdir()
    files = sorted(images.rglob("*.jpg"))
    for k in range(number):
        with tarfile.open(shards / f"{k:03d}.tar", "w") as tar:
            for file in files[k::number]:
                info, data = tarfile.TarInfo(str(file.relative_to(images))), file.read_bytes()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def upload(shards: Path) -> str:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for shard in shards.iterdir():
        client.upload_file(str(shard), BUCKET, shard.name)
    return f"s3://{BUCKET}"


def measure(source: str, train: str, cache: str) -> Row:
    """One row, in this process, which must be new."""
    os.environ["FTAE_CACHE"] = cache
    from ftae.engine.data.dataset import load_dataset
    from ftae.engine.training.loop import finetune
    from ftae.specs.finetune.run import FinetuneSpec

    data = {"source": source, "train": train, "val": HELD_OUT, "resolution": SIDE, "color": "rgb"}
    run = {"model": {"family": "conv_ae", "channels": 8}, "data": data, "losses": {"mse": 1.0}, "metrics": ["psnr"]}
    fixed = {"optimizer": {"lr": 1e-3}, "batch_size": 16, "max_steps": 50, "num_evals": 2, "num_threads": 1}
    spec = FinetuneSpec.model_validate({**run, **fixed})
    begin = time.perf_counter()
    images = load_dataset(spec.data)
    seconds = time.perf_counter() - begin
    pixels = hashlib.blake2b(images.train.images).hexdigest() + hashlib.blake2b(images.val.images).hexdigest()
    losses = [report.metrics for report in finetune(spec, Path(cache) / "run")]
    return {"seconds": seconds, "images": len(images.train) + len(images.val), "pixels": pixels, "losses": losses}


def rows(work: Path, count: int, num_shards: int) -> dict[str, Row]:
    write_jpegs(work / "images", count)
    write_shards(work / "images", work / "shards", num_shards)
    places = {"files": str(work / "images"), "tar": str(work / "shards"), "tar on S3": upload(work / "shards")}
    found = {}
    for name, place in places.items():
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            source = "image_folder" if name == "files" else "shards"
            found[name] = pool.submit(measure, source, place, str(work / f"cache of {name}")).result()
    return found


def table(found: dict[str, Row]) -> Table:
    shown = Table("images in", "first start, s", "images/s", "ratio", "same pixels", "same losses")
    files = found["files"]
    for name, row in found.items():
        same = [str(row[key] == files[key]).lower() for key in ("pixels", "losses")]
        rate = row["images"] / row["seconds"]
        shown.add_row(name, f"{row['seconds']:.1f}", f"{rate:,.0f}", f"{row['seconds'] / files['seconds']:.2f}", *same)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    given = parser.parse_args()
    command = [sys.executable, "-c", SERVER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:
        assert server.stdout is not None
        host, port = server.stdout.readline().split()
        asked = {
            "ENDPOINT_URL": f"http://{host}:{port}",
            "ACCESS_KEY_ID": "benchmark",
            "SECRET_ACCESS_KEY": "benchmark",
        }
        os.environ |= {f"AWS_{name}": value for name, value in {**asked, "DEFAULT_REGION": "us-east-1"}.items()}
        with tempfile.TemporaryDirectory(prefix="ftae-benchmark-") as folder:
            found = rows(Path(folder), given.images, given.shards)
    Console(width=120).print(table(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
