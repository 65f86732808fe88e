"""Loads a base in Stable Diffusion layout, the embedded one and Stable Diffusion alike."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from defectory.engine.backbones.known import embedded_folder as embedded_folder
from defectory.engine.backbones.known import resolve_base as resolve_base
from defectory.engine.backbones.verify import read_json, verify_part, weights_variant
from defectory.engine.backbones.verify import verify as verify
from defectory.engine.backbones.words import WORDS
from defectory.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class LoadedModels:
    """A base in memory; nothing of it requires a gradient. `controlnet` is None where the folder holds none."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: Any
    """The diffusers scheduler named by the base."""
    controlnet: ControlNetModel | None

    @property
    def latent_channels(self) -> int:
        """Return the number of latent channels."""
        return int(self.unet.config["in_channels"])

    @property
    def latent_factor(self) -> int:
        """Return how many image pixels one latent pixel spans per side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def size_multiple_px(self) -> int:
        """Return what tile sides must be divisible by, pixels."""
        return self.latent_factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def tile_px(self) -> int:
        """Return the side of the base's native tiles, pixels."""
        return int(self.unet.config["sample_size"]) * self.latent_factor

    @property
    def scaling_factor(self) -> float:
        """Return what latents are multiplied by before the UNet sees them."""
        return float(self.vae.config["scaling_factor"])


def load_base(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedModels:
    """Check a base folder and load it, from disk alone.

    Args:
        folder: base in Stable Diffusion layout; a finished pipeline folder will do.
        device: where the models go.
        dtype: of all weights, whatever the files hold.

    Raises:
        WeightsError: the folder is not whole, holds pickles, or its weights do not fit its configuration.
    """
    verify(folder)
    controlnet = load_controlnet(folder / "controlnet", device, dtype) if (folder / "controlnet").is_dir() else None
    return LoadedModels(
        unet=_load_model(UNet2DConditionModel, folder / "unet", device, dtype),
        vae=_load_model(AutoencoderKL, folder / "vae", device, dtype),
        text_encoder=_load_model(CLIPTextModel, folder / "text_encoder", device, dtype),
        tokenizer=_load_tokenizer(folder / "tokenizer"),
        scheduler=load_scheduler(folder / "scheduler"),
        controlnet=controlnet,
    )


def load_controlnet(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ControlNetModel:
    """Check and load a control network's folder.

    Raises:
        WeightsError: as for `load_base`.
    """
    verify_part(folder)
    return _load_model(ControlNetModel, folder, device, dtype)


def load_scheduler(folder: Path) -> Any:
    """Load the diffusers scheduler that a base names.

    Raises:
        WeightsError: its configuration is missing or names no scheduler of diffusers.
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
    except Exception as error:  # its arguments are checked nowhere but in its own arithmetic
        raise WeightsError(
            path, f"no settings of a {name} ({_reason(error)})", "copy the base again or give another one"
        ) from error


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep diffusers and transformers from printing progress bars and load reports meanwhile."""
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


def _load_model(kind: Any, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Load one model; a weight that the files lack is an error, never a random number."""
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


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        with quiet():
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            known = [number for word in WORDS for number in tokenizer.encode(word, add_special_tokens=False)]
    except Exception as error:  # the files of a tokenizer hold settings and patterns that only its own code reads
        raise WeightsError(
            folder, f"cannot be loaded as a CLIP tokenizer ({_reason(error)})", "copy the base again"
        ) from error
    if len(set(known)) < len(WORDS) // 2 or not isinstance(tokenizer.eos_token_id, int):
        raise WeightsError(
            folder, "spells ordinary words with almost no pieces, so words would be unknown", "copy the base again"
        )
    return tokenizer


def _reason(error: Exception) -> str:
    """Return the first line of what another library said."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
