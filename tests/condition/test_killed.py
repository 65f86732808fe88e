from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from defectory.artifacts.weights import Concept
from defectory.engine.backbones.save import save_base_like
from defectory.files import MARKER_NAME, digest_file, digest_folder


def outcome(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): digest_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and "cache" not in path.parts and path.name != MARKER_NAME
    }


@pytest.mark.long
def test_killed_three_times_it_ends_with_the_same_files(
    tiny_base_folder: Path, tmp_path: Path, kill_three_times: Callable[..., tuple[Path, Path]]
) -> None:
    concept = tmp_path / "concept"
    save_base_like(tiny_base_folder, concept / "base", replaced={})
    Concept(
        method="dreambooth",
        instance_token="sks",
        class_noun="surface",
        tone_words=True,
        base_digest="b",
        weights_digest=digest_folder(concept / "base"),
    ).save(concept / "concept.json")
    whole, killed = kill_three_times(
        f"""
        import numpy as np
        from defectory.condition.config import ConditionConfig
        from defectory.condition.learn import learn_condition
        from defectory.engine.training.config import TrainingConfig
        from defectory.engine.training.data import TrainingTile
        def stage(out):
            images = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3)).astype(np.uint8)
            mask = np.zeros((32, 48), bool)
            mask[8:14, 20:30] = True
            tiles = [
                TrainingTile(id=str(i), image=image, instances=((1, mask),), class_names=("crack",), valid_hw=(32, 48))
                for i, image in enumerate(images)
            ]
            training = TrainingConfig(num_steps=12, batch_size=4, variants_per_image=2, checkpoint_every=2)
            config = ConditionConfig(training=training)
            for _ in learn_condition(
                tiles, concept=Path({str(concept)!r}), config=config,
                make_driver=lambda image, *_: image // 5, driver_digest="d", seed=3, out=out
            ):
                pass
        """,
        seed=1,
    )
    assert outcome(killed) == outcome(whole)
