"""Adds low-rank adapters to networks (Hu et al. 2021, LoRA, eq. 3), and writes, reads and merges them.

    W' = W + (alpha / r) B A

    W    frozen weight of a linear layer or a convolution
    A    r rows; random at first
    B    r columns; zero at first
    r    rank; alpha scales the adapter

Files hold (alpha / r) B in place of B, so that alpha equals r for every reader.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from defectory.engine.backbones.files import COPY_AGAIN, verify_safetensors
from defectory.errors import ConfigError, WeightsError

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""File that `load_lora_weights` of diffusers looks for in a folder."""
KOHYA_NAME = "kohya.safetensors"
"""The same adapter with the names of kohya's scripts, which ComfyUI and AUTOMATIC1111 read."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Attention projections of the text encoders."""
_ADAPTER = "default"
_TEXT_MODEL = "text_model."


def add_lora(
    network: nn.Module, *, targets: Sequence[str], rank: int, alpha: float, seed: int, where: str
) -> dict[str, nn.Parameter]:
    """Add adapters to layers of a frozen network, in place, and return their parameters by name.

    The network predicts the same as before until the adapters are trained.

    Args:
        network: on any device.
        targets: layers by the end of their names, such as `to_q` or `ff.net.0.proj`; linear or convolutions.
        rank: of A and B.
        alpha: scale of an adapter, times the rank.
        seed: of A.
        where: setting that names the targets, for messages.

    Raises:
        ConfigError: a target names no linear layer and no convolution.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ConfigError(
                where,
                f"the {type(network).__name__} has no linear layer or convolution named {target!r}",
                "name layers such as to_q, ff.net.0.proj or conv1",
            )
    chosen = [name for name in layers if any(name == end or name.endswith(f".{end}") for end in targets)]
    # peft draws A from torch's global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)  # pyright: ignore[reportArgumentType]
        inject_adapter_in_model(settings, network, adapter_name=_ADAPTER)
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


@contextlib.contextmanager
def without_lora(network: nn.Module) -> Generator[None]:
    """Let a network predict as if it had no adapters, inside a `with` block. Adapters do not train there."""
    layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def lora_tensors(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the adapters of networks with the names that diffusers' `load_lora_weights` reads, float32 on the CPU.

    Args:
        networks: by part name, such as `unet`, `text_encoder` and `text_encoder_2`; those without adapters are skipped.
    """
    tensors: dict[str, Tensor] = {}
    for part, network in networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, LoraLayer):
                down: Any = layer.lora_A[_ADAPTER]
                up: Any = layer.lora_B[_ADAPTER]
                key = f"{part}.{_written(part, name)}"
                tensors[f"{key}.lora_A.weight"] = _copied(down.weight)
                tensors[f"{key}.lora_B.weight"] = _copied(up.weight) * layer.scaling[_ADAPTER]
    return tensors


def kohya_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the adapters of `lora_tensors` as kohya's scripts do; each layer gets its alpha.

    One text encoder is `lora_te`, several are `lora_te1`, `lora_te2` and so on. Layers of the UNet keep the names of
    diffusers.
    """
    text_parts = sorted({key.partition(".")[0] for key in tensors if key.startswith("text_encoder")})
    prefixes = {part: f"lora_te{number}" for number, part in enumerate(text_parts, start=1)}
    if len(text_parts) == 1:
        prefixes = {text_parts[0]: "lora_te"}
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        layer, _, factor = rest.rpartition(".lora_")
        name = f"{prefixes.get(part, f'lora_{part}')}_{layer.replace('.', '_')}"
        if factor.startswith("A"):
            renamed[f"{name}.lora_down.weight"] = tensor
            renamed[f"{name}.alpha"] = torch.tensor(float(len(tensor)))
        else:
            renamed[f"{name}.lora_up.weight"] = tensor
    return renamed


@torch.no_grad()
def merge_lora(networks: Mapping[str, nn.Module], path: Path) -> None:
    """Add the adapters of a file to the weights of networks, in place.

    Args:
        networks: by part name.
        path: file with the names of `lora_tensors`.

    Raises:
        WeightsError: the file cannot be read, or does not fit the networks.
    """
    verify_safetensors(path)
    tensors = load_file(path)
    for key, down in tensors.items():
        name, _, factor = key.rpartition(".lora_")
        if factor.startswith("B") and f"{name}.lora_A.weight" in tensors:
            continue
        part, _, layer_name = name.partition(".")
        up = tensors.get(f"{name}.lora_B.weight")
        layer = _layer(networks.get(part), layer_name)
        if layer is None or up is None:
            raise WeightsError(path, f"no adapter of this base ({key[:80]})", COPY_AGAIN)
        if up.ndim != down.ndim or up.shape[1] != down.shape[0] or (len(up), *down.shape[1:]) != layer.weight.shape:
            found = f"{tuple(up.shape)} and {tuple(down.shape)} do not fit {tuple(layer.weight.shape)}"
            raise WeightsError(path, f"another shape than the base's layer {layer_name}: {found}", COPY_AGAIN)
        change = up.flatten(1).float() @ down.flatten(1).float()
        layer.weight += change.reshape(layer.weight.shape).to(layer.weight)


def _layer(network: nn.Module | None, name: str) -> nn.Linear | nn.Conv2d | None:
    """Return a layer by its name in a file; None if there is none."""
    if network is None:
        return None
    modules = dict(network.named_modules())
    found = modules.get(name) or modules.get(name.removeprefix(_TEXT_MODEL))
    return found if isinstance(found, nn.Linear | nn.Conv2d) else None


def _written(part: str, name: str) -> str:
    """Return a layer's name in files. Some versions of transformers leave out `text_model`, which files always have."""
    is_inner = part.startswith("text_encoder") and not name.startswith((_TEXT_MODEL, "text_projection"))
    return f"{_TEXT_MODEL}{name}" if is_inner else name


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
