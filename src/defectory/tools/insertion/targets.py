"""Reads the user's frames and their companion files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.errors import ConfigError, ImageError
from defectory.formats.raw import image_files
from defectory.images.facts import image_size_hw
from defectory.images.frames import FrameImage, load_frame
from defectory.images.load import load_class_mask, load_image, load_rgb
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.stages.parts.drawings import named_files, require_size
from defectory.stages.parts.held_out import require_not_held_out
from defectory.stages.parts.regions import load_region

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A user's frame and its companion files, as arrays [H,W] of its size."""

    file: Path
    frame: FrameImage
    image: Image
    remarks: tuple[str, ...]
    region: Mask | None
    drawing: Image | None
    mask: NDArray[np.int32] | None


def frame_files(frames: Sequence[Path]) -> list[Path]:
    """Return the images given, and those of the folders given, each once.

    Raises:
        ImageError: there are none.
    """
    files = [file for path in frames for file in (image_files(path) if path.is_dir() else [path])]
    if not files:
        raise ImageError(", ".join(str(path) for path in frames), "no images here", "give images or folders of them")
    return list(dict.fromkeys(files))


def read_target(
    run: Run, inputs: RunStore, file: Path, companions: Mapping[str, Path | None], *, several: bool
) -> Target:
    """Read a frame and its companion files.

    Args:
        run: the project's.
        inputs: the run's values.
        file: the frame.
        companions: for each of mask, region and drawing, its file, a folder of such files, or None.
        several: whether there are more frames, which one file cannot accompany.

    Raises:
        ConfigError: a companion file is missing or superfluous.
        ImageError: a file cannot be used, or the frame belongs to val or test.
    """
    value_range = inputs.data.dataset.value_range
    # read before it is compared, so that an unreadable file gets its own message
    frame, loaded = load_frame(file, value_range), load_image(file, value_range)
    require_not_held_out(inputs, file)
    size_hw = (loaded.rgb.shape[0], loaded.rgb.shape[1])
    found = {
        name: None if path is None else _companion(path, file, option=name, several=several)
        for name, path in companions.items()
    }
    region, mask = found["region"], found["mask"]
    return Target(
        file=file,
        frame=frame,
        image=loaded.rgb,
        remarks=loaded.remarks,
        region=None if region is None else load_region(region, size_hw),
        drawing=_drawing(run, found["drawing"], size_hw),
        mask=None if mask is None else _load_mask(mask, size_hw),
    )


def _companion(path: Path, frame: Path, *, option: str, several: bool) -> Path:
    """Return a frame's companion file: the given file, or the one with the frame's name in a given folder."""
    if path.is_dir():
        found = named_files(path)[1].get(frame.stem)
        if found is None:
            raise ConfigError(f"option --{option}", f"{path} holds no file named as {frame.name}", "add one")
        return found
    if several:
        raise ConfigError(
            f"option --{option}", "is one file, and there are several images", "give a folder with one file for each"
        )
    return path


def _load_mask(path: Path, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Load a mask as class numbers, int32 [H,W]; in a mask with one value besides 0, that value becomes 1."""
    values = load_class_mask(path).astype(np.int32)
    require_size(path, (values.shape[0], values.shape[1]), size_hw)
    present = np.unique(values[values > 0])
    if present.size == 0:
        raise ImageError(path, "is black everywhere", "paint where the defect is to be drawn")
    return (values > 0).astype(np.int32) if present.size == 1 else values


def _drawing(run: Run, file: Path | None, size_hw: tuple[int, int]) -> Image | None:
    wanted = run.config.drivers.drawings is not None
    if file is None and wanted:
        raise ConfigError(
            "option --drawing", "is missing, and the project takes geometry from drawings", "give the frame's drawing"
        )
    if file is None:
        return None
    if not wanted:
        raise ConfigError("option --drawing", "is given, and the project takes geometry from images", "leave it out")
    require_size(file, image_size_hw(file), size_hw)
    return load_rgb(file)
