from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from defectory.artifacts.annotation import Category
from defectory.artifacts.tiles import Tiling
from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.events import finish
from defectory.runs.sources import Sources
from defectory.segmentation import data
from defectory.segmentation.arms import ARMS, Arm, Phase, batch_counts, first_steps
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationTile
from defectory.segmentation.training import train_segmenter
from defectory.stages.segment import Segment

CONFIG = SegmentationConfig(num_steps=4, batch_size=4, defect_free_share=0.25, validate_every=2, checkpoint_every=2)
TILES = {"real": 5, "synthetic": 7, "defect_free": 9}


def counts(arm: Arm, *, batch_size: int = 8, num_tiles: dict[str, int] = TILES) -> list[dict[str, int]]:
    return [
        batch_counts(phase, name="x", settings=CONFIG, batch_size=batch_size, num_tiles=num_tiles)
        for phase in arm.phases
    ]


def test_ours_hold_the_same_share_of_defect_free_tiles() -> None:
    assert counts(ARMS.get("real")) == [{"real": 6, "defect_free": 2}]
    assert counts(ARMS.get("synthetic")) == [{"synthetic": 6, "defect_free": 2}]
    assert counts(ARMS.get("synthetic_then_real")) == [
        {"synthetic": 6, "defect_free": 2},
        {"real": 6, "defect_free": 2},
    ]


def test_without_defect_free_tiles_the_batch_is_full() -> None:
    assert counts(ARMS.get("real"), num_tiles={"real": 2}) == [{"real": 8, "defect_free": 0}]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_every_batch_is_full_whatever_is_rounded(batch_size: int) -> None:
    arm = Arm(
        phases=(
            Phase(sources={"real": "rest", "synthetic": 0.5, "defect_free": 0.5}, steps=0.5),
            Phase(sources={"real": 0.34, "synthetic": 0.33, "defect_free": 0.33}, steps=0.5),
        )
    )
    for found in counts(arm, batch_size=batch_size):
        assert sum(found.values()) == batch_size
        assert min(found.values()) >= 0


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
        ({"real": "rest", "copy_paste": 0.5}, "arm x: no copy_paste tiles"),
    ],
)
def test_what_is_no_batch_is_refused(sources: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        counts(Arm(phases=(Phase(sources=sources),)))


def test_an_arm_from_outside_trains(
    make_tiles: Callable[..., list[SegmentationTile]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    to_sample = data.to_sample

    def seen(tile: SegmentationTile, rng: Any) -> Any:
        drawn.append(tile.id[:4])
        return to_sample(tile, rng)

    monkeypatch.setattr(data, "to_sample", seen)
    half = Arm(phases=(Phase(sources={"real": "rest", "synthetic": 0.5, "defect_free": "defect_free_share"}),))
    with ARMS.registered("half", half):
        config = SegmentationConfig.model_validate({**CONFIG.model_dump(), "arms": ["real", "half"]})
        trained = finish(
            train_segmenter(
                arm="half",
                tiles={
                    "real": make_tiles("real", 5),
                    "synthetic": make_tiles("made", 7, seed=1),
                    "defect_free": make_tiles("free", 9, with_defect=False),
                },
                validate=lambda _: 0.0,
                categories=(Category(id=1, name="crack"), Category(id=2, name="pit")),
                tiling=Tiling(mode="tile", tile_px=64, scale=1.0, reason="test"),
                config=config,
                seed=3,
                out=tmp_path,
            )
        )
    assert drawn == ["real", "made", "made", "free"] * 4
    assert len(trained.losses) == 4
    assert json.loads((tmp_path / "log.json").read_text())["arm"] == "half"
    with pytest.raises(ValidationError, match="'half' is not one of real, synthetic, synthetic_then_real"):
        SegmentationConfig.model_validate({"arms": ["half"]})


def test_a_changed_arm_makes_its_segmenters_stale() -> None:
    config = ProjectConfig.model_validate({"data": {"path": "labels.json"}})
    sources = Sources(folder=Path.cwd())

    def keys(arm: Arm) -> dict[str, str]:
        with ARMS.registered("twice", arm):
            return {name: repr(Segment(name, 0).cache_key(config, sources)) for name in ("real", "twice")}

    first = keys(Arm(phases=(Phase(sources={"real": "rest"}),)))
    again = keys(Arm(phases=(Phase(sources={"real": "rest"}),)))
    other = keys(Arm(phases=(Phase(sources={"synthetic": "rest"}),)))
    assert first == again
    assert first["real"] == other["real"]
    assert first["twice"] != other["twice"]
