"""What the benches of a training step share: a clock and the options of the command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable


def seconds_of(action: Callable[[], object]) -> float:
    """Give the seconds one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def step_options(description: str | None, *, num_steps: int) -> argparse.ArgumentParser:
    """Give a parser of `--steps`, `--batch-size` and `--device`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=num_steps)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    return parser
