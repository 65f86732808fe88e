"""A hypernetwork: it reads a driver and predicts changes of a frozen UNet's weights (Ha et al. 2017, section 3.1).

    y   = W x + s B(d) A(d) x          in every projection of the UNet's attention, for each sample
    h_i = h_i + s M_i(d)               in every block i of the UNet's encoder
    A(d) = G_A z,   B(d) = G_B z,   z = norm(silu(V g(d) + e))

    d         the driver
    g(d)      mean and maximum over all positions of the features that a small convolutional network sees in it
    e         a vector of the projection's own
    G_A, G_B  one pair for each width that projections have; their results have `rank` rows and columns
    M_i(d)    maps of the features at the size of block i: weights alone know what a driver shows, and not where
    s         strength

G_B and the last layers of M are zero when training starts, so that the UNet predicts as before.

This file needs torch and safetensors alone. It lies in the folder `hypernetwork` of a finished pipeline too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

PROJECTIONS = (".to_q", ".to_k", ".to_v", ".to_out.0")
"""Ends of the names of linear layers that belong to attention in a UNet of diffusers."""


class HyperNetwork(nn.Module):
    """A convolutional network from drivers to changes of a UNet's weights and to maps for its encoder.

    Args:
        projections: [inputs, outputs] of each projection by its name in the UNet.
        block_channels: channels of each block of the UNet's encoder, outermost first.
        latent_factor: pixels of a driver per pixel of the outermost block and side.
        rank: of the changes.
        width: channels of the features.
    """

    def __init__(
        self,
        *,
        projections: dict[str, list[int]],
        block_channels: list[int],
        latent_factor: int,
        rank: int,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "projections": {name: list(sizes) for name, sizes in projections.items()},
            "block_channels": list(block_channels),
            "latent_factor": latent_factor,
            "rank": rank,
            "width": width,
        }
        # a file has them in another order, and `projection` knows them by number
        self.rank, self.names = rank, sorted(projections)
        self._still_on: list[Any] = []
        self.unshuffle = nn.PixelUnshuffle(latent_factor)
        self.first = nn.Conv2d(3 * latent_factor**2, width, 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, stride=1 if i == 0 else 2),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
            )
            for i in range(len(block_channels))
        )
        self.maps = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in block_channels)
        self.read = nn.Linear(2 * width, width)
        self.projection = nn.Embedding(len(projections), width)
        self.in_of = {name: str(sizes[0]) for name, sizes in projections.items()}
        self.out_of = {name: str(sizes[1]) for name, sizes in projections.items()}
        self.rows = nn.ModuleDict(
            {size: nn.Linear(width, rank * int(size)) for size in sorted(set(self.in_of.values()))}
        )
        self.columns = nn.ModuleDict(
            {size: nn.Linear(width, rank * int(size)) for size in sorted(set(self.out_of.values()))}
        )
        rows: dict[str, Any] = dict(self.rows.items())
        for size, layer in rows.items():
            # so that A x is as large as x
            nn.init.normal_(layer.weight, std=(width * int(size)) ** -0.5)
            nn.init.zeros_(layer.bias)
        zeros: list[Any] = [*self.maps, *self.columns.values()]
        for layer in zeros:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, drivers: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor], Tensor]:
        """Predict changes and maps.

        Args:
            drivers: float [B,3,H,W] in [0,1].

        Returns:
            A [B,rank,inputs] and B [B,outputs,rank] by name, maps [B,C_i,h_i,w_i], and the first features, which all
            of them come from.
        """
        start = self.first(self.unshuffle(drivers))
        features, maps = silu(start), list[Tensor]()
        for level, layer in zip(self.levels, self.maps, strict=True):
            features = level(features)
            maps.append(layer(features))
        g = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        g = self.read(g)
        # rounded as `g` is, so that weights held in bf16 change nothing under bf16 autocast
        z = silu(g[:, None] + self.projection.weight.to(g.dtype))
        z = layer_norm(z, z.shape[-1:])
        changes: dict[str, tuple[Tensor, Tensor]] = {}
        for i, name in enumerate(self.names):
            rows = self.rows[self.in_of[name]](z[:, i]).unflatten(1, (self.rank, -1))
            columns = self.columns[self.out_of[name]](z[:, i]).unflatten(1, (-1, self.rank))
            changes[name] = rows, columns
        return changes, maps, start

    @contextlib.contextmanager
    def steering(self, unet: nn.Module, drivers: Tensor, *, scale: float = 1.0) -> Generator[None]:
        """Make a UNet follow drivers inside a `with` block. Its own weights stay as they are.

        Args:
            unet: of diffusers.
            drivers: float [B,3,H,W] in [0,1], for UNet batches of B, 2 B and so on samples, in this order.
            scale: strength; 0 is none.
        """
        _remove(self._still_on)
        changes, maps, start = self(drivers)
        layers: dict[str, Any] = dict(unet.named_modules())
        handles: list[Any] = []
        for name, (rows, columns) in changes.items():
            handles.append(layers[name].register_forward_hook(_change(rows, scale * columns)))
        for i, map_ in enumerate(maps):
            last = f"down_blocks.{i}.resnets.{len(layers[f'down_blocks.{i}.resnets']) - 1}"
            handles.append(layers[last].register_forward_hook(_add(scale * map_)))
        try:
            yield
        except BaseException:
            _remove(handles)
            raise
        if start.requires_grad and any(getattr(layer, "gradient_checkpointing", False) for layer in layers.values()):
            # the backward pass computes the UNet once more, and `start` has its gradient when that is over
            self._still_on = handles
            start.register_hook(lambda _gradient: _remove(handles))
        else:
            _remove(handles)

    def save(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors"
        )

    @classmethod
    def from_folder(cls, folder: Path | str) -> HyperNetwork:
        """Read what `save` wrote."""
        network = cls(**json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
        network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return network.eval().requires_grad_(False)


def projections_of(unet: nn.Module) -> dict[str, list[int]]:
    """Return [inputs, outputs] of each projection of a UNet's attention by its name."""
    return {
        name: [layer.in_features, layer.out_features]
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(PROJECTIONS)
    }


def _change(rows: Tensor, columns: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(_layer: Any, inputs: tuple[Tensor], y: Tensor) -> Tensor:
        times = len(y) // len(rows)
        change = inputs[0] @ rows.repeat(times, 1, 1).mT @ columns.repeat(times, 1, 1).mT
        return y + change.to(y.dtype)

    return hook


def _add(map_: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(_layer: Any, _inputs: Any, y: Tensor) -> Tensor:
        return y + map_.repeat(len(y) // len(map_), 1, 1, 1).to(y.dtype)

    return hook


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
