"""Many small reads of a remote shard by few large requests, where all of it is read from the first byte to the last."""

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from ftae.engine.data.shards.places import REQUESTS, Shard, ShardFiles

BLOCK = 2**22  # bytes of a request
AHEAD = 3  # blocks that are asked for before they are needed
MOST_KEPT = 16  # blocks: readers are at places some images apart


class Blocks:
    """The bytes of ``files``, read by blocks that are kept for those who read on; used from any thread."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._pool = ThreadPoolExecutor(AHEAD + 1, "blocks")
        self._kept: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = Lock()

    def read(self, shard: Shard, start: int, length: int) -> bytes:
        """As ``ShardFiles.read``."""
        if length > MOST_KEPT * BLOCK // REQUESTS:  # readers of large images would need more blocks than are kept
            return self._files.read(shard, start, length)
        if length == 0:
            return b""
        first, last = start // BLOCK, (start + length - 1) // BLOCK
        data = b"".join([self._block(shard, number) for number in range(first, last + 1)])
        begin = start - first * BLOCK
        return data[begin : begin + length]

    def _block(self, shard: Shard, number: int) -> bytes:
        with self._lock:
            asked = self._asked(shard, number)
            for following in range(number + 1, number + 1 + AHEAD):
                if following * BLOCK < shard.size:
                    self._asked(shard, following)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return asked.result()

    def _asked(self, shard: Shard, number: int) -> Future[bytes]:
        key = shard.path, number
        if key not in self._kept:
            start = number * BLOCK
            length = min(BLOCK, max(shard.size - start, 0))
            self._kept[key] = self._pool.submit(self._files.read, shard, start, length)
        self._kept.move_to_end(key)
        return self._kept[key]
