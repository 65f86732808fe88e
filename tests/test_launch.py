from __future__ import annotations

import sys

import pytest

from defectory.cli.main import main
from defectory.errors import ConfigError
from defectory.launch import leads, without_launch

LAUNCHED = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_MIXED_PRECISION": "no",
    "TORCHELASTIC_RUN_ID": "none",
}


def test_the_first_process_of_a_launch_runs_the_command_and_trains_in_as_many() -> None:
    environment = {**LAUNCHED, "HOME": "/home/user"}
    assert leads(environment)
    assert environment == {"HOME": "/home/user", "DEFECTORY_TRAINING_PROCESSES": "2"}


def test_a_setting_of_the_environment_wins_over_a_launch() -> None:
    environment = {**LAUNCHED, "DEFECTORY_TRAINING_PROCESSES": "1"}
    assert leads(environment)
    assert environment == {"DEFECTORY_TRAINING_PROCESSES": "1"}


def test_a_process_that_nobody_launched_and_a_launch_of_one_run_as_ever() -> None:
    environment = {"HOME": "/home/user"}
    assert leads(environment)
    assert environment == {"HOME": "/home/user"}
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    assert leads(alone)
    assert alone == {}


def test_other_processes_of_a_launch_end_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**LAUNCHED, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["defectory", "run", "no-such-file.toml"])
    main()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, r"^environment: RANK set, but not LOCAL_RANK, WORLD_SIZE; unset what is set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"RANK, WORLD_SIZE set, but not LOCAL_RANK"),
        ({**LAUNCHED, "RANK": "2"}, r"RANK=2, LOCAL_RANK=0, WORLD_SIZE=2: a process's number among others"),
        ({**LAUNCHED, "WORLD_SIZE": "two"}, r"WORLD_SIZE=two: a process's number"),
        ({**LAUNCHED, "WORLD_SIZE": "4"}, r"4 processes on several machines; use the GPUs of one machine"),
        ({**LAUNCHED, "ACCELERATE_USE_FSDP": "true"}, r"^ACCELERATE_USE_FSDP: every process holds the whole network"),
    ],
)
def test_a_launch_that_cannot_work_is_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        leads(dict(environment))
    assert "\n" not in str(caught.value)


def test_processes_that_we_start_know_nothing_of_a_launch() -> None:
    assert without_launch({**LAUNCHED, "PATH": "/bin"}) == {"PATH": "/bin"}
