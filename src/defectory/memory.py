"""Memory of a run: how Python and the C library handle freed memory, and the peak use."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import threading
from pathlib import Path
from types import TracebackType

import psutil

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of `mallopt`, from glibc's malloc.h."""
SAMPLE_EVERY_S = 0.5
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files that hold a container's memory limit, versions 2 and 1 of control groups; `max` or a huge number is none."""


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory and use huge pages; return whether both could be set.

    Otherwise, every large tensor is returned to the system and allocated again, with a page fault per 4 KiB: 5% of a
    training step on a quiet CPU, and up to half of one on a virtual machine with busy neighbours (decision 038).
    Settings in `MALLOC_...` environment variables take precedence.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(M_MMAP_MAX, 0), set_option(M_TRIM_THRESHOLD, 2**31 - 1), set_option(M_TOP_PAD, 64 << 20)])


def give_back_freed_memory() -> None:
    """Return freed memory that was kept to the system, for other processes to use."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def collect_garbage_rarely() -> None:
    """Make Python look for unused cycles of objects after many more new ones, in a process of our own.

    Importing torch and diffusers makes a million objects that stay. With Python's default they are looked through
    again and again, which is a fifth of the time that a process takes to start.
    """
    gc.set_threshold(50_000, 20, 20)


def machine_memory_bytes() -> int | None:
    """Return the memory of this machine, or of the container this process runs in; None if it cannot be told."""
    limits = [psutil.virtual_memory().total]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min((limit for limit in limits if limit > 0), default=None)


class PeakMemory:
    """Context manager that records the peak memory of this process and its child processes together."""

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
        """Return the peak memory so far, in GB of 10^9 bytes; shared pages count once per process."""
        return max(self._most_bytes, _own_peak_bytes()) / 1e9

    def _sample(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(SAMPLE_EVERY_S):
            held = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    held += process.memory_info().rss
                except psutil.NoSuchProcess:  # the process has ended meanwhile
                    continue
            self._most_bytes = max(self._most_bytes, held)


def _own_peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # the system does not report it
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
