"""Train the start of a light segmenter on procedural images, as `base pretrain` does, without the other networks.

Set `segmentation.model` to the family, and `segmentation.weights` to the folder `start` below the given one. Takes 20
minutes on one core and resumes if it was stopped. What ships was made with `python bench/pretrain_segmenter.py FOLDER`
and `python bench/pretrain_segmenter.py FOLDER --model unet --num-steps 1500 --num-images 6000 --validate-every 750`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from defectory.engine.features.encoder import embedded_encoder_folder
from defectory.events import Notice, StageEnded
from defectory.pretraining.config import PretrainConfig
from defectory.tools.segmenter_start import run_segmenter_start


def main() -> None:
    """Train, and print what held-out images say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="unet")
    parser.add_argument("--num-steps", type=int, default=3000)
    parser.add_argument("--num-images", type=int, default=12_000)
    parser.add_argument("--validate-every", type=int, default=500)
    args = parser.parse_args()
    recipe = PretrainConfig.model_validate(
        {
            "num_images": args.num_images,
            "segmenter": {
                "model": args.model,
                "num_steps": args.num_steps,
                "num_images": args.num_images,
                "validate_every": args.validate_every,
            },
        }
    )
    start = args.folder / "start"
    for event in run_segmenter_start(recipe, work=args.folder, encoder=embedded_encoder_folder(), out=start):
        if isinstance(event, Notice | StageEnded):
            print(event.text if isinstance(event, Notice) else f"{event.summary}; {start}", flush=True)


if __name__ == "__main__":
    main()
