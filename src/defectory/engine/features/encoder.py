"""Defines a narrow residual encoder: features for offline KID/FID, and the light segmenter's backbone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from defectory.engine.tensors import images_to_tensor
from defectory.errors import WeightsError
from defectory.files import digest_file, write_json
from defectory.folders.swap import atomic_folder

CHANNELS = (24, 48, 96, 128)
STRIDES = (2, 4, 8, 16)
EMBED_IMAGES = 64
"""Images embedded at once."""
EMBEDDED_NAME = "embedded-v1"


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            _norm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            _norm(outputs),
        )
        self.skip = (
            nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


class ConvEncoder(nn.Module):
    """Residual stages at strides 2, 4, 8 and 16 with group normalisation.

    Takes images float [B,3,H,W] in [-1,1].
    """

    channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS[0], 5, 2, 2, bias=False), _norm(CHANNELS[0]), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList(
            [nn.Sequential(_Block(a, b, 2), _Block(b, b, 1)) for a, b in itertools.pairwise(CHANNELS)]
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return feature maps at strides 2, 4, 8 and 16."""
        maps = [self.stem(pixels)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Compute one vector per image, float32 [B,D]: mean and standard deviation of every stage but the first."""
        parts: list[Tensor] = []
        for feature in self.forward(pixels)[1:]:
            parts += [feature.mean(dim=(2, 3)), feature.std(dim=(2, 3))]
        return torch.cat(parts, dim=1).float()


def embed_images(encoder: ConvEncoder, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Embed RGB images uint8 [H,W,3] of one size as one vector each, float64 [N,D]."""
    parts = [
        encoder.embed(images_to_tensor(images[i : i + EMBED_IMAGES])).numpy()
        for i in range(0, len(images), EMBED_IMAGES)
    ]
    return np.concatenate(parts).astype(np.float64)


def embedded_encoder_folder() -> Path:
    """Return the folder of the shipped encoder."""
    return Path(str(files("defectory.engine.features") / "weights"))


def save_encoder(encoder: ConvEncoder, out: Path) -> None:
    """Write an encoder's folder: fp16 `model.safetensors` and `config.json` with its digest."""
    with atomic_folder(out, kind="base") as folder:
        state = {name: value.detach().half().contiguous() for name, value in encoder.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        write_json(
            folder / "config.json",
            {"name": EMBEDDED_NAME, "channels": list(CHANNELS), "sha256": digest_file(folder / "model.safetensors")},
        )


def load_encoder(folder: Path | None = None) -> tuple[ConvEncoder, str]:
    """Load an encoder and its name; None loads the shipped one.

    Raises:
        WeightsError: a part is missing, damaged or different from its digest.
    """
    folder = folder or embedded_encoder_folder()
    weights, config_file = folder / "model.safetensors", folder / "config.json"
    if not weights.is_file() or not config_file.is_file():
        raise WeightsError(
            folder,
            "no encoder here (model.safetensors and config.json expected)",
            "reinstall defectory or give another encoder",
        )
    config = json.loads(config_file.read_text())
    if digest_file(weights) != config["sha256"]:
        raise WeightsError(
            weights, "digest differs from config.json", "copy the encoder again, the file is damaged or was changed"
        )
    encoder = ConvEncoder()
    try:
        encoder.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            weights, f"cannot be read ({str(error).splitlines()[0]})", "copy the encoder again"
        ) from None
    return encoder.eval().requires_grad_(False), str(config["name"])
