from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from defectory.files import MARKER_NAME, digest_file


def outcome(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): digest_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and "cache" not in path.parts and path.name != MARKER_NAME
    }


@pytest.mark.long
def test_killed_three_times_it_ends_with_the_same_files(
    tiny_base_folder: Path, kill_three_times: Callable[..., tuple[Path, Path]]
) -> None:
    whole, killed = kill_three_times(
        f"""
        import numpy as np
        from defectory.concept.config import ConceptConfig
        from defectory.concept.learn import learn_concept
        from defectory.engine.training.config import TrainingConfig
        from defectory.engine.training.data import TrainingTile
        def stage(out):
            images = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3)).astype(np.uint8)
            tiles = [TrainingTile(id=str(i), image=image, valid_hw=(32, 48)) for i, image in enumerate(images)]
            training = TrainingConfig(num_steps=12, batch_size=4, variants_per_image=2, checkpoint_every=2)
            config = ConceptConfig(num_class_images=4, prior_inference_steps=3, training=training)
            for _ in learn_concept(tiles, base=Path({str(tiny_base_folder)!r}), config=config, seed=3, out=out):
                pass
        """
    )
    assert outcome(killed) == outcome(whole)
    tensors = load_file(whole / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
