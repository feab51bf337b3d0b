"""What a training step has freed of the processor's memory is kept for the next one, and given back between runs.

Where the C library is not glibc, nothing changes.
"""

import ctypes

# Of glibc's malloc.h: what is free at the end of a heap goes back to the system from this on; what an emptied heap of a
# thread (64 MB) has to fall short of to stay; and larger blocks than this never are in a heap.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Have the allocator of this process keep blocks of up to a gigabyte: for a process that is ftae's own.

    By default each step gives its activations back and is given them again, page by page and full of zeros: 10,000
    page faults, a tenth of a step on images of 32 pixels.
    """
    for setting, number_of_bytes in ((TRIM_THRESHOLD, 2**30), (TOP_PAD, 2**27), (MMAP_THRESHOLD, 2**30)):
        _call("mallopt", setting, number_of_bytes)


def give_back_freed_memory() -> None:
    """What a run has held need not stay with the process."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
