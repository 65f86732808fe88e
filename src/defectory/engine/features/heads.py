"""Defines the heads for training the encoder, which are not shipped."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from defectory.engine.features.encoder import CHANNELS


class EncoderHeads(nn.Module):
    """Predicts the material of the whole image and the defect class of every pixel at stride 4."""

    def __init__(self, *, num_materials: int, num_defects: int, width: int = 64) -> None:
        super().__init__()
        self.material = nn.Linear(CHANNELS[-1], num_materials)
        self.lateral = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in CHANNELS[1:]])
        self.defect = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, num_defects, 1)
        )

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return material logits [B,M] and defect logits [B,D,h,w] at stride 4."""
        top = self.lateral[-1](maps[-1])
        for lateral, feature in zip(list(self.lateral)[-2::-1], maps[-2:0:-1], strict=True):
            top = lateral(feature) + functional.interpolate(top, size=feature.shape[-2:], mode="bilinear")
        return self.material(maps[-1].mean(dim=(2, 3))), self.defect(top)
