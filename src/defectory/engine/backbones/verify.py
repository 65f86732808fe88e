"""Whether a base folder is whole and of a family that is supported: parts, safetensors, words, digests. Loads
nothing.
"""

from __future__ import annotations

from pathlib import Path

from defectory.engine.backbones.family import BaseFacts, facts_of
from defectory.engine.backbones.files import read_json as read_json
from defectory.engine.backbones.files import require_file, verify_weights
from defectory.engine.backbones.files import verify_safetensors as verify_safetensors
from defectory.engine.backbones.words import verify_tokenizer
from defectory.errors import WeightsError
from defectory.files import digest_file

DIGESTS_NAME = "digests.json"
MODEL_PARTS = ("unet", "vae", "text_encoder")


def verify(folder: Path) -> BaseFacts:
    """Check a base folder before any of it is loaded, and return what it is.

    Args:
        folder: a base in Stable Diffusion layout; `controlnet/` and `digests.json` are optional.

    Raises:
        WeightsError: the base is of another family, a part is missing, is a pickle, is truncated or is not what
            `digests.json` says.
    """
    facts = verify_layout(folder)
    for part in MODEL_PARTS:
        verify_part(folder / part)
    if (folder / "controlnet").is_dir():
        verify_part(folder / "controlnet")
    # last: that a file is cut short or is a pickle says more than that it is another one
    _verify_digests(folder)
    return facts


def verify_layout(folder: Path) -> BaseFacts:
    """Check family, configurations and tokenizer of a base folder, in milliseconds; its weights are not looked at.

    Raises:
        WeightsError: as for `verify`.
    """
    facts = facts_of(folder)
    verify_tokenizer(folder / "tokenizer")
    return facts


def verify_part(folder: Path) -> None:
    """Check one model's folder: a readable config and whole safetensors files.

    Raises:
        WeightsError: something is missing, is a pickle or is damaged.
    """
    if not (folder / "config.json").exists():
        raise WeightsError(folder, "no config.json here", "copy the model again")
    read_json(folder / "config.json")
    verify_weights(folder)


def weights_variant(folder: Path) -> str | None:
    """Return the name variant of a model folder's weights: `fp16` where only such files lie there, else None."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name or ".fp16-" in name for name in names) else None


def _verify_digests(folder: Path) -> None:
    record = folder / DIGESTS_NAME
    if not record.exists():
        return
    for name, expected in read_json(record).items():
        path = folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError):
            inside = False
        if not inside:
            raise WeightsError(record, f"names {name[:80]}, which lies outside the folder", "copy the base again")
        if not path.is_file():
            raise WeightsError(path, "missing, though digests.json lists it", "copy the base again")
        require_file(path)
        if digest_file(path) != expected:
            raise WeightsError(
                path, "its digest differs from digests.json", "copy the base again, the file is damaged or was changed"
            )
