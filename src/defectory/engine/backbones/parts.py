"""Loads the parts of a base from their folders, without trusting files and without network access."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel, SchedulerMixin, T2IAdapter
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTokenizer
from transformers.utils import logging as transformers_logging

from defectory.engine.backbones.files import read_json, verify_part, weights_variant
from defectory.engine.backbones.words import WORDS
from defectory.errors import WeightsError


def load_scheduler(folder: Path) -> Any:
    """Load the diffusers scheduler that a base names.

    Raises:
        WeightsError: the configuration is missing, or names no scheduler of diffusers.
    """
    path = folder / "scheduler_config.json"
    name = str(read_json(path).get("_class_name"))
    try:
        kind = getattr(diffusers, name, None)
    except (ImportError, RuntimeError):  # a scheduler that needs another library
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise WeightsError(
            path,
            f"names the scheduler {name}, which diffusers {diffusers.__version__} does not have",
            "give another base",
        )
    try:
        with quiet():
            return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # diffusers checks its arguments only by failing in their arithmetic
        raise WeightsError(
            path, f"no settings of a {name} ({_reason(error)})", "copy the base again or give another one"
        ) from error


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence progress bars and load reports of diffusers and transformers meanwhile."""
    loggers = [logging.getLogger("transformers"), logging.getLogger("diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled(), diffusers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            diffusers_logging.enable_progress_bar()


def load_part(kind: Any, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Load one model, frozen and in evaluation mode; a missing weight is an error, never a random number.

    Args:
        kind: the model's class, of diffusers or transformers.
        folder: of the model.
        device: where it goes.
        dtype: of all weights, whatever the files hold.

    Raises:
        WeightsError: it cannot be loaded, or weights are missing.
    """
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                variant=weights_variant(folder),
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # a configuration can fail anywhere in a network's construction
        raise WeightsError(
            folder,
            f"cannot be loaded as {kind.__name__} ({_reason(error)})",
            "copy the model again or give another one",
        ) from error
    missing = [*info["missing_keys"], *info["mismatched_keys"]]
    if missing:
        raise WeightsError(
            folder,
            f"{len(missing)} weights are missing or of another shape (first: {missing[0]})",
            "copy the model again",
        )
    return model.to(device).eval().requires_grad_(False)


def load_controlnet(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ControlNetModel:
    """Check and load a control network's folder.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or its weights do not fit its configuration.
    """
    verify_part(folder)
    return load_part(ControlNetModel, folder, device, dtype)


def load_adapter(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> T2IAdapter:
    """Check and load an adapter's folder.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or its weights do not fit its configuration.
    """
    verify_part(folder)
    return load_part(T2IAdapter, folder, device, dtype)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load a CLIP tokenizer.

    Raises:
        WeightsError: the tokenizer cannot be loaded, or spells ordinary words with almost no tokens.
    """
    try:
        with quiet():
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            known = [number for word in WORDS for number in tokenizer.encode(word, add_special_tokens=False)]
    except Exception as error:  # only the tokenizer's own code understands the settings and patterns in its files
        raise WeightsError(
            folder, f"cannot be loaded as a CLIP tokenizer ({_reason(error)})", "copy the base again"
        ) from error
    if len(set(known)) < len(WORDS) // 2 or not isinstance(tokenizer.eos_token_id, int):
        raise WeightsError(
            folder, "spells ordinary words with almost no pieces, so words would be unknown", "copy the base again"
        )
    return tokenizer


def _reason(error: Exception) -> str:
    """Return the first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
