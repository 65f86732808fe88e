"""The lock of a run folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from defectory.errors import StageError
from defectory.lock import LOCK_NAME, is_alive, process_identity, run_lock

HOLD = """
import sys
from pathlib import Path
from defectory.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_in_one_line_who_holds_the_run(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with (
        pytest.raises(
            StageError, match=rf"process {process.pid} on .*, since 20.*wait until it ends, or stop it"
        ) as caught,
        run_lock(tmp_path),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    process.communicate("\n")
    with run_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_stale(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    process.communicate()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == process.pid
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] != process.pid
    assert (tmp_path / LOCK_NAME).read_text() == ""


def test_a_process_may_take_its_own_lock_again_and_holds_it_to_the_last_end(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        with run_lock(tmp_path):
            pass
        done = subprocess.run(
            [sys.executable, "-P", "-c", HOLD, str(tmp_path)], input="\n", capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "another process is writing to this run" in done.stderr


def test_the_lock_of_another_machine_holds_until_it_is_removed(tmp_path: Path) -> None:
    other = {
        **process_identity(),
        "host": "elsewhere",
        "boot": "another",
        "since": "2026-11-28T04:00:00+01:00",
        "command": "defectory run",
    }
    (tmp_path / LOCK_NAME).write_text(json.dumps(other))
    with (
        pytest.raises(StageError, match=rf"on elsewhere, .*or remove .*{LOCK_NAME} if it no longer runs there"),
        run_lock(tmp_path),
    ):
        pass
    (tmp_path / LOCK_NAME).unlink()
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}'])
def test_a_lock_file_that_cannot_be_understood_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    with run_lock(tmp_path):
        pass


def test_another_process_with_the_same_number_is_not_the_holder() -> None:
    here = process_identity()
    assert is_alive(here)
    assert is_alive({**here, "started": "1"}) is False
    assert is_alive({**here, "pid": 2**22 + 1}) is False
    assert is_alive({**here, "boot": "before", "started": here["started"]}) is False
    assert is_alive({**here, "boot": "before", "host": "elsewhere"}) is None
    assert is_alive({}) is False
