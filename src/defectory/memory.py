"""What the C library does with freed memory, and how much memory a run holds."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from types import TracebackType

import psutil

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Of glibc's malloc.h."""
SAMPLE_EVERY_S = 0.5


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensors, and tensors lie on huge pages; gives whether both could
    be set.

    Every large tensor is otherwise given back and got anew, at a page fault per 4 KiB: 5% of a training step on a quiet
    CPU, up to half of one on a virtual machine with busy neighbours (decision 038). What `MALLOC_...` variables say
    already stays so.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(M_MMAP_MAX, 0), set_option(M_TRIM_THRESHOLD, 2**31 - 1), set_option(M_TOP_PAD, 64 << 20)])


def give_back_freed_memory() -> None:
    """Give freed memory that was kept back to the system, for other processes to have."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Watches how much memory this process and the ones it started hold together, while it is entered."""

    def __init__(self) -> None:
        self._most_bytes = 0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watch.join()

    @property
    def gb(self) -> float:
        """The most so far, in GB of 10^9 bytes; pages that processes share count once for each."""
        return max(self._most_bytes, _own_peak_bytes()) / 1e9

    def _sample(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(SAMPLE_EVERY_S):
            held = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    held += process.memory_info().rss
                except psutil.NoSuchProcess:  # it ended meanwhile
                    continue
            self._most_bytes = max(self._most_bytes, held)


def _own_peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # the system does not tell
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
