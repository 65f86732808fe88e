"""What a base draws for a word of the world before and after `base teach`, and how far it draws other texts as before.

The classifier of `base score` names defects in images of the word and in samples of both bases for these images'
captions. Other
texts: captions of the world without the word, same noise for both bases. Run:
`python bench/taught_word.py TAUGHT --score FOLDER_OF_BASE_SCORE [--base embedded] [--word dent]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from defectory.drawing import contact_sheet
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.load import load_base
from defectory.engine.sampling.models import SamplingModels, for_sampling
from defectory.engine.sampling.sample import sample_noise
from defectory.engine.tensors import images_to_tensor
from defectory.images.save import save_png
from defectory.pretraining.config import ScoreConfig
from defectory.pretraining.diffusion import Noising, build_scheduler
from defectory.pretraining.score import Judge, draw_captions
from defectory.procedural.defects import DEFECT_WORDS
from defectory.procedural.materials import MATERIALS
from defectory.procedural.world import Sample, render

Image = NDArray[np.uint8]
FIRST_SEED = 8_000_000_000
"""No corpus reaches it."""
TIMESTEPS = (100, 400, 700, 950)


def samples_of_world(count: int, *, only: str | None, without: str = "") -> list[Sample]:
    """Give images with defects: all of one word, or of the world but that word."""
    found: list[Sample] = []
    seed = FIRST_SEED
    while len(found) < count:
        sample = render(seed, only=only, with_defect=True)
        found += [sample] if sample.defect_words and without not in sample.defect_words else []
        seed += 1
    return found


@torch.no_grad()
def named(judge: Judge, images: Sequence[Image]) -> Counter[str]:
    """Count the defects that the classifier names, "none" among them."""
    logits = torch.cat([judge(images_to_tensor(list(images[i : i + 32])))[1] for i in range(0, len(images), 32)])
    return Counter(("none", *DEFECT_WORDS)[i] for i in logits.argmax(dim=1).tolist())


def drawn(models: SamplingModels, captions: Sequence[str], config: ScoreConfig) -> list[Image]:
    """Draw a sample per caption."""
    return [image for batch in draw_captions(models, captions, config=config) for image in batch]


@torch.no_grad()
def moved(before: Backbone, after: Backbone, samples: Sequence[Sample]) -> list[float]:
    """Give the relative difference of both bases' predictions for noisy latents of images and their captions, one per
    timestep.
    """
    noising = Noising(build_scheduler(), torch.device("cpu"))
    clean = before.encode_images(images_to_tensor([s.image for s in samples]))
    noise = sample_noise(range(len(samples)), (clean.shape[1], clean.shape[2], clean.shape[3]))
    result: list[float] = []
    for timestep in TIMESTEPS:
        timesteps = torch.full((len(samples),), timestep)
        noisy, _ = noising.add(clean, noise, timesteps)
        old, new = (
            m.predict(noisy, timesteps, encode_prompts(m, [s.caption for s in samples])) for m in (before, after)
        )
        result.append(float((new - old).norm() / old.norm()))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("taught", type=Path)
    parser.add_argument("--score", type=Path, required=True)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--word", default="dent", choices=DEFECT_WORDS)
    parser.add_argument("--num-samples", type=int, default=96)
    parser.add_argument("--out", type=Path, help="folder for sheets of images and samples")
    arguments = parser.parse_args()
    config, word = ScoreConfig(seed=11), arguments.word
    judge = Judge(num_materials=len(MATERIALS), num_defects=len(DEFECT_WORDS) + 1)
    stored = load_file(arguments.score / "checkpoint" / "state.safetensors")
    judge.load_state_dict(
        {name.removeprefix("average."): value for name, value in stored.items() if name.startswith("average.")}
    )
    judge.eval()
    before, after = (for_sampling(load_base(folder)) for folder in (resolve_base(arguments.base), arguments.taught))

    images = samples_of_world(arguments.num_samples, only=word)
    others = samples_of_world(64, only=None, without=word)
    result: dict[str, object] = {"word": word, "num": len(images)}
    sets = {"images": [s.image for s in images]}
    for name, models in (("before", before), ("after", after)):
        sets[name] = drawn(models, [s.caption for s in images], config)
        sets[f"{name}, other texts"] = drawn(models, [s.caption for s in others], config)
    for name, pictures in sets.items():
        counts = named(judge, pictures)
        key = name if "other" in name else f"{name} named {word}"
        result[key] = dict(counts.most_common()) if "other" in name else round(counts[word] / len(pictures), 3)
        if arguments.out is not None:
            save_png(
                arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}.png",
                contact_sheet(pictures[:32], columns=8, cell_px=128),
            )
    result["other texts: relative change of predictions at timesteps"] = dict(
        zip(TIMESTEPS, (round(x, 4) for x in moved(before.backbone, after.backbone, others)), strict=True)
    )
    pairs = zip(sets["before, other texts"], sets["after, other texts"], strict=True)
    result["other texts: mean difference of samples, grey levels"] = round(
        float(np.mean([np.abs(a.astype(int) - b.astype(int)).mean() for a, b in pairs])), 2
    )
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
