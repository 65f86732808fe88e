"""Scores how well a base follows captions, and how close its samples are to procedural images.

A classifier trained only on procedural images names the material and defect of held-out images, and of samples drawn
for their captions. A base that follows captions nearly reaches the accuracy of the images themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from defectory.artifacts.scores import BaseScores
from defectory.engine.features.encoder import ConvEncoder
from defectory.engine.features.heads import EncoderHeads
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.tensors import images_to_tensor
from defectory.events import Work
from defectory.pretraining.config import ScoreConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.encoder import dominant_class
from defectory.pretraining.loop import fit

Image = NDArray[np.uint8]
BATCH = 32
GRID_CAPTIONS = (
    "a medium mild grey brushed metal surface, without defect",
    "a dim clear grey brushed metal surface, with a crack",
    "a light clear grey cast metal surface, with a pores",
    "a muted mild grey rolled steel surface, with a scratch",
    "a dusky clear grey milled metal surface, with a pit",
    "a medium mild blue anodised metal surface, with a dent",
    "a muted clear red painted metal surface, with a corrosion",
    "a medium clear grey woven fabric surface, with a fray",
    "a dim clear grey ceramic surface, with a break",
    "a muted clear grey ceramic surface, with a crack",
    "a light clear grey concrete surface, with a crack",
    "a dark clear grey asphalt surface, with a stain",
    "a pale mild red plastic surface, with a inclusion",
    "a dim strong green circuit board surface, with a scratch",
    "a dim clear red leather surface, with a stain",
    "a medium strong grey rolled steel surface with hole, with a crack",
)
"""Sixteen captions in the style of the procedural world, in the order of the grid of samples."""


class Judge(nn.Module):
    """A classifier of an image's material and defect; defect 0 means none."""

    def __init__(self, *, num_materials: int, num_defects: int) -> None:
        super().__init__()
        self.encoder = ConvEncoder()
        self.heads = EncoderHeads(num_materials=num_materials, num_defects=num_defects)
        self.defect = nn.Linear(2 * num_defects, num_defects)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return material logits [B,M], defect logits of images [B,D] and of their pixels [B,D,h,w].

        Args:
            pixels: float [B,3,H,W] in [-1,1].
        """
        material, pixelwise = self.heads(self.encoder(pixels))
        pooled = torch.cat(
            [pixelwise.amax(dim=(2, 3)), pixelwise.softmax(dim=1).mean(dim=(2, 3)).clamp_min(1e-6).log()], dim=1
        )
        return material, self.defect(pooled), pixelwise


@dataclass(frozen=True, kw_only=True)
class Named:
    """Content of an image by its caption: index of the material, and index of the defect word + 1, or 0."""

    material: int
    defect: int


def name_images(corpus: Corpus, materials: Sequence[str], words: Sequence[str]) -> list[Named | None]:
    """Name the content of each image; None if it shows more than one kind of defect."""
    named: list[Named | None] = []
    for material, shown in zip(corpus.materials, corpus.defect_words, strict=True):
        kinds = set(shown)
        defect = words.index(next(iter(kinds))) + 1 if kinds else 0
        named.append(None if len(kinds) > 1 else Named(material=materials.index(material), defect=defect))
    return named


def train_judge(
    corpus: Corpus,
    named: Sequence[Named | None],
    *,
    num_materials: int,
    num_defects: int,
    config: ScoreConfig,
    checkpoint: Path,
) -> Work[Judge]:
    """Train the classifier on all but the last `num_held_out` images of the corpus, and return it."""
    torch.manual_seed(config.seed + 9)
    judge = Judge(num_materials=num_materials, num_defects=num_defects)
    usable = torch.tensor([i for i in range(len(corpus) - config.num_held_out) if named[i] is not None])

    def loss_of(_step: int, generator: torch.Generator) -> Tensor:
        indices = usable[torch.randint(len(usable), (config.judge.batch_size,), generator=generator)].tolist()
        truth = [n for i in indices if (n := named[i]) is not None]
        pixels = images_to_tensor([corpus.images[i] for i in indices])
        class_maps = torch.stack([torch.from_numpy(corpus.class_maps[i]) for i in indices])
        for axis in (-1, -2):
            if torch.rand((), generator=generator) < 0.5:
                pixels, class_maps = pixels.flip(axis), class_maps.flip(axis)
        material, defect, pixelwise = judge(pixels)
        weight = torch.ones(num_defects)
        weight[0] = 0.3
        return (
            functional.cross_entropy(material, torch.tensor([n.material for n in truth]))
            + functional.cross_entropy(defect, torch.tensor([n.defect for n in truth]))
            + functional.cross_entropy(pixelwise, dominant_class(class_maps, pixelwise.shape[-2:]), weight=weight)
        )

    yield from fit(judge, loss_of, config.judge, stage="judge", seed=config.seed, checkpoint=checkpoint)
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, images: Sequence[Image], named: Sequence[Named]) -> tuple[float, float]:
    """Compute the accuracy of material and of defect, with captions as the truth."""
    right = np.zeros(2)
    for start in range(0, len(images), BATCH):
        material, defect, _ = judge(images_to_tensor(list(images[start : start + BATCH])))
        truth = named[start : start + BATCH]
        right += [
            (material.argmax(dim=1) == torch.tensor([n.material for n in truth])).sum().item(),
            (defect.argmax(dim=1) == torch.tensor([n.defect for n in truth])).sum().item(),
        ]
    return float(right[0] / len(images)), float(right[1] / len(images))


def draw_captions(models: SamplingModels, captions: Sequence[str], *, config: ScoreConfig) -> Iterator[list[Image]]:
    """Draw one sample per caption without a control network, and yield batches."""
    sampler = Sampler(scheduler="dpm-solver", num_inference_steps=config.num_inference_steps, mixed_precision="auto")
    guidance = Guidance(text=config.guidance_scale, text_rescale=config.guidance_rescale)
    for start in range(0, len(captions), BATCH):
        batch = list(captions[start : start + BATCH])
        seeds = [config.seed * 1_000_003 + start + i for i in range(len(batch))]
        yield list(sample_images(models, Conditions(prompts=batch), seeds=seeds, sampler=sampler, guidance=guidance))


def summarise(
    judge: Judge,
    *,
    images: Sequence[Image],
    samples: Sequence[Image],
    named: Sequence[Named],
    kid: float,
    kid_floor: float,
    encoder: str,
) -> BaseScores:
    """Combine the scores of samples with those of the images whose captions they were drawn for."""
    material, defect = accuracy(judge, images, named)
    drawn_material, drawn_defect = accuracy(judge, samples, named)
    return BaseScores(
        num_samples=len(samples),
        material_accuracy=material,
        material_accuracy_of_samples=drawn_material,
        defect_accuracy=defect,
        defect_accuracy_of_samples=drawn_defect,
        encoder=encoder,
        kid=kid,
        kid_floor=kid_floor,
    )
