"""Turns any error that ends a command into one line and an exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from defectory.cli.hints import hint_of
from defectory.errors import DEBUG_VARIABLE, DefectoryError
from defectory.terminal import printable

INTERRUPTED = 130
MAX_LINE = 2000
_WHAT_TO_DO: Mapping[int, str] = {
    errno.ENOSPC: "free space, then run the same command again",
    errno.EDQUOT: "free space in your quota, then run the same command again",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.EEXIST: "choose another name",
    errno.ELOOP: "remove the link that leads to itself",
    errno.EMFILE: "allow more open files (`ulimit -n 4096`)",
    errno.EIO: "check the disk",
}


def line_and_code(error: BaseException) -> tuple[str, int]:
    """Return what to print on standard error, one line without a line end, and the exit code.

    Args:
        error: whatever ended the command: an error of Defectory, of the command-line parser, of the operating system,
            or a bug.
    """
    text, code = _text_and_code(error)
    text = printable(text)
    if len(text) > MAX_LINE:
        text = f"{text[: MAX_LINE // 2]} ... {text[-MAX_LINE // 2 :]}"
    return f"error: {text}", code


def _text_and_code(error: BaseException) -> tuple[str, int]:
    if isinstance(error, DefectoryError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "interrupted; run the same command again to resume", INTERRUPTED
    if hasattr(error, "format_message"):
        return _usage(error), 2
    if isinstance(error, OSError):
        return _operating_system(error), 2
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"out of memory ({_first_line(error)}); close other programs, or set smaller batches and images", 1
    if isinstance(error, RecursionError):
        return "an input is nested too deeply; export it again in a flat form", 2
    if isinstance(error, UnicodeError):
        return (
            f"a name or text cannot be written in the encoding in use ({_first_line(error)}); rename it, or set "
            "PYTHONUTF8=1",
            2,
        )
    what = f"{type(error).__name__}: {_first_line(error)}" if str(error) else type(error).__name__
    return f"unexpected {what}; this is a fault of Defectory: report it with what {DEBUG_VARIABLE}=1 prints", 1


def _usage(error: BaseException) -> str:
    """Return what the command-line parser found, and where to find help."""
    said = str(error.format_message()).strip().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or "defectory"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and option is not None:
        names = {parameter.name for parameter in getattr(getattr(context, "command", None), "params", ())}
        hint = hint_of(str(option), takes_settings={"project", "override"} <= names or command.endswith(" demo"))
        if hint is not None:
            return f"no such option: {option}; {hint}"
    return f"{said[:1].lower()}{said[1:]}; see `{command} --help`"


def _operating_system(error: OSError) -> str:
    where = error.filename if error.filename is not None else "file system"
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{where}: {reason}; {_WHAT_TO_DO.get(error.errno or 0, 'check the path and the disk')}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
