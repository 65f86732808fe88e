from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from defectory.artifacts.annotation import Category
from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.events import finish
from defectory.runs.sources import Sources
from defectory.segmentation import batches
from defectory.segmentation.arms import ARMS, Arm, Phase, batch_shares, first_steps
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage, members
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.training import train_segmenter
from defectory.stages.segment import Segment

CONFIG = SegmentationConfig(
    model="light", num_steps=4, batch_size=4, defect_free_share=0.25, validate_every=2, checkpoint_every=2
)
NUM_IMAGES = {"real": 5, "synthetic": 7, "copy_paste": 3, "procedural": 4, "defect_free": 9}


def shares(arm: Arm, *, num_images: dict[str, int] = NUM_IMAGES) -> list[dict[str, float]]:
    return [batch_shares(phase, name="x", settings=CONFIG, num_images=num_images) for phase in arm.phases]


@pytest.mark.parametrize("name", ARMS.names())
def test_every_arm_of_ours_holds_the_same_share_of_defect_free_images(name: str) -> None:
    for found in shares(ARMS.get(name)):
        assert sum(found.values()) == pytest.approx(1)
        assert found["defect_free"] == 0.25
    assert ARMS.get(name).summary


def test_mixed_arms_hold_a_fixed_share_of_real_images_among_the_defective_and_end_on_real_alone() -> None:
    for name, real in (("mixed_50", 0.5), ("mixed_75", 0.75), ("mixed_90", 0.9)):
        mixed, last = shares(ARMS.get(name))
        assert mixed["real"] / (mixed["real"] + mixed["synthetic"]) == pytest.approx(real)
        assert last == pytest.approx({"real": 0.75, "defect_free": 0.25})
        assert first_steps(ARMS.get(name), name=name, settings=CONFIG, num_steps=100) == (0, 80, 100)
        # a new warm-up for the last fifth would undo what was learnt
        assert not ARMS.get(name).restarts
    assert ARMS.get("synthetic_then_real").restarts


def test_without_defect_free_images_the_batch_is_full() -> None:
    assert shares(ARMS.get("real"), num_images={"real": 2}) == [{"real": 1.0}]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_batches_are_full_and_hold_the_shares_over_many_steps(batch_size: int) -> None:
    wanted = {"real": 0.675, "synthetic": 0.075, "defect_free": 0.25}
    drawn = [members(wanted, batch_size=batch_size, step=step) for step in range(400)]
    assert {len(batch) for batch in drawn} == {batch_size}
    counts = Counter(source for batch in drawn for source in batch)
    for source, share in wanted.items():
        assert counts[source] / (400 * batch_size) == pytest.approx(share, abs=0.01)
        per_batch = {batch.count(source) for batch in drawn}
        assert max(per_batch) - min(per_batch) <= 1, "no batch is far from the shares"


def test_phases_share_the_steps() -> None:
    settings = SegmentationConfig(real_share_of_steps=0.3)
    assert first_steps(ARMS.get("real"), name="real", settings=settings, num_steps=10) == (0, 10)
    assert first_steps(ARMS.get("synthetic_then_real"), name="x", settings=settings, num_steps=10) == (0, 7, 10)
    phase = Phase(sources={"real": 1.0}, steps=1 / 3)
    assert first_steps(Arm(phases=(phase,) * 3), name="x", settings=settings, num_steps=10) == (0, 3, 7, 10)


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"real": 0.5, "synthetic": 0.4}, r"arm x, its batch: the shares are real 0\.5, synthetic 0\.4; let them add"),
        ({"real": "rest", "synthetic": "rest"}, "let them add up to 1"),
        ({"real": "rest", "synthetic": 1.5}, "the share of synthetic is 1.5"),
        ({"real": "rest", "synthetic": "no_setting"}, "the share of synthetic is 'no_setting'"),
        ({"real": "rest", "drawn": 0.5}, "arm x: no drawn images"),
    ],
)
def test_what_is_no_batch_is_refused(sources: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        shares(Arm(phases=(Phase(sources=sources),)))


def test_an_arm_from_outside_trains_and_its_exposures_are_counted(
    make_tiles: Callable[..., list[SegmentationImage]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    to_sample = batches.to_sample

    def seen(of: SegmentationImage, rng: Any, **how: Any) -> Any:
        drawn.append(of.id[:4])
        return to_sample(of, rng, **how)

    monkeypatch.setattr(batches, "to_sample", seen)
    third = Arm(phases=(Phase(sources={"real": "rest", "synthetic": 2 / 3}),))
    with ARMS.registered("third", third):
        config = SegmentationConfig.model_validate({**CONFIG.model_dump(), "arms": ["real", "third"]})
        trained = finish(
            train_segmenter(
                arm="third",
                images={
                    "real": make_tiles("real", 5),
                    "synthetic": make_tiles("made", 7, seed=1),
                    "defect_free": make_tiles("free", 9, with_defect=False),
                },
                validate=lambda _: 0.0,
                categories=(Category(id=1, name="crack"), Category(id=2, name="pit")),
                sizing=Sizing(scale=1.0, input_px=64),
                config=config,
                seed=3,
                out=tmp_path,
            )
        )
    assert drawn == ["real", "made", "made", "free"] * 4
    assert len(trained.losses) == 4
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["arm"] == "third"
    assert log["exposures"] == {"real": 4, "synthetic": 8, "defect_free": 4}
    assert log["num_images"] == {"real": 5, "synthetic": 7, "defect_free": 9}
    with pytest.raises(ValidationError, match="'third' is not one of real_plain, real_resampled, real, copy_paste"):
        SegmentationConfig.model_validate({"arms": ["third"]})


def test_a_changed_arm_makes_its_segmenters_stale() -> None:
    config = ProjectConfig.model_validate({"data": {"path": "labels.json"}})
    sources = Sources(folder=Path.cwd())

    def keys(arm: Arm) -> dict[str, str]:
        with ARMS.registered("twice", arm):
            return {name: repr(Segment(name, 0).cache_key(config, sources)) for name in ("real", "twice")}

    first = keys(Arm(phases=(Phase(sources={"real": "rest"}),)))
    again = keys(Arm(phases=(Phase(sources={"real": "rest"}),)))
    other = keys(Arm(phases=(Phase(sources={"synthetic": "rest"}),)))
    varied = keys(Arm(phases=(Phase(sources={"real": "rest"}),), augmentation="scale"))
    assert first == again
    assert first["real"] == other["real"]
    assert len({first["twice"], other["twice"], varied["twice"]}) == 3
