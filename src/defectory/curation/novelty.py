"""Novelty: is a draft a copy of a training crop, of a prior image, or of another draft?

Likeness is the peak of the normalised cross-correlation of band-passed, locally normalised thumbnails over all shifts
and mirrorings, and quarter turns of square ones: it does not mind exposure, and an autoencoder's blur little. What
counts as a copy is learned from
train: half way from what tiles of different parts reach to what copies made of train tiles reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft as transforms

# scipy's functions dispatch on their arguments, which hides what they give
fft: Any = transforms
Image = NDArray[np.uint8]
Thumbnail = NDArray[np.float32]

SIDE_PX = 64
FINE_PX, COARSE_PX, LOCAL_PX = 0.8, 3.0, 6.0
"""Blurs, in thumbnail pixels, between which the band lies, and over which its strength is evened out."""
NUM_CANDIDATES = 256
"""Originals that are correlated: those whose spectra are most alike, however shifted or mirrored."""
DEFAULT_LIMIT = 0.55
"""Where train has too few tiles or parts to learn from."""
MIN_TILES, MAX_LEARNT = 6, 64
BOUNDS = (0.35, 0.8)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike an image is to the original it is most alike to, at most 1, and that one's name."""

    value: float
    name: str


def thumbnail(image: Image, valid_hw: tuple[int, int] | None = None) -> Thumbnail:
    """Give what is compared of an image RGB uint8 [H,W,3], float32 [64,64] of mean 0 and norm 1; all 0 for a blank
    one.
    """
    height, width = valid_hw or image.shape[:2]
    grey = cv2.cvtColor(np.ascontiguousarray(image[:height, :width]), cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    band = cv2.GaussianBlur(small, (0, 0), FINE_PX) - cv2.GaussianBlur(small, (0, 0), COARSE_PX)
    strength = np.sqrt(cv2.GaussianBlur(band * band, (0, 0), LOCAL_PX))
    even = band / (strength + 0.5 * float(strength.mean()) + 1e-3)
    even = even - even.mean()
    norm = float(np.linalg.norm(even))
    return even / norm if norm > 1e-3 else np.zeros_like(even)


def _turned(thumb: Thumbnail) -> list[Thumbnail]:
    turns = [np.rot90(thumb, quarter) for quarter in range(4)]
    return [np.ascontiguousarray(t) for turn in turns for t in (turn, turn[:, ::-1])]


def _spectrum(thumb: Thumbnail) -> NDArray[np.float32]:
    """Give a vector that no shift, mirroring or quarter turn changes: the power spectrum, averaged over them."""
    power = np.log1p(np.abs(fft.fft2(thumb)) * SIDE_PX)
    even = np.mean(_turned(fft.fftshift(power)[1:, 1:]), axis=0)
    vector = cv2.resize(even.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA).ravel()
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


class Originals:
    """Images that drafts must not copy.

    Args:
        names: of the images, shown where a draft is a copy of one.
        images: RGB uint8 [H,W,3] each.
        valid_hw: image part of each; None takes all of it.
    """

    def __init__(
        self, names: Sequence[str], images: Sequence[Image], valid_hw: Sequence[tuple[int, int]] | None = None
    ) -> None:
        self._names = list(names)
        thumbs = [thumbnail(image, None if valid_hw is None else valid_hw[i]) for i, image in enumerate(images)]
        self._spectra = np.array([_spectrum(t) for t in thumbs]) if thumbs else np.zeros((0, 256), np.float32)
        self._turned = [fft.rfft2(np.stack(_turned(t))).astype(np.complex64) for t in thumbs]

    def __len__(self) -> int:
        return len(self._names)

    def likeness(
        self, image: Image, valid_hw: tuple[int, int] | None = None, *, leave_out: NDArray[np.bool_] | None = None
    ) -> Likeness:
        """Give how alike an image is to the original it is most alike to.

        Args:
            image: RGB uint8 [H,W,3].
            valid_hw: image part of it; None takes all.
            leave_out: originals that do not count, bool [N].
        """
        return self.likeness_of(thumbnail(image, valid_hw), leave_out=leave_out)

    def likeness_of(self, thumb: Thumbnail, *, leave_out: NDArray[np.bool_] | None = None) -> Likeness:
        """Give the same for a thumbnail."""
        near = self._spectra @ _spectrum(thumb)
        if leave_out is not None:
            near = np.where(leave_out, -np.inf, near)
        candidates = [int(i) for i in np.argsort(-near)[:NUM_CANDIDATES] if np.isfinite(near[i])]
        transform = fft.rfft2(thumb).astype(np.complex64)
        best = Likeness(value=0.0, name="")
        for index in candidates:
            peak = float(fft.irfft2(transform * np.conj(self._turned[index]), s=thumb.shape, overwrite_x=True).max())
            if peak > best.value:
                best = Likeness(value=peak, name=self._names[index])
        return best


def copy_of(image: Image, rng: np.random.Generator) -> Image:
    """Give a copy of an image RGB uint8 [H,W,3] as a network that memorised it would draw it: mirrored, shifted,
    re-exposed and softened.
    """
    turned = image[:, ::-1] if rng.random() < 0.5 else image
    turned = turned[::-1] if rng.random() < 0.5 else turned
    height, width = image.shape[:2]
    dy, dx = (int(rng.integers(-side // 16, side // 16 + 1)) for side in (height, width))
    moved = cv2.warpAffine(
        np.ascontiguousarray(turned),
        np.array([[1, 0, dx], [0, 1, dy]], np.float32),
        (width, height),
        borderMode=cv2.BORDER_REFLECT_101,
    )
    exposed = moved.astype(np.float32) * rng.uniform(0.75, 1.25) + rng.uniform(-15, 15)
    return np.clip(np.round(cv2.GaussianBlur(exposed, (0, 0), rng.uniform(0.5, 1.1))), 0, 255).astype(np.uint8)


def learn_limit(images: Sequence[Image], groups: Sequence[str], originals: Originals, *, seed: int) -> float:
    """Give the likeness from which on a draft counts as a copy.

    Args:
        images: the train tiles among the originals, in their order, RGB uint8 [H,W,3].
        groups: of each; tiles of one group show the same part.
        originals: those tiles and perhaps more behind them.
        seed: of the copies that are made.
    """
    if len(images) < MIN_TILES or len(set(groups)) < 2:
        return DEFAULT_LIMIT
    of = np.array([*groups, *[""] * (len(originals) - len(groups))])
    strangers, copies = [], []
    for index in np.unique(np.linspace(0, len(images) - 1, MAX_LEARNT).round().astype(int)).tolist():
        image = images[index]
        strangers.append(originals.likeness(image, leave_out=of == groups[index]).value)
        rng = np.random.default_rng([62, seed, index])
        copies.append(originals.likeness(copy_of(image, rng)).value)
    high, low = float(np.quantile(strangers, 0.99)), float(np.quantile(copies, 0.05))
    # where parts are alike the two overlap; a copy is then what is more alike than any two parts are
    return float(np.clip(max((high + low) / 2, high + 0.02), *BOUNDS))
