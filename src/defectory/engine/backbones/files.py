"""Checks untrusted files of a base: JSON objects, safetensors headers, shard indices. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from defectory.errors import WeightsError
from defectory.files import BOOKKEEPING, digest_file, write_json

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".h5", ".onnx")
MAX_JSON_BYTES = 200_000_000
COPY_AGAIN = "copy it again"
DIGESTS_NAME = "digests.json"


def require_file(path: Path) -> None:
    """Require a readable regular file.

    Raises:
        WeightsError: it is missing, not a regular file, or not readable.
    """
    try:
        if path.is_file():
            with open(path, "rb") as stream:
                stream.read(1)
            return
        missing = not path.exists()
    except OSError as error:
        raise WeightsError(
            path,
            f"cannot be read ({(error.strerror or str(error)).lower()})",
            "change its permissions or check the disk",
        ) from None
    except ValueError as error:
        raise WeightsError(path, f"is not a file name ({error})", COPY_AGAIN) from None
    raise WeightsError(path, "no such file" if missing else "not a regular file", COPY_AGAIN)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: the file is missing, not readable, or not a JSON object.
    """
    require_file(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise WeightsError(path, f"{path.stat().st_size / 1e6:.0f} MB of JSON", COPY_AGAIN)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            path, f"cannot be read ({(error.strerror or str(error)).lower()})", "check the disk"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise WeightsError(path, f"not readable as JSON ({reason})", COPY_AGAIN) from None
    if not isinstance(value, dict):
        raise WeightsError(path, "not a JSON object", COPY_AGAIN)
    return value


def verify_safetensors(path: Path) -> frozenset[str]:
    """Check that a safetensors file is whole, by its header and length, and return the names of its tensors.

    Raises:
        WeightsError: the file is truncated, a pickle under another name, or of another kind.
    """
    require_file(path)
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
        if magic[:4] == b"PK\x03\x04" or (magic[:1] == b"\x80" and magic[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise WeightsError(path, "a pickle under a safetensors name; refused", "convert it to safetensors")
        with safe_open(path, framework="numpy") as tensors:
            return frozenset(tensors.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(path, f"not a whole safetensors file ({str(error).splitlines()[0]})", COPY_AGAIN) from None


def verify_weights(folder: Path) -> None:
    """Check one model's weights: whole safetensors files, whole sets of shards, and indices that name nothing else.

    Raises:
        WeightsError: weights are missing, pickles or damaged, or an index names a file that is not one of the folder's
            safetensors.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise WeightsError(
            folder, f"cannot be read ({(error.strerror or str(error)).lower()})", "change its permissions"
        ) from None
    if "adapter_config.json" in names:
        raise WeightsError(
            folder / "adapter_config.json",
            "an adapter beside a model would be loaded unseen",
            "merge it, or remove the file",
        )
    tensors = {name: verify_safetensors(folder / name) for name in names if name.endswith(".safetensors")}
    for name in names:
        if ".safetensors.index" in name and name.endswith(".json"):
            _verify_index(folder, name, tensors)
    if not tensors:
        pickles = [name for name in names if Path(name).suffix in PICKLES]
        if pickles:
            raise WeightsError(
                folder / pickles[0],
                "a pickle, which can run code when opened; refused",
                "convert it to safetensors and give that folder",
            )
        raise WeightsError(folder, "no safetensors file here", "copy the model again")


def verify_part(folder: Path) -> None:
    """Check one model's folder: a readable config and whole safetensors files.

    Raises:
        WeightsError: something is missing, a pickle or damaged.
    """
    if not (folder / "config.json").exists():
        raise WeightsError(folder, "no config.json here", "copy the model again")
    read_json(folder / "config.json")
    verify_weights(folder)


def verify_model_parts(folder: Path, parts: Sequence[str]) -> None:
    """Check the models of a base folder, its control network if it has one, and its `digests.json` if it has one.

    Raises:
        WeightsError: something is missing, a pickle, damaged, or differs from its digest.
    """
    for part in parts:
        verify_part(folder / part)
    if (folder / "controlnet").is_dir():
        verify_part(folder / "controlnet")
    # last, since "truncated" or "pickle" is a more useful message than "changed"
    verify_digests(folder)


def weights_variant(folder: Path) -> str | None:
    """Return the variant of a model folder's weights: `fp16` if it holds only such files, else None."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name or ".fp16-" in name for name in names) else None


def verify_digests(folder: Path) -> None:
    """Check the files of a base folder against its `digests.json`, if it has one.

    Raises:
        WeightsError: a file is missing, lies outside the folder, or differs from its digest.
    """
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


def write_digests(folder: Path) -> None:
    """Write `digests.json` with the SHA-256 of every file of a base folder; replace an existing one."""
    (folder / DIGESTS_NAME).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in BOOKKEEPING)
    write_json(folder / DIGESTS_NAME, {path.relative_to(folder).as_posix(): digest_file(path) for path in files})


def _verify_index(folder: Path, name: str, tensors: dict[str, frozenset[str]]) -> None:
    """Check a shard index before a loader follows it, since loaders open any file it names, even pickles."""
    where = folder / name
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(where, "has no weight_map", COPY_AGAIN)
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise WeightsError(where, f"names no file for {tensor[:80]!r}", COPY_AGAIN)
        if not file.endswith(".safetensors"):
            raise WeightsError(
                where, f"names {file[:80]!r}, which is no safetensors file; refused", "convert the base to safetensors"
            )
        if file != Path(file).name or "\\" in file:
            raise WeightsError(
                where, f"names {file[:80]!r}, which is not a file beside it; refused", "copy the base again"
            )
        if file not in tensors:
            raise WeightsError(folder / file, f"missing, though {name} names it", "copy the base again")
        if tensor not in tensors[file]:
            raise WeightsError(
                folder / file, f"lacks the weight {tensor[:80]!r}, which {name} says is in it", "copy the base again"
            )
