"""Every kind of input that people have, and what is right to do with it: two tables, case by case."""

from __future__ import annotations

from pathlib import Path

import pytest

from .common import COMMON
from .kinds import Case, judge
from .more import MORE


@pytest.mark.parametrize("case", COMMON, ids=lambda case: case.name)
def test_a_common_kind_of_input_is_read_or_refused_as_is_right(case: Case, tmp_path: Path) -> None:
    assert judge(case, tmp_path)


@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_more_of_the_same_kinds(case: Case, tmp_path: Path) -> None:
    assert judge(case, tmp_path)


def test_the_second_table_has_at_least_forty_kinds_of_its_own() -> None:
    assert len({case.name for case in MORE} - {case.name for case in COMMON}) >= 40
