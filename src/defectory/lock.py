"""The lock of a run folder: only one process at a time writes to it.

The lock file records the process that holds it (process, host, time, command). Two things show whether it is still
held: the operating system's lock on the file, which ends with the process, and the identity in the file, for machines
that do not see each other's locks.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from defectory.errors import OutputError, StageError

LOCK_NAME = ".defectory.lock"
_held: dict[Path, int] = {}
_guard = threading.Lock()


def process_identity() -> dict[str, Any]:
    """Return the identity of this process: pid, host, boot of the machine and start time."""
    pid = os.getpid()
    return {"pid": pid, "host": platform.node(), "boot": boot_id(), "started": start_of(pid)}


def boot_id() -> str:
    """Return an id of this boot of the machine, the same in all its containers; empty if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_of(pid: int) -> str | None:
    """Return the start time of a process on this machine, as an opaque text; None if there is no such process."""
    try:
        # the command, in parentheses, may contain spaces; ticks since boot do not change when the clock is set
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    import psutil

    try:
        return str(round(psutil.Process(pid).create_time()))
    except psutil.Error:
        return None


def is_alive(identity: object) -> bool | None:
    """Return whether the process of an identity still runs; None if its machine cannot be asked."""
    if not isinstance(identity, dict) or not isinstance(identity.get("pid"), int):
        return False
    here = process_identity()
    if identity.get("boot") != here["boot"]:
        # the same host with another boot has restarted since
        return False if identity.get("host") == here["host"] else None
    if not here["boot"] and identity.get("host") != here["host"]:
        return None
    return start_of(identity["pid"]) == identity.get("started")


@contextlib.contextmanager
def run_lock(folder: Path) -> Generator[None]:
    """Hold the lock of a run folder; this process may take it again while it holds it.

    Args:
        folder: run folder; it exists.

    Raises:
        StageError: another process is writing to the folder (exit code 1: the same command can succeed later).
        OutputError: the lock file cannot be written.
    """
    folder = folder.resolve()
    with _guard:
        again = folder in _held
        _held[folder] = _held.get(folder, 0) + 1
    stream: IO[bytes] | None = None
    try:
        if not again:
            stream = _take(folder)
        yield
    finally:
        with _guard:
            _held[folder] -= 1
            if not _held[folder]:
                del _held[folder]
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.truncate(0)
            stream.close()


class TurnLock:
    """A lock on a file, for work that one process does and others wait for. It ends with its process.

    Where the file system has no locks, everybody gets it: work is then done twice, and nothing breaks.

    Args:
        path: of the lock file; its folder exists.
    """

    EVERY_S = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: IO[bytes] | None = None

    def take(self) -> bool:
        """Take the lock if it is free, and return whether it was."""
        try:
            stream = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError:
            return True
        if _lock_file(stream) is False:
            stream.close()
            return False
        self._stream = stream
        return True

    def wait(self) -> None:
        """Wait a moment before the next try."""
        time.sleep(self.EVERY_S)

    def release(self) -> None:
        """Let the others go on."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _take(folder: Path) -> IO[bytes]:
    path = folder / LOCK_NAME
    try:
        # neither "w" nor "r+": the file is created if missing, and a holder's content is kept
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    except OSError as error:
        raise OutputError(
            folder,
            f"its lock {LOCK_NAME} cannot be written ({(error.strerror or str(error)).lower()})",
            "check the folder's permissions",
        ) from None
    try:
        system_lock = _lock_file(stream)
        holder = _read(stream)
        if system_lock is False or (holder is not None and _holds(holder, system_lock)):
            raise StageError(_message(folder, holder))
        content = {
            **process_identity(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
        }
        stream.seek(0)
        stream.truncate()
        stream.write((json.dumps(content) + "\n").encode())
        stream.flush()
    except BaseException:
        stream.close()
        raise
    return stream


def _holds(holder: dict[str, Any], system_lock: bool | None) -> bool:
    """Return whether the process that wrote the lock may still run.

    `system_lock` is True if the system's lock could be taken, None if locks are not supported.
    """
    if system_lock and holder.get("boot") and holder.get("boot") == boot_id():
        return False  # the kernel has just said that nobody holds it
    return is_alive(holder) is not False


def _message(folder: Path, holder: dict[str, Any] | None) -> str:
    if holder is None:
        return f"{folder}: another process is writing to this run; wait until it ends"
    who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    if is_alive(holder) is None:
        todo = f"wait until it ends, or remove {folder / LOCK_NAME} if it no longer runs there"
    else:
        todo = "wait until it ends, or stop it"
    return f"{folder}: another process is writing to this run ({who}: {holder.get('command')}); {todo}"


def _read(stream: IO[bytes]) -> dict[str, Any] | None:
    stream.seek(0)
    try:
        content = json.loads(stream.read(100_000))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _lock_file(stream: IO[bytes]) -> bool | None:
    """Take the system's lock on a file.

    Returns False if another process has it, None if the file system does not support locks.
    """
    if sys.platform == "win32":
        import msvcrt

        try:
            stream.seek(1 << 30)  # far behind the content, which others may read
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import errno
    import fcntl

    try:
        # a lock of this process alone: flock's would be inherited by forked children and outlive this process with them
        fcntl.lockf(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True
