"""Chooses the files of a base that are worth carrying: settings and one set of safetensors. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from defectory.errors import WeightsError

TEXTS = (".json", ".txt")
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of published pipelines that no base here needs."""
LICENCE_FILE = re.compile(r"(licen[cs]e|notice|use[-_ ]?(policy|restrictions))[^/]*", re.IGNORECASE)
"""Name of a file that states a licence; it stays with the weights."""
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(?P<variant>\.fp16)?(-\d{5}-of-\d{5})?\.safetensors"
    r"|(diffusion_pytorch_model|model)\.safetensors\.index(?P<of_index>\.fp16)?\.json"
)
NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", "controlnet")


def chosen_texts(names: Iterable[str]) -> list[str]:
    """Return the files of settings and vocabularies, `model_index.json` and what states the licence."""
    chosen = [name for name in names if _part(name) and name.endswith(TEXTS) and ".safetensors.index" not in name]
    return sorted([*chosen, *(name for name in names if name == "model_index.json" or LICENCE_FILE.fullmatch(name))])


def chosen_weights(where: object, names: Iterable[str], *, half: bool = False) -> list[str]:
    """Return the weights of each network: one set of safetensors, in full precision where there is one.

    Args:
        where: the base, for messages.
        names: of all its files, relative, with `/`.
        half: take the fp16 set instead where there is one.

    Raises:
        WeightsError: a network has pickles alone.
    """
    files: dict[str, list[str]] = {}
    for name in names:
        if part := _part(name):
            files.setdefault(part, []).append(name)
    chosen: list[str] = []
    for part in (*NETWORKS, "controlnet"):
        full: list[str] = []
        fp16: list[str] = []
        for name in files.get(part, []):
            if match := _WEIGHTS.fullmatch(PurePosixPath(name).name):
                (fp16 if match["variant"] or match["of_index"] else full).append(name)
        take = (fp16 or full) if half else (full or fp16)
        if part in files and not any(name.endswith(".safetensors") for name in take):
            raise WeightsError(
                where, f"{part}/ has no safetensors file, and pickles are refused", "give a base with safetensors"
            )
        chosen += take
    return sorted(chosen)


def _part(name: str) -> str | None:
    """Return the part that a file lies in; None if it is no file of a part."""
    part, _, file = name.partition("/")
    return part if part in PARTS and file and "/" not in file and not file.startswith(".") else None
