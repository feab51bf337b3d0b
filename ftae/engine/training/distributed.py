"""Several processes that train one model: ranks, collectives, and which models they cannot train."""

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


def check_batch_independence(model: nn.Module) -> None:
    """Refuse a model, in training mode, whose output for one image depends on the other images of the batch.

    Raises:
        FtaeError: batch normalisation or dropout is trained.
    """
    for name, module in model.named_modules():
        draws = isinstance(module, DROPOUTS) and module.p > 0.0
        if module.training and (draws or isinstance(module, BATCH_NORMS)):
            raise FtaeError(_refusal(f"{name.removeprefix('net.')} ({type(module).__name__}) works on whole batches"))


class UnchangedBuffers:
    """Checks that the buffers of a model stay as they are now: each process would change only its own copy."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def check(self) -> None:
        """Raise an FtaeError if a buffer has changed, such as the codebook of a VQ model."""
        for name, buffer in self._model.named_buffers():
            if not torch.equal(buffer, self._before[name]):
                raise FtaeError(_refusal(f"the buffer {name.removeprefix('net.')} moves with the images it has seen"))


def _refusal(reason: str) -> str:
    return f"{reason}: several workers would not train as one does. Freeze its stage, or use one worker"


STEP_TIMEOUT = timedelta(minutes=10)  # for what all ranks do at the same time
COMMAND_TIMEOUT = timedelta(days=30)  # followers wait while rank 0 evaluates; they notice at once if it is gone
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the address of an interface


class Group:
    """The rank of this process among the ``size`` processes of a run.

    This class waits for no other process. Alone it costs nothing; with a larger ``size`` it does the share of one
    rank, which shows how much time and memory that takes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process trains on."""
        assert batch_size % self.size == 0
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def randn_like(self, share: Tensor) -> Tensor:
        """Standard normal noise for the rows (B, ...) of this rank, as one process would draw it for the batch."""
        if self.size == 1:
            return torch.randn_like(share)
        whole = torch.cat([share.detach()] * self.size)
        return torch.randn_like(whole)[self.rows(len(whole))]

    def join(self, device: torch.device) -> None:
        """Wait until all processes are there."""

    def broadcast(self, command: dict[str, Any] | None = None) -> dict[str, Any]:
        """The command of rank 0, on every rank: tensors and plain values."""
        assert command is not None
        return command

    def wrapped(self, module: nn.Module) -> nn.Module:
        """``module`` with its gradients averaged over all ranks; all start from the weights of rank 0."""
        return module

    def accumulating(self) -> AbstractContextManager[None]:
        """Inside the block the wrapped module keeps its gradients local, until a backward pass outside it."""
        return nullcontext()

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each value over all ranks."""
        return values

    def failing_together(self) -> AbstractContextManager[None]:
        """Inside the block rank 0 raises the error of any process that fails."""
        return nullcontext()


ALONE = Group()


class _Peers(Group):
    """One of several processes: gradients go by NCCL between GPUs and by Gloo otherwise, all else by Gloo."""

    _command_timeout = COMMAND_TIMEOUT

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
            commands = dist.new_group(backend="gloo", timeout=self._command_timeout)
        assert isinstance(commands, dist.ProcessGroup)
        self._commands = commands

    def _meet(self) -> None:
        raise NotImplementedError

    def broadcast(self, command: dict[str, Any] | None = None) -> dict[str, Any]:
        written = io.BytesIO()
        torch.save(command, written)
        length = torch.tensor([written.tell()])
        dist.broadcast(length, src=0, group=self._commands)
        data = bytearray(written.getvalue() if self.rank == 0 else int(length))
        dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), src=0, group=self._commands)
        received: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        return received

    def wrapped(self, module: nn.Module) -> nn.Module:
        # The loss terms decide which parameters get no gradient, so DDP must search for them. A parameter that never
        # gets one keeps DDP from warning that the search finds nothing; without the search it would reorder its sums
        # after the first step.
        module.register_parameter("unused", nn.Parameter(torch.zeros(1, device=self._device)))
        self._wrapped = DistributedDataParallel(module, find_unused_parameters=True, forward_sync_buffers=False)
        return self._wrapped

    def accumulating(self) -> AbstractContextManager[None]:
        return self._wrapped.no_sync()

    def mean(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._commands)
        means: list[float] = (total / self.size).tolist()
        return means


class Follower(_Peers):
    """A rank above 0. ``leader``: the address that ``leading`` listens at; ``host``: the address of this machine."""

    def __init__(self, rank: int, size: int, leader: tuple[str, int], host: str) -> None:
        super().__init__(rank, size, TCPStore(*leader, is_master=False, timeout=STEP_TIMEOUT), host)

    def _meet(self) -> None:
        self._store.set(f"here/{self.rank}", "")
        self._store.wait(["all here"], COMMAND_TIMEOUT)


class Followers(Protocol):
    """The processes that rank 0 has started. None ends by itself, so every end is a failure."""

    def failures(self) -> list[Exception]:
        """Why the processes that have ended did so; waits until one has."""

    def stop(self) -> None:
        """End all of them. May be called from any thread, and more than once."""


class Leader(_Peers):
    """Rank 0: watches the processes that it has started, and fails when one of them fails."""

    _command_timeout = STEP_TIMEOUT

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
            # Perhaps errors of a collective that another process broke by ending: wait for its reason, too.
            time.sleep(1.0)
            failures = self._followers.failures()
        self._failure = min(failures, key=lambda failure: isinstance(failure, RuntimeError))
        self._failed.set()
        self._followers.stop()  # interrupts the Gloo collective that rank 0 may be waiting in
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
            # A broken collective may be noticed before its cause is known.
            if isinstance(error, RuntimeError) or isinstance(error.__cause__, RuntimeError):
                self._failed.wait(GRACE_SECONDS)
            if self._failure is None or self._failure is error:
                raise
            raise self._failure from error  # ``error`` may only be what an aborted collective left behind

    def leave(self) -> None:
        """End the followers and the process group."""
        self._followers.stop()
        self._watcher.join(GRACE_SECONDS)
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def leading(size: int, host: str, start: Callable[[tuple[str, int]], Followers]) -> Iterator[Group]:
    """Inside the block this process is rank 0 of ``size``; afterwards the other processes are ended.

    ``host``: the address of this machine at which the others reach it; nothing listens at another address.
    ``start``: starts the processes, given the address for ``Follower``.
    """
    with socket.create_server((host, 0)) as listener:
        port, descriptor = listener.getsockname()[1], listener.detach()
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
    """Make Gloo listen at ``address``, not at the one that the host name resolves to; a user's setting stands."""
    interface = None if GLOO_INTERFACE in os.environ else _interface_with(address)
    if interface is not None:
        os.environ[GLOO_INTERFACE] = interface
    try:
        yield
    finally:
        if interface is not None:
            del os.environ[GLOO_INTERFACE]


def _interface_with(address: str) -> str | None:
    """The network interface that has this IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _abort_gpu_collectives() -> None:
    """End those that another process has left: they would wait for ever."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        assert dist.group.WORLD is not None
        dist.group.WORLD.abort()
