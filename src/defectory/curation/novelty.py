"""Novelty: is a draft a copy of a training crop, of a prior image, or of another draft?

Similarity is the maximum normalised cross-correlation of band-passed, locally normalised thumbnails over all shifts,
mirrorings and, for square images, quarter turns. It ignores exposure and is robust to the slight blur of an
autoencoder. The limit above which a draft counts as a copy is learned from train: it lies halfway between the
similarity of tiles of different parts and that of copies made of train tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft as transforms

# scipy's functions dispatch on their arguments, which hides their return types
fft: Any = transforms
Image = NDArray[np.uint8]
Thumbnail = NDArray[np.float32]

SIDE_PX = 64
FINE_PX, COARSE_PX, LOCAL_PX = 0.8, 3.0, 6.0
"""Standard deviations, in thumbnail pixels, of the band-pass (fine, coarse) and of the local normalisation."""
NUM_CANDIDATES = 256
"""Number of originals to correlate: those with the most similar spectra, which shifts and mirrorings do not change."""
DEFAULT_LIMIT = 0.55
"""Limit to use if train has too few tiles or parts to learn one."""
MIN_TILES, MAX_LEARNT = 6, 64
BOUNDS = (0.35, 0.8)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """The similarity of an image to its most similar original, at most 1, and the name of that original."""

    value: float
    name: str


def thumbnail(image: Image, valid_hw: tuple[int, int] | None = None) -> Thumbnail:
    """Compute the thumbnail of an image RGB uint8 [H,W,3]: float32 [64,64] of mean 0 and norm 1, all 0 if blank."""
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
    """Return the symmetrised power spectrum, which no shift, mirroring or quarter turn changes."""
    power = np.log1p(np.abs(fft.fft2(thumb)) * SIDE_PX)
    even = np.mean(_turned(fft.fftshift(power)[1:, 1:]), axis=0)
    vector = cv2.resize(even.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA).ravel()
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


class Originals:
    """Images that drafts must not copy.

    Args:
        names: name of each image, shown if a draft is a copy of it.
        images: RGB uint8 [H,W,3] each.
        valid_hw: size of the image part of each; None uses the whole image.
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
        """Return the similarity of an image to its most similar original.

        Args:
            image: RGB uint8 [H,W,3].
            valid_hw: size of its image part; None uses the whole image.
            leave_out: originals to ignore, bool [N].
        """
        return self.likeness_of(thumbnail(image, valid_hw), leave_out=leave_out)

    def likeness_of(self, thumb: Thumbnail, *, leave_out: NDArray[np.bool_] | None = None) -> Likeness:
        """Return the same as `likeness`, for a thumbnail."""
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
    """Copy an image RGB uint8 [H,W,3] as a network that memorised it would: mirror, shift, re-expose and blur it."""
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
    """Learn the similarity from which a draft counts as a copy.

    Args:
        images: the train tiles among the originals, in their order, RGB uint8 [H,W,3].
        groups: group of each tile; tiles of one group show the same part.
        originals: these tiles first, then any other images.
        seed: seed of the copies.
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
    # if different parts look alike, the two ranges overlap; only a higher similarity than that of any two parts is a
    # copy
    return float(np.clip(max((high + low) / 2, high + 0.02), *BOUNDS))
