"""Several processes that train one model: rank, collectives, and what such a model must not do."""

import fcntl
import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from ftae.errors import FtaeError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_rows_apart(model: nn.Module) -> None:
    """Refuse a model, in training mode, that mixes the images of a batch.

    Raises:
        FtaeError: it has batch normalisation or dropout that is trained.
    """
    for name, module in model.named_modules():
        draws = isinstance(module, DROPOUTS) and module.p > 0.0
        if module.training and (draws or isinstance(module, BATCH_NORMS)):
            raise FtaeError(_refusal(f"{name.removeprefix('net.')} ({type(module).__name__}) works on whole batches"))


class Buffers:
    """Those of a model, as they were: each process would move its own (the codebook of a VQ model, say)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def check(self) -> None:
        """Refuse a model whose buffers move.

        Raises:
            FtaeError: one has.
        """
        for name, buffer in self._model.named_buffers():
            if not torch.equal(buffer, self._before[name]):
                raise FtaeError(_refusal(f"the buffer {name.removeprefix('net.')} moves with the images it has seen"))


def _refusal(reason: str) -> str:
    return f"{reason}: several workers would not train as one does. Freeze its stage, or use one worker"


STEP_TIMEOUT = timedelta(minutes=10)  # for what all do at the same time

WORD_TIMEOUT = timedelta(days=30)  # followers wait while rank 0 evaluates; that it is gone they notice at once

POLL_SECONDS = 0.05

GRACE_SECONDS = 5.0

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"

SIOCGIFADDR = 0x8915  # Linux: the address of an interface


class Group:
    """The place of this process among those of a run.

    This class waits for no other: alone it costs nothing, and one of a larger ``size`` does its own share,
    as if the others did theirs, to try what that takes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process trains on."""
        assert batch_size % self.size == 0
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def randn_like(self, share: Tensor) -> Tensor:
        """Standard normal numbers for a share (B, ...): its rows of what one process draws for the whole batch."""
        if self.size == 1:
            return torch.randn_like(share)
        whole = torch.cat([share.detach()] * self.size)
        return torch.randn_like(whole)[self.rows(len(whole))]

    def join(self, device: torch.device) -> None:
        """Wait until all processes are there."""

    def broadcast(self, word: dict[str, Any] | None = None) -> dict[str, Any]:
        """The word of rank 0, on every rank: tensors and plain values."""
        assert word is not None
        return word

    def wrapped(self, module: nn.Module) -> nn.Module:
        """``module`` with its gradients averaged over all ranks; starts from the weights of rank 0."""
        return module

    def accumulating(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, what ``wrapped`` gave keeps its gradients to itself until a later backward pass."""
        return nullcontext()

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each value over all ranks."""
        return values

    def failing_together(self) -> AbstractContextManager[None]:
        """Inside, the failure of any process is raised on rank 0 as it was raised there."""
        return nullcontext()


ALONE = Group()


class _Peers(Group):
    """One of several: gradients go by NCCL between GPUs and by Gloo otherwise, all else by Gloo."""

    _word_timeout = WORD_TIMEOUT

    def __init__(self, rank: int, size: int, store: Store, host: str) -> None:
        super().__init__(rank, size)
        self._store, self._host = store, host

    def join(self, device: torch.device) -> None:
        self._meet()
        self._device = device
        with _gloo_at(self._host):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=STEP_TIMEOUT,
            )
            words = dist.new_group(backend="gloo", timeout=self._word_timeout)
        assert isinstance(words, dist.ProcessGroup)
        self._words = words

    def _meet(self) -> None:
        raise NotImplementedError

    def broadcast(self, word: dict[str, Any] | None = None) -> dict[str, Any]:
        written = io.BytesIO()
        torch.save(word, written)
        length = torch.tensor([written.tell()])
        dist.broadcast(length, src=0, group=self._words)
        data = bytearray(written.getvalue() if self.rank == 0 else int(length))
        dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), src=0, group=self._words)
        heartbeat: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        return heartbeat

    def wrapped(self, module: nn.Module) -> nn.Module:
        # Which parameters get no gradient depends on the loss terms. Where all get one, this one keeps DDP from
        # warning of that; without the search it would also reorder its sums after the first step.
        module.register_parameter("unused", nn.Parameter(torch.zeros(1, device=self._device)))
        return DistributedDataParallel(module, find_unused_parameters=True, forward_sync_buffers=False)

    def accumulating(self, module: nn.Module) -> AbstractContextManager[None]:
        assert isinstance(module, DistributedDataParallel)
        return module.no_sync()

    def mean(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._words)
        means: list[float] = (total / self.size).tolist()
        return means


class Follower(_Peers):
    """A rank above 0. ``leader``: where rank 0 waits, as ``leading`` says it; ``host``: this machine's address."""

    def __init__(self, rank: int, size: int, leader: tuple[str, int], host: str) -> None:
        super().__init__(rank, size, TCPStore(*leader, is_master=False, timeout=STEP_TIMEOUT), host)

    def _meet(self) -> None:
        self._store.set(f"here/{self.rank}", "")
        self._store.wait(["all here"], WORD_TIMEOUT)


class Followers(Protocol):
    """The processes that rank 0 has started. None ends by itself: whatever ends one is a failure."""

    def failures(self) -> list[Exception]:
        """What ended those that have ended; waits until one has."""

    def stop(self) -> None:
        """End all of them. May be called from any thread, and again."""


class Leader(_Peers):
    """Rank 0: it watches the processes it has started, and fails with them."""

    _word_timeout = STEP_TIMEOUT

    def __init__(self, size: int, store: Store, host: str, followers: Followers) -> None:
        super().__init__(0, size, store, host)
        self._followers = followers
        self._failed = threading.Event()
        self._failure: Exception | None = None
        self._watcher = threading.Thread(target=self._watch, name="followers", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        failures = self._followers.failures()
        if all(isinstance(failure, RuntimeError) for failure in failures):
            # Maybe of a collective that another's end has broken: its own reason is on the way.
            time.sleep(1.0)
            failures = self._followers.failures()
        self._failure = min(failures, key=lambda failure: isinstance(failure, RuntimeError))
        self._failed.set()
        self._followers.stop()  # breaks what rank 0 waits for on Gloo
        _abort_gpu_collectives()

    def _meet(self) -> None:
        keys = [f"here/{rank}" for rank in range(1, self.size)]
        while not self._store.check(keys):
            if self._failed.wait(POLL_SECONDS):
                assert self._failure is not None
                raise self._failure
        self._store.set("all here", "")

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # A broken collective, felt before its reason is known?
            if isinstance(error, RuntimeError) or isinstance(error.__cause__, RuntimeError):
                self._failed.wait(GRACE_SECONDS)
            if self._failure is None or self._failure is error:
                raise
            raise self._failure from error  # not an own reason: it may be the garbage an aborted collective left

    def leave(self) -> None:
        """End the followers and the process group."""
        self._followers.stop()
        self._watcher.join(GRACE_SECONDS)
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def leading(size: int, host: str, start: Callable[[tuple[str, int]], Followers]) -> Iterator[Group]:
    """This process as rank 0 of ``size``, until the block is left; then the others are ended.

    ``host``: the address of this machine at which the others reach it; nothing listens on another.
    ``start`` is given the address for ``Follower`` and starts the processes.
    """
    with socket.create_server((host, 0)) as listener:
        port = listener.getsockname()[1]
        descriptor = listener.detach()
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=STEP_TIMEOUT, master_listen_fd=descriptor
    )
    leader = Leader(size, store, host, start((host, port)))
    try:
        yield leader
    finally:
        leader.leave()


@contextmanager
def _gloo_at(address: str) -> Iterator[None]:
    """Have Gloo listen there, not at what the host's name happens to resolve to; a user's own choice stands."""
    interface = None if GLOO_INTERFACE in os.environ else _interface_with(address)
    if interface is not None:
        os.environ[GLOO_INTERFACE] = interface
    try:
        yield
    finally:
        if interface is not None:
            del os.environ[GLOO_INTERFACE]


def _interface_with(address: str) -> str | None:
    """The network interface that has this IPv4 address; None where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _abort_gpu_collectives() -> None:
    """One that another process has left would wait for ever."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        assert dist.group.WORLD is not None
        dist.group.WORLD.abort()
