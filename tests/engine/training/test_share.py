"""Every member of every micro-batch of a step is computed once, and each process has as many as the others."""

from __future__ import annotations

import pytest

from defectory.engine.training.share import WHOLE, divided, share_of


def computed(rank: int, num_micro_batches: int, batch_size: int, num_processes: int) -> list[tuple[int, int]]:
    share = share_of(rank, num_micro_batches, batch_size, num_processes)
    return [
        (micro, member)
        for micro in range(share.first, num_micro_batches, share.every)
        for member in range(batch_size)[share.members]
    ]


@pytest.mark.parametrize(
    ("num_micro_batches", "batch_size", "num_processes"),
    [(1, 8, 1), (1, 8, 2), (4, 1, 2), (4, 1, 4), (4, 2, 8), (6, 2, 4), (3, 4, 2), (1, 6, 3)],
)
def test_processes_compute_every_member_once_in_equal_shares(
    num_micro_batches: int, batch_size: int, num_processes: int
) -> None:
    shares = [computed(rank, num_micro_batches, batch_size, num_processes) for rank in range(num_processes)]
    assert {len(share) for share in shares} == {num_micro_batches * batch_size // num_processes}
    every = [(micro, member) for micro in range(num_micro_batches) for member in range(batch_size)]
    assert sorted(member for share in shares for member in share) == every


def test_whole_micro_batches_come_first() -> None:
    assert divided(4, 8, 2) == (2, 1)
    assert divided(2, 8, 4) == (2, 2)
    assert share_of(0, 1, 8, 1) == WHOLE


@pytest.mark.parametrize(("num_micro_batches", "batch_size", "num_processes"), [(1, 9, 2), (4, 1, 3), (2, 3, 4)])
def test_unequal_shares_are_none(num_micro_batches: int, batch_size: int, num_processes: int) -> None:
    assert divided(num_micro_batches, batch_size, num_processes) is None
