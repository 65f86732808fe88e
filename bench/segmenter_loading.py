"""Share of a segmenter's training step that goes into preparing its batch, by policy of variation.

Both are timed in turns, in processor seconds of one thread, on rendered borescope images of the demo's size: eight
images drawn and varied, and losses and gradients of the default segmenter on them, in the precision of a run.

Run: `OMP_NUM_THREADS=1 python bench/segmenter_loading.py`. Prints rows of a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time

from defectory.procedural.borescope import CLASSES, render
from defectory.rle import encode
from defectory.segmentation.arms import ARMS
from defectory.segmentation.batches import Batches
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.policies import POLICIES
from segmenter_step import step_s

NUM_IMAGES = 12
"""With defects, and as many without."""


def images_of() -> dict[str, list[SegmentationImage]]:
    """Render images with defects, and without any."""
    images: dict[str, list[SegmentationImage]] = {"real": [], "defect_free": []}
    for seed in range(NUM_IMAGES):
        for source, has_defects in (("real", True), ("defect_free", False)):
            shot = render(seed, scene_seed=seed, defects=has_defects)
            instances = tuple((CLASSES.index(word) + 1, encode(mask)) for word, mask in shot.instances)
            images[source].append(SegmentationImage(id=f"{source}-{seed}", image=shot.image, instances=instances))
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    config, images = SegmentationConfig(), images_of()
    model = build_segmenter(config.model, Build(num_classes=len(CLASSES)), seed=0)[0].train()
    print("| variation | preparing a batch, ms | the step, ms | share of both |\n|---|---|---|---|")
    for policy in POLICIES.names():
        varied = config.model_copy(update={"augmentation": policy, "input_px": 160})
        batches = Batches(ARMS.get("real"), "real", (0, steps + 2), images, varied, 0)
        prepared: list[float] = []
        taken: list[float] = []
        for step in range(steps + 2):
            begun = time.process_time()
            _, batch = batches.at(step)
            prepared.append(time.process_time() - begun)
            taken.append(step_s(model, [image for image, _ in batch], [target for _, target in batch]))
        preparing, training = (statistics.median(values[2:]) * 1000 for values in (prepared, taken))
        share = preparing / (preparing + training)
        print(f"| `{policy}` | {preparing:.1f} | {training:.0f} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    main()
