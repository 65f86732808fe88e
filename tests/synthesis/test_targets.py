from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.synthesis.targets import MISSED_IOU, JudgedInstance, cells_of, weights_of

PLACES = ("in the open", "end at a hole", "along the outside")
found = st.builds(
    dict, category_id=st.integers(1, 3), area_px=st.integers(1, 60), place=st.sampled_from(PLACES), iou=st.floats(0, 1)
)


def judged(facts: list[dict[str, object]]) -> list[JudgedInstance]:
    return [JudgedInstance(image_id=n // 2, number=n % 2, **of) for n, of in enumerate(facts)]


@settings(deadline=None, max_examples=60)
@given(facts=st.lists(found, max_size=20), num_drafts=st.integers(1, 500))
def test_cells_with_missed_instances_get_equal_quotas_and_others_none(
    facts: list[dict[str, object]], num_drafts: int
) -> None:
    instances = judged(facts)
    cells, missed = cells_of(instances, num_drafts=num_drafts), [one for one in instances if one.iou < MISSED_IOU]
    assert sum(cell.num_instances for cell in cells) == len(instances)
    assert sum(cell.num_missed for cell in cells) == len(missed)
    assert len({(cell.category_id, cell.size, cell.place) for cell in cells}) == len(cells)
    quotas = {cell.quota for cell in cells if cell.num_missed}
    assert len(quotas) == bool(missed)
    assert all(cell.quota == 0 for cell in cells if not cell.num_missed)
    assert sum(cell.quota for cell in cells) == pytest.approx(num_drafts if missed else 0)

    weights = weights_of(instances, cells)
    assert weights.keys() == {(one.image_id, one.number) for one in instances}
    assert all((weights[one.image_id, one.number] > 0) == (one in missed) for one in instances)
    if missed:
        assert sum(weights.values()) == pytest.approx(len(instances))
        medians = {cell.category_id: _median(instances, cell.category_id) for cell in cells}
        of_cell: dict[tuple[int, bool, str], float] = defaultdict(float)
        for one in missed:
            is_larger = one.area_px > medians[one.category_id]
            of_cell[one.category_id, is_larger, one.place] += weights[one.image_id, one.number]
        assert list(of_cell.values()) == pytest.approx([next(iter(of_cell.values()))] * len(of_cell))


def _median(instances: list[JudgedInstance], category_id: int) -> float:
    areas = sorted(one.area_px for one in instances if one.category_id == category_id)
    return (areas[(len(areas) - 1) // 2] + areas[len(areas) // 2]) / 2


def test_sizes_are_halves_of_the_own_class_and_missed_instances_share_a_quota() -> None:
    rows = [(1, 10, 0.1), (1, 12, 0.2), (1, 40, 0.9), (1, 50, 0.0), (2, 200, 0.0), (2, 900, 0.7)]
    instances = judged([{"category_id": c, "area_px": a, "place": PLACES[0], "iou": i} for c, a, i in rows])
    cells = cells_of(instances, num_drafts=12)
    assert [(c.category_id, c.size, c.num_instances, c.num_missed, c.quota) for c in cells] == [
        (1, "larger", 2, 1, 4.0),
        (1, "smaller", 2, 2, 4.0),
        (2, "larger", 1, 0, 0.0),
        (2, "smaller", 1, 1, 4.0),
    ]
    weights = list(weights_of(instances, cells).values())
    assert weights == pytest.approx([1.0, 1.0, 0.0, 2.0, 2.0, 0.0])
