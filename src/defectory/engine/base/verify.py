"""Whether a base folder is whole: parts there, safetensors readable, digests as recorded. Loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from defectory.errors import WeightsError
from defectory.run import digest_file

DIGESTS_NAME = "digests.json"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
MODEL_PARTS = ("unet", "vae", "text_encoder")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def verify(folder: Path) -> None:
    """Check a base folder before any of it is loaded.

    Args:
        folder: a base in Stable Diffusion layout; `controlnet/` and `digests.json` are optional.

    Raises:
        WeightsError: a part is missing, is a pickle, is truncated or is not what `digests.json` says.
    """
    if not (folder / "model_index.json").is_file():
        raise WeightsError(folder, "no model_index.json here", "give a folder in Stable Diffusion layout")
    read_json(folder / "model_index.json")
    for part in PARTS:
        if not (folder / part).is_dir():
            raise WeightsError(folder, f"the part {part}/ is missing", "copy the base again or give another one")
    for part in MODEL_PARTS:
        verify_part(folder / part)
    if (folder / "controlnet").is_dir():
        verify_part(folder / "controlnet")
    # last: that a file is cut short or is a pickle says more than that it is another one
    _verify_digests(folder)


def verify_part(folder: Path) -> None:
    """Check one model's folder: a readable config and whole safetensors files.

    Raises:
        WeightsError: something is missing, is a pickle or is damaged.
    """
    if not (folder / "config.json").is_file():
        raise WeightsError(folder, "no config.json here", "copy the model again")
    read_json(folder / "config.json")
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise WeightsError(
                folder / pickles[0], "a pickle, which can run code when opened; refused", "convert it to safetensors and give that folder"
            )
        raise WeightsError(folder, "no safetensors file here", "copy the model again")
    for path in found:
        verify_safetensors(path)


def verify_safetensors(path: Path) -> None:
    """Check that a safetensors file is whole, by its header and length.

    Raises:
        WeightsError: the file is truncated, is a pickle under another name, or is something else.
    """
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
        if magic[:4] == b"PK\x03\x04" or (magic[:1] == b"\x80" and magic[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise WeightsError(path, "a pickle under a safetensors name; refused", "convert it to safetensors")
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise WeightsError(path, f"not a whole safetensors file ({str(error).splitlines()[0]})", "copy it again") from None


def weights_variant(folder: Path) -> str | None:
    """Give the name variant of a model folder's weights: `fp16` where only such files lie there, else None."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name or ".fp16-" in name for name in names) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: the file is missing or does not hold one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(path, f"not readable as JSON ({str(error).splitlines()[0]})", "copy it again") from None
    if not isinstance(value, dict):
        raise WeightsError(path, "not a JSON object", "copy it again")
    return value


def _verify_digests(folder: Path) -> None:
    record = folder / DIGESTS_NAME
    if not record.is_file():
        return
    for name, expected in read_json(record).items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise WeightsError(record, f"names {name}, which lies outside the folder", "copy the base again")
        if not path.is_file():
            raise WeightsError(path, "missing, though digests.json lists it", "copy the base again")
        if digest_file(path) != expected:
            raise WeightsError(path, "its digest differs from digests.json", "copy the base again, the file is damaged or was changed")
