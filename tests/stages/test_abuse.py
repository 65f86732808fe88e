"""Two processes at once, and a kill; bench/abuse.py does hundreds, full disks, power cuts and wrong folders too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ABUSE = Path(__file__).resolve().parents[2] / "bench" / "abuse.py"


@pytest.mark.long
@pytest.mark.parametrize("campaign", ["pairs", "kills"])
def test_nothing_is_lost_and_outcomes_are_those_of_an_undisturbed_run(campaign: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ABUSE), campaign, "--times", "1", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f" {campaign}, 0 losses" in done.stdout
