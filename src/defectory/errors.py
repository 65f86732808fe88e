"""Every exception a user may meet, drawn as one tree.

DefectoryError                  exit code 1: a run failed
├── StageError                  a stage could not finish
│   ├── FirewallError           an image of validation or test was about to reach training
│   └── LostProcessError        another process of the same training has ended
├── InterruptedRun              exit code 130: stopped, resumable
└── InputError                  exit code 2: bad input, nothing was written
    ├── ImageError              an image or mask file
    ├── AnnotationError         an annotation file or one of its entries
    ├── ConfigError             a project file, an option or an environment variable
    ├── WeightsError            a base, a checkpoint or an adapter
    │   └── PipelineError       a network that plain diffusers cannot draw with
    └── OutputError             an output folder that cannot be written or is full (a StageError too)

Every message is one line: where, what was found, what to do. What it quotes from data cannot break the line or reach
the terminal as a control character.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from defectory.terminal import printable

DEBUG_VARIABLE = "DEFECTORY_DEBUG"


def wants_traceback() -> bool:
    """Check whether the environment variable `DEFECTORY_DEBUG` asks for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


class DefectoryError(Exception):
    """The base class of all errors that Defectory raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message as one printable line."""
        return printable(super().__str__())


class StageError(DefectoryError):
    """A stage could not finish."""


class FirewallError(StageError):
    """A validation or test image was about to reach a training stage."""


class LostProcessError(StageError):
    """Another process of the same training has ended, or cannot be reached."""


class InterruptedRun(DefectoryError):  # noqa: N818  # a stop, not an error
    """The run was stopped and can be resumed."""

    exit_code = 130


class InputError(DefectoryError):
    """Bad input; the message says where it is, what was found and what to do.

    Args:
        where: file, entry or option with the problem.
        found: what was found there, and what was expected.
        todo: what the user can do.
    """

    exit_code = 2

    def __init__(self, where: object, found: str, todo: str) -> None:
        self.where = str(where)
        self.found = found
        self.todo = todo
        super().__init__(f"{self.where}: {found}; {todo}")

    def __reduce__(self) -> tuple[Callable[..., InputError], tuple[str, str, str]]:
        """Support pickling, so that the error can pass from a worker process to its parent."""
        return type(self), (self.where, self.found, self.todo)


class ImageError(InputError):
    """An image or mask file that cannot be used."""


class AnnotationError(InputError):
    """An annotation file, or one of its entries, that cannot be used."""


class ConfigError(InputError):
    """A project file, option or environment variable that cannot be used."""


class WeightsError(InputError):
    """A base, checkpoint or adapter that cannot be used."""


class PipelineError(WeightsError):
    """A network that plain diffusers cannot draw with, so that there is no pipeline to write."""


class OutputError(InputError, StageError):
    """An output folder that cannot be written or is full."""

    exit_code = 2
