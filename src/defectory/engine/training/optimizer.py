"""Provides one optimiser per model with moments by name: AdamW, also in 8 bits, or Muon for hidden matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from defectory.engine.precision import has_bf16
from defectory.engine.training.config import OptimizerKind

OUTER_LAYERS = frozenset({"conv_in", "conv_out", "token_embedding", "position_embedding"})
"""Input and output layers, which Muon does not suit (Jordan et al. 2024, Muon: An optimizer for hidden layers)."""
MIN_SIDE = 16
"""Smallest side of a matrix that gets orthogonal updates."""
WIDE = 2
"""From so many times as many columns as rows, an iteration on squares takes fewer products; kernels have 9 times."""
BETAS = (0.9, 0.99)
EIGHT_BIT = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
"""State that bitsandbytes keeps per parameter besides the number of steps."""


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Check whether a parameter is a matrix or a convolution kernel inside the model."""
    if parameter.ndim < 2 or OUTER_LAYERS.intersection(name.split(".")):
        return False
    return min(len(parameter), parameter[0].numel()) >= MIN_SIDE


def as_matrix(tensor: Tensor, *, like: Tensor) -> Tensor:
    """View a kernel [O,I,h,w] as a matrix [O,I*h*w], without a copy if the tensor has the layout of `like`.

    A channels-last kernel has another column order, which does not affect the orthogonal factor.
    """
    if like.ndim == 4 and not like.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1)


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` that orthogonalises matrices of one shape together, for accelerators, and in fp32 if need be.

    torch does this one by one, with a hundred small kernels per matrix, and an accelerator waits for their launch. And
    torch does it in bf16 alone, which takes a CPU without instructions for it many times as long. Momentum is always
    Nesterov's, and the rate always AdamW's ("match_rms_adamw").
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all matrices that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            for matrix in matrices:
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            slopes = [matrix.grad for matrix in matrices]
            buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
            torch._foreach_lerp_(buffers, slopes, 1 - group["momentum"])  # pyright: ignore[reportPrivateUsage]
            wanted = torch._foreach_lerp(slopes, buffers, group["momentum"])  # pyright: ignore[reportPrivateUsage]
            kept = 1 - group["lr"] * group["weight_decay"]
            torch._foreach_mul_(matrices, kept)  # pyright: ignore[reportPrivateUsage]
            shapes: dict[torch.Size, list[int]] = {}
            for number, matrix in enumerate(matrices):
                shapes.setdefault(matrix.shape, []).append(number)
            for shape, numbers in shapes.items():
                moves = orthogonal(
                    torch.stack([wanted[n] for n in numbers]), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_add_(  # pyright: ignore[reportPrivateUsage]
                    [matrices[n] for n in numbers], list(moves.to(matrices[0].dtype)), alpha=-rate
                )
        return loss


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Compute nearly orthogonal factors of matrices [N,R,C], in bf16 where the device has instructions for it.

    The method is the quintic Newton-Schulz iteration of Jordan et al. 2024.
    """
    is_tall, is_bf16 = matrices.shape[1] > matrices.shape[2], has_bf16(matrices.device.type)
    x = (matrices.mT if is_tall else matrices).to(torch.bfloat16 if is_bf16 else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    # products of small squares lose too much in bf16
    iterate = by_squares if not is_bf16 and x.shape[2] >= WIDE * x.shape[1] else by_products
    x = iterate(x, coefficients, num_steps)
    return x.mT if is_tall else x


def by_products(x: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """Iterate on matrices [N,R,C] of norm 1, R at most C, themselves."""
    a, b, c = coefficients
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def by_squares(x: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """Iterate on x x^T and on the product of all polynomials in it, [N,R,R], and apply that product to x once.

    All of them are polynomials of one symmetric matrix, so their order does not matter.
    """
    a, b, c = coefficients
    gram, factor = x @ x.mT, None
    for step in range(num_steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if step + 1 < num_steps:
            gram = polynomial @ gram @ polynomial
    return x if factor is None else factor @ x


def usable_kind(kind: OptimizerKind) -> tuple[OptimizerKind, str]:
    """Return the kind of optimiser that this machine can use for the one wanted, and a remark if it is another."""
    if kind == "adamw8bit" and find_spec("bitsandbytes") is None:
        return "adamw", "bitsandbytes is not installed: adamw takes the place of adamw8bit, and four times its memory"
    return kind, ""


class NamedOptimizer:
    """AdamW over named parameters, or Muon for hidden matrices with AdamW for the rest.

    Muon's orthogonal updates have the size of AdamW's (Liu et al. 2025, Muon is Scalable). 8-bit moments are those of
    bitsandbytes (Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization), which keeps small tensors exact.

    Args:
        parameters: what is trained, by name; floating point, of any shape, all on one device.
        kind: `adamw`, `adamw8bit`, or `muon` for parameters that satisfy `is_hidden_matrix` with AdamW for the rest.
        learning_rate: of both, above 0.
        weight_decay: of both, decoupled (taken times the learning rate).
        betas: of AdamW.
        fused: use AdamW's fused step; None leaves the choice to torch, which does not use it.
        rate_shares: learning rates of AdamW's parameters by name, as shares of the learning rate; 1 where none is
            given.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        kind: OptimizerKind,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = BETAS,
        fused: bool | None = True,
        rate_shares: Mapping[str, float] | None = None,
    ) -> None:
        self._parameters = parameters
        self._matrices: dict[str, nn.Parameter] = {}
        if kind == "muon":
            for name, parameter in parameters.items():
                if is_hidden_matrix(name, parameter):
                    self._matrices[name] = nn.Parameter(as_matrix(parameter.detach(), like=parameter))
        rest = {name: parameter for name, parameter in parameters.items() if name not in self._matrices}
        common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
        self._optimizers: list[torch.optim.Optimizer] = []
        self._states: dict[str, tuple[torch.optim.Optimizer, nn.Parameter]] = {}
        groups = _groups(rest, rate_shares or {})
        if kind == "adamw8bit":
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]  # an extra

            self._add(AdamW8bit(groups, betas=betas, **common), rest)
        elif rest:
            self._add(torch.optim.AdamW(groups, betas=betas, fused=fused, **common), rest)
        if self._matrices:
            device_type = next(iter(self._matrices.values())).device.type
            muon = torch.optim.Muon if device_type == "cpu" and has_bf16("cpu") else StackedMuon
            self._add(muon(self._matrices.values(), adjust_lr_fn="match_rms_adamw", **common), self._matrices)

    def _add(self, optimizer: torch.optim.Optimizer, members: Mapping[str, nn.Parameter]) -> None:
        self._optimizers.append(optimizer)
        self._states |= {name: (optimizer, member) for name, member in members.items()}

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next step."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("rate_share", 1.0)

    def step(self) -> None:
        """Update the parameters by their gradients, and clear the gradients."""
        for name, matrix in self._matrices.items():
            parameter = self._parameters[name]
            matrix.grad = None if parameter.grad is None else as_matrix(parameter.grad, like=parameter)
            parameter.grad = None
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """Return the optimiser state by name of moment and parameter."""
        # the map of an 8-bit code is one tensor for all parameters; files hold no shared tensors
        return {
            f"{key}.{name}": value.clone() if key.startswith("qmap") else value
            for name, (optimizer, member) in self._states.items()
            for key, value in optimizer.state[member].items()
            if key != "step"
        }

    def restore(self, num_steps: int, moments: Mapping[str, Tensor]) -> None:
        """Resume after a number of steps.

        Args:
            num_steps: steps taken.
            moments: as `moments` returned them; parameters without a gradient so far have none.
        """
        for name, (optimizer, member) in self._states.items():
            is_adamw = isinstance(optimizer, torch.optim.AdamW)
            if not is_adamw and not isinstance(optimizer, torch.optim.Muon):
                found = {key: moments[f"{key}.{name}"] for key in EIGHT_BIT if f"{key}.{name}" in moments}
                if found:
                    optimizer.state[member] = {
                        "step": num_steps,
                        **{key: value.to(member.device) for key, value in found.items()},
                    }
                continue
            keys = ("exp_avg", "exp_avg_sq") if is_adamw else ("momentum_buffer",)
            if f"{keys[0]}.{name}" not in moments:
                continue
            # the fused step needs its count on the device; Muon ignores the count
            device = member.device if member.is_cuda and optimizer.defaults.get("fused") else "cpu"
            # the parameter's memory format, which the fused optimiser requires
            optimizer.state[member] = {
                "step": torch.tensor(float(num_steps), device=device),
                **{key: torch.empty_like(member).copy_(moments[f"{key}.{name}"]) for key in keys},
            }


def _groups(parameters: Mapping[str, nn.Parameter], rate_shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return AdamW's groups of parameters, one for each share of the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rate_shares.get(name, 1.0), []).append(parameter)
    return [{"params": members, "rate_share": share} for share, members in groups.items()]
