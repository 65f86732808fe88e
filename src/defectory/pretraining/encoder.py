"""Stage 3: trains the image encoder behind offline KID/FID and the light segmenter.

It has two tasks on procedural images: name the material of the whole image, and the defect word of every pixel.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from defectory.engine.features.encoder import ConvEncoder, save_encoder
from defectory.engine.features.heads import EncoderHeads
from defectory.engine.precision import autocast
from defectory.engine.tensors import images_to_tensor
from defectory.events import Work
from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.corpus import Corpus
from defectory.pretraining.loop import fit
from defectory.procedural.defects import DEFECT_WORDS


class EncoderWithHeads(nn.Module):
    """The encoder with its two training heads."""

    def __init__(self, encoder: ConvEncoder, heads: EncoderHeads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return material logits [B,M] and defect logits [B,D,h,w] for images [B,3,H,W] in [-1,1]."""
        return self.heads(self.encoder(pixels))


def train_encoder(config: PretrainConfig, corpus: Corpus, *, checkpoint: Path, out: Path) -> Work[None]:
    """Train the encoder on the corpus, and write it to a folder."""
    torch.manual_seed(config.seed + 4)
    device = torch.device(config.device)
    materials = sorted(set(corpus.materials))
    num_defects = len(DEFECT_WORDS) + 1
    encoder = ConvEncoder()
    model = EncoderWithHeads(encoder, EncoderHeads(num_materials=len(materials), num_defects=num_defects)).to(device)
    num_train = len(corpus) - config.num_held_out
    material_of = torch.tensor([materials.index(name) for name in corpus.materials])

    def loss_of(_step: int, generator: torch.Generator) -> Tensor:
        indices = torch.randint(num_train, (config.encoder.batch_size,), generator=generator)
        pixels = images_to_tensor([corpus.images[i] for i in indices.tolist()]).to(device)
        class_maps = torch.stack([torch.from_numpy(corpus.class_maps[i]) for i in indices.tolist()]).to(device)
        if torch.rand((), generator=generator) < 0.5:
            pixels, class_maps = pixels.flip(-1), class_maps.flip(-1)
        with autocast(config.mixed_precision, device):
            material_logits, defect_logits = model(pixels)
        target = dominant_class(class_maps, defect_logits.shape[-2:])
        weight = torch.ones(num_defects, device=device)
        weight[0] = 0.3
        return functional.cross_entropy(defect_logits.float(), target, weight=weight) + 0.3 * functional.cross_entropy(
            material_logits.float(), material_of[indices].to(device)
        )

    yield from fit(model, loss_of, config.encoder, stage="encoder", seed=config.seed, checkpoint=checkpoint)
    save_encoder(encoder.cpu(), out)


def dominant_class(class_maps: Tensor, size_hw: torch.Size) -> Tensor:
    """Return the highest class under each output pixel, so that thin defects are not lost.

    Args:
        class_maps: uint8 [B,H,W].
        size_hw: output height and width; they divide H and W.
    """
    factor = class_maps.shape[-1] // size_hw[-1]
    return functional.max_pool2d(class_maps.float()[:, None], factor)[:, 0].long()
