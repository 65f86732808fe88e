"""No damaged input ends in anything but one line, within four seconds. A longer run: `python bench/fuzz.py --cases
200000`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from defectory.formats.registry import formats

from .harness import Outcome, Workbench, cases, run_cases
from .sets import SETS
from .targets import TARGETS

CHUNKS = 8
CASES = 2400
CHUNKS_OF_EVERY_RUN = 1
SEED = 20


def told(outcomes: list[Outcome]) -> str:
    return "\n".join(f"{o.target} seed {o.seed}: {o.kind} after {o.seconds} s: {o.error} ({o.where})" for o in outcomes)


def test_every_registered_format_is_fuzzed() -> None:
    assert {known.name for known in formats()} == {name.split("/")[0] for name in SETS}


def test_valid_inputs_are_read(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    failed = [
        outcome
        for target in TARGETS
        if (outcome := bench.run_whole(target.name)).kind != ("read" if target.passes else "refused")
    ]
    assert not failed, told(failed)


@pytest.mark.parametrize(
    "chunk",
    [
        *range(CHUNKS_OF_EVERY_RUN),
        *(pytest.param(n, marks=pytest.mark.long) for n in range(CHUNKS_OF_EVERY_RUN, CHUNKS)),
    ],
)
def test_damaged_inputs_are_read_or_refused_in_one_line(chunk: int) -> None:
    outcomes = list(run_cases(cases(CASES, SEED)[chunk::CHUNKS]))
    failed = [outcome for outcome in outcomes if outcome.failed]
    assert not failed, told(failed)
    kinds = [outcome.kind for outcome in outcomes]
    # a fuzzer whose damage is always refused at the first look, or never noticed, tests little
    assert 0.1 < kinds.count("read") / len(kinds) < 0.9
