"""Several workers of one run as processes of this machine, without a cluster."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from ftae.engine.process import device_of, keep_freed_memory
from ftae.engine.tasks import check_workers
from ftae.engine.training.distributed import ALONE, Follower, Group, leading
from ftae.engine.training.loop import follow
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

HOST = "127.0.0.1"


@contextmanager
def local_workers(spec: FinetuneSpec, size: int) -> Iterator[Group]:
    """This process and ``size - 1`` new ones, each with its own GPU, or with its share of the CPU cores.

    Raises:
        FtaeError: several workers cannot train the task or share a batch evenly, or there are too few GPUs.
    """
    if size == 1:
        yield ALONE
        return
    check_workers(spec, size)
    if spec.batch_size % size:
        raise FtaeError(f"{size} workers cannot share batch_size {spec.batch_size} evenly; use a multiple of {size}")
    if device_of(spec).type == "cuda" and torch.cuda.device_count() < size:
        raise FtaeError(f"{size} workers need a GPU each, torch sees {torch.cuda.device_count()} here")
    threads = torch.get_num_threads()
    _share_cores(size)
    try:
        with leading(size, HOST, lambda leader: _Processes(spec, size, leader)) as group:
            yield group
    finally:
        torch.set_num_threads(threads)


class _Processes:
    """The processes of ranks 1 to ``size - 1``."""

    def __init__(self, spec: FinetuneSpec, size: int, leader: tuple[str, int]) -> None:
        self._running: dict[Connection, BaseProcess] = {}
        self._failures: list[Exception] = []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ftae.engine.training.loop"])  # imported once for all processes
        for rank in range(1, size):
            reason, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_follow, args=(spec, rank, size, leader, sender), name=f"worker {rank}", daemon=True
            )
            process.start()
            sender.close()
            self._running[reason] = process
        self._processes = list(self._running.values())

    def failures(self) -> list[Exception]:
        for reason in wait(self._running, timeout=0.0 if self._failures else None):
            assert isinstance(reason, Connection)
            self._failures.append(_failure(self._running.pop(reason), reason))
        return self._failures

    def stop(self) -> None:
        for process in self._processes:
            process.kill()


def _failure(process: BaseProcess, reason: Connection) -> Exception:
    try:
        error: Exception = reason.recv()
    except EOFError:
        process.join()
        status = process.exitcode or 0
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return FtaeError(f"{process.name} ended by {how}; continue from the last checkpoint with --resume")
    return error


def _follow(spec: FinetuneSpec, rank: int, size: int, leader: tuple[str, int], reason: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by rank 0, which ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _share_cores(size)
    if device_of(spec).type == "cuda":
        torch.cuda.set_device(rank)
    keep_freed_memory()
    try:
        with redirect_stdout(sys.stderr):  # a user's own module may print
            follow(spec, Follower(rank, size, leader, HOST))
    except (FtaeError, OSError, RuntimeError) as error:
        with suppress(BrokenPipeError):  # rank 0 itself is gone
            reason.send(error)


def _end_with_parent() -> None:
    """End this process as soon as its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def with_shared_cores(spec: FinetuneSpec, size: int) -> FinetuneSpec:
    """``spec`` with the number of threads of each of ``size`` workers, on which the last digits of results depend."""
    if size == 1 or spec.num_threads is not None:
        return spec
    return spec.model_copy(update={"num_threads": _share_of_cores(size)})


def _share_cores(size: int) -> None:
    torch.set_num_threads(_share_of_cores(size))


def _share_of_cores(size: int) -> int:
    return max(1, torch.get_num_threads() // size)
