"""What a folder of very many files costs before training: seconds, and the most memory that a process takes.

    python -m benchmarks.listing [--files N] [--folder FOLDER] [--json FILE]

Makes the files in a new folder below FOLDER (/dev/shm is a RAM disk) and removes them again. Each row is measured in a
new process: listing the folder; the first start, which reads all bytes for the fingerprint; and the next start, which
asks for size and times of each file. Imports are no part of the seconds; ``process, MB`` is what the process had after
them.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.images import write_jpegs

CLASSES = 1000
Row = dict[str, Any]


def write_files(folder: Path, count: int) -> None:
    """Copies of one small JPEG in 1,000 classes; each has its own bytes, as its number follows the image."""
    write_jpegs(folder / "one", 1)
    (jpeg,) = (folder / "one").rglob("*.jpg")
    content = jpeg.read_bytes()
    shutil.rmtree(folder / "one")
    for number in range(min(CLASSES, count)):
        (folder / f"class-{number:04d}").mkdir()
    for number in range(count):
        name = f"class-{number % CLASSES:04d}/image-{number:08d}.jpg"
        (folder / name).write_bytes(content + str(number).encode())


def list_only(folder: Path) -> Row:
    from ftae.engine.data.files.listing import list_images

    return measured(lambda: list_images(folder))


def start(folder: Path) -> Row:
    from ftae.engine.data.files.listing import list_images
    from ftae.engine.data.source_base import shuffled
    from ftae.engine.data.survey import survey_folder

    def work() -> None:
        files = list_images(folder)
        survey_folder(files)
        shuffled(files.names)

    return measured(work)


def measured(work: Callable[[], Any]) -> Row:
    before, begin = _peak_mb(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begin, "process_mb": before, "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def rows(folder: Path, cache: Path) -> Iterator[Row]:
    os.environ["FTAE_CACHE"] = str(cache)
    for name, work in (("listing", list_only), ("first start", start), ("next start", start)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield {"what": name, **pool.submit(work, folder).result()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of listing very many files.")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        images = Path(work) / "images"
        images.mkdir()
        write_files(images, options.files)
        found = list(rows(images, Path(work) / "cache"))
    table = Table(f"of {options.files:,} files", "seconds", "process, MB", "peak, MB")
    for row in found:
        table.add_row(row["what"], f"{row['seconds']:.1f}", f"{row['process_mb']:,.0f}", f"{row['peak_mb']:,.0f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"files": options.files, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
