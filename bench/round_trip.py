"""What the autoencoder of a base keeps: PSNR of its round trip on native crops of photographs, and the contrast of
cracks 2 px wide.

The cracks are drawn on procedural images of seeds no corpus has, three fifths darker than their surface. Run:
`python bench/round_trip.py FOLDER_OF_IMAGES [FOLDER_OF_IMAGES ...] [--base embedded]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.sd1.model import load_stable_diffusion
from defectory.engine.tensors import images_to_tensor, tensor_to_images
from defectory.evaluation.contrast import defect_contrast
from defectory.images.load import load_rgb
from defectory.pretraining.vae import reconstruction_psnr_db
from defectory.procedural.world import render

Image = NDArray[np.uint8]
CROP_PX = 128
FIRST_SEED = 9_000_000_000
CRACK_PX = 2
CRACK_LEVEL = 0.4
MIN_SURFACE_LEVEL = 40.0


def crops_of(folder: Path, count: int) -> list[Image]:
    """Give crops of `CROP_PX` from the middle of images spread evenly over a folder; images that are smaller are left
    out.
    """
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
    )
    chosen: list[Image] = []
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int):
        image = load_rgb(files[index])
        y, x = (side - CROP_PX for side in image.shape[:2])
        if min(y, x) >= 0:
            chosen.append(image[y // 2 : y // 2 + CROP_PX, x // 2 : x // 2 + CROP_PX])
    return chosen


def cracked(seed: int) -> tuple[Image, NDArray[np.bool_]]:
    """Draw a thin curve on a procedural image without defects; image uint8 [128,128,3] and its mask bool [128,128]."""
    rng = np.random.default_rng([74, seed])
    image = render(FIRST_SEED + seed, (CROP_PX, CROP_PX), with_defect=False).image
    begin, bend, end = rng.uniform(16, CROP_PX - 16, (3, 2))
    t = np.linspace(0, 1, 24)[:, None]
    curve = (1 - t) ** 2 * begin + 2 * t * (1 - t) * bend + t**2 * end
    mask = np.zeros((CROP_PX, CROP_PX), np.uint8)
    cv2.polylines(mask, [np.round(curve).astype(np.int32)], False, 1, CRACK_PX)
    return np.where(mask[..., None] > 0, np.round(image * CRACK_LEVEL), image).astype(np.uint8), mask > 0


@torch.no_grad()
def round_trip(vae: AutoencoderKL, image: Image) -> Image:
    """Encode and decode an image."""
    return tensor_to_images(vae.decode(vae.encode(images_to_tensor([image])).latent_dist.mean).sample)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--num-crops", type=int, default=100)
    parser.add_argument("--num-cracks", type=int, default=100)
    arguments = parser.parse_args()
    vae = load_stable_diffusion(resolve_base(arguments.base)).vae
    result: dict[str, object] = {"base": arguments.base}
    for folder in arguments.folders:
        values = reconstruction_psnr_db(vae, list(images_to_tensor(crops_of(folder, arguments.num_crops))))
        name = folder.parent.name if folder.name == "images" else folder.name
        result[name] = {
            "psnr_db": round(float(np.mean(values)), 2),
            "lowest_db": round(min(values), 2),
            "num_crops": len(values),
        }
    kept: list[float] = []
    for seed in range(arguments.num_cracks):
        image, mask = cracked(seed)
        before, after = (defect_contrast(seen, mask, mask) for seen in (image, round_trip(vae, image)))
        if np.median(image) >= MIN_SURFACE_LEVEL and before and after is not None:
            kept.append(after / before)
    result["cracks"] = {
        "contrast_kept": round(float(np.mean(kept)), 3),
        "quantile_05": round(float(np.quantile(kept, 0.05)), 3),
        "num_cracks": len(kept),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
