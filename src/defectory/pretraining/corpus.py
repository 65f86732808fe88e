"""Renders the procedural corpus in several processes, and opens it as memory-mapped arrays."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.files import atomic_path, digest_file, write_json
from defectory.procedural.world import render

CHUNK_IMAGES = 500
SAFE_PATH = "PYTHONSAFEPATH"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Images uint8 [N,H,W,3], class maps uint8 [N,H,W] (0 none, else index of the defect word + 1), and captions."""

    images: NDArray[np.uint8]
    class_maps: NDArray[np.uint8]
    captions: list[str]
    tones: list[str]
    materials: list[str]
    defect_words: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.captions)


def _render_chunk(job: tuple[str, int, int, int, int, str | None]) -> None:
    folder, first, count, tile_px, seed, only = job
    images = np.empty((count, tile_px, tile_px, 3), np.uint8)
    class_maps = np.empty((count, tile_px, tile_px), np.uint8)
    words: list[dict[str, Any]] = []
    for index in range(count):
        sample = render(
            seed * 100_000_000 + first + index, (tile_px, tile_px), with_defect=True if only else None, only=only
        )
        images[index], class_maps[index] = sample.image, sample.class_map
        words.append(
            {
                "caption": sample.caption,
                "tone": sample.tone,
                "material": sample.material,
                "defects": list(sample.defect_words),
            }
        )
    digests: dict[str, str] = {}
    for kind, array in (("images", images), ("classes", class_maps)):
        path = Path(folder) / f"{kind}-{first:07d}.npy"
        with atomic_path(path) as temporary:
            np.save(temporary, array)
        digests[kind] = digest_file(path)
    write_json(Path(folder) / f"words-{first:07d}.json", {"words": words, "sha256": digests})


def _words_of(folder: Path, first: int) -> list[dict[str, Any]] | None:
    """Load the words of a chunk's images; None if the chunk is missing or damaged."""
    try:
        content = json.loads((folder / f"words-{first:07d}.json").read_bytes())
        for kind, digest in content["sha256"].items():
            if digest_file(folder / f"{kind}-{first:07d}.npy") != digest:
                return None
        return list(content["words"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def safe_path_for_children() -> Generator[None]:
    """Keep processes that are started meanwhile from importing modules of the current folder."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def make_corpus(
    folder: Path, *, num_images: int, tile_px: int, seed: int, num_workers: int, only: str | None = None
) -> Corpus:
    """Render missing or damaged parts of the corpus to a folder, and open the corpus.

    Args:
        folder: two array files per chunk, and a words file with their digests.
        num_images: images in all.
        tile_px: side of every image, pixels.
        seed: of the whole corpus; image i depends only on (seed, i).
        num_workers: processes; one renders in this process.
        only: a defect word that every image shows as its only defect, except on surfaces that would not show it; None
            renders the usual mix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, num_images, CHUNK_IMAGES)
    missing = [
        (str(folder), first, min(CHUNK_IMAGES, num_images - first), tile_px, seed, only)
        for first in starts
        if _words_of(folder, first) is None
    ]
    if min(num_workers, len(missing)) == 1:
        for job in missing:
            _render_chunk(job)
    elif missing:
        with safe_path_for_children(), ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_render_chunk, missing))
    words = [entry for first in starts for entry in _words_of(folder, first) or ()]
    return Corpus(
        images=np.concatenate([np.load(folder / f"images-{first:07d}.npy") for first in starts]),
        class_maps=np.concatenate([np.load(folder / f"classes-{first:07d}.npy") for first in starts]),
        captions=[entry["caption"] for entry in words],
        tones=[entry["tone"] for entry in words],
        materials=[entry["material"] for entry in words],
        defect_words=[tuple(entry["defects"]) for entry in words],
    )
