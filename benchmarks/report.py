"""Sizes and seconds of a report, by the number of trials. Trials are made up; nothing is trained.

    python -m benchmarks.report [--trials N ...]

``processor`` are the seconds that the processor worked, which other processes of the machine do not lengthen.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from reporting.journals import search_of

from ftae.reporting.document import report_of
from ftae.wording import duration, size

TRIALS = [10, 1000, 10_000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS)
    sys.stdout.write(f"{'trials':>8}  {'journal':>8}  {'report':>8}  {'seconds':>9}  {'processor':>9}" + "\n")
    with tempfile.TemporaryDirectory() as folder:
        report_of(search_of(Path(folder) / "imports", 3).write())  # what is imported once is not counted
        for number in parser.parse_args().trials:
            store = search_of(Path(folder) / str(number), number).write()
            journal = (store.folder / "journal.jsonl").stat().st_size
            began, worked = time.perf_counter(), time.process_time()
            report = report_of(store)
            took = [duration(time.perf_counter() - began), duration(time.process_time() - worked)]
            sys.stdout.write(
                f"{number:>8}  {size(journal):>8}  {size(len(report)):>8}  {took[0]:>9}  {took[1]:>9}" + "\n"
            )


if __name__ == "__main__":
    main()
