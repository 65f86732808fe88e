"""Where the files of a draft lie. Imports no torch, so that commands that draw nothing start at once."""

from __future__ import annotations

from pathlib import Path


def draft_paths(out: Path, job_id: str) -> tuple[Path, Path, Path]:
    """Return the files of a draft: image, its half without mask, driver."""
    return out / "images" / f"{job_id}.png", out / "without" / f"{job_id}.png", out / "drivers" / f"{job_id}.png"
