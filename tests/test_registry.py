from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from defectory import registry as module
from defectory.errors import ConfigError
from defectory.events import Notice, Progress, Work, finish
from defectory.registry import Registry


def kinds() -> Registry[Any]:
    return Registry("colours", setting="paint.colour", builtin={"ours": "defectory.events:Notice"})


def test_ours_are_imported_by_name_and_an_unknown_name_lists_what_there_is() -> None:
    assert kinds().get("ours") is Notice
    with pytest.raises(
        ConfigError, match=r"paint.colour 'red': is not known; choose among ours, or give `package.module:attribute`"
    ):
        kinds().get("red")


def test_one_is_added_for_a_block_and_a_name_is_taken_only_once() -> None:
    colours = kinds()
    with colours.registered("red", 7):
        assert colours.get("red") == 7
        assert colours.names() == ("ours", "red")
        with pytest.raises(ConfigError, match="registered already"):
            colours.register("red", 8)
    with pytest.raises(ConfigError, match="not known"):
        colours.get("red")
    with pytest.raises(ConfigError, match="registered already"):
        colours.register("ours", 8)


def test_installed_packages_add_theirs_and_a_broken_one_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("blue", "defectory.events:Progress", "defectory.colours"),
        EntryPoint("ours", "nowhere:at_all", "defectory.colours"),
        EntryPoint("green", "nowhere:at_all", "defectory.colours"),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == "defectory.colours" else [])
    colours = kinds()
    assert colours.names() == ("ours", "blue", "green")
    assert colours.get("blue") is Progress
    assert colours.get("ours") is Notice
    assert colours.get("defectory.events:finish") is finish
    for broken in ("green", "nowhere:at_all"):
        with pytest.raises(ConfigError, match=r"cannot be imported from nowhere:at_all \(ModuleNotFoundError"):
            colours.get(broken)


def test_one_of_ours_whose_package_is_missing_names_that_package() -> None:
    colours = Registry[Any](
        "colours", setting="paint.colour", builtin={"gold": "nowhere.at:all", "odd": "defectory.no:x"}
    )
    with pytest.raises(ConfigError, match=r"paint.colour 'gold': needs the package nowhere, .*; install nowhere"):
        colours.get("gold")
    with pytest.raises(ModuleNotFoundError, match="defectory"):
        colours.get("odd")


def test_work_is_done_to_its_end_for_its_value() -> None:
    def work() -> Work[int]:
        yield Progress(done=1, total=2)
        yield Notice(text="half")
        return 5

    assert finish(work()) == 5
