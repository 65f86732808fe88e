"""One optimiser per model, with moments by name: AdamW, or Muon for hidden matrices and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defectory.engine.training.config import OptimizerKind

OUTER_LAYERS = frozenset({"conv_in", "conv_out", "token_embedding", "position_embedding"})
"""Layers between a model and the world, which Muon is not made for (Jordan et al. 2024, Muon: An optimizer for hidden layers)."""
MIN_SIDE = 16
"""Smallest side of a matrix that is worth making orthogonal."""
BETAS = (0.9, 0.99)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a matrix, or a convolution's kernel, inside the model."""
    if parameter.ndim < 2 or OUTER_LAYERS.intersection(name.split(".")):
        return False
    return min(len(parameter), parameter[0].numel()) >= MIN_SIDE


def as_matrix(tensor: Tensor, *, like: Tensor) -> Tensor:
    """Give a kernel [O,I,h,w] as a matrix [O,I*h*w], without a copy where the tensor has the layout of `like`.

    A channels-last kernel has its columns in another order, which the orthogonal factor does not depend on.
    """
    if like.ndim == 4 and not like.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1)


class NamedOptimizer:
    """AdamW over named parameters; as `muon`, hidden matrices get orthogonal updates of AdamW's size instead (Liu et al. 2025, Muon is Scalable)."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, kind: OptimizerKind, learning_rate: float, weight_decay: float, fused: bool = True
    ) -> None:
        self._parameters = parameters
        self._matrices: dict[str, nn.Parameter] = {}
        if kind == "muon":
            for name, parameter in parameters.items():
                if is_hidden_matrix(name, parameter):
                    self._matrices[name] = nn.Parameter(as_matrix(parameter.detach(), like=parameter))
        common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
        rest = [parameter for name, parameter in parameters.items() if name not in self._matrices]
        self._adamw = torch.optim.AdamW(rest, betas=BETAS, fused=fused, **common) if rest else None
        self._muon = torch.optim.Muon(self._matrices.values(), adjust_lr_fn="match_rms_adamw", **common) if self._matrices else None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next step."""
        for optimizer in (self._adamw, self._muon):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = learning_rate

    def step(self) -> None:
        """Take a step along the gradients of the parameters, and forget them."""
        for name, matrix in self._matrices.items():
            parameter = self._parameters[name]
            matrix.grad = None if parameter.grad is None else as_matrix(parameter.grad, like=parameter)
        for optimizer in (self._adamw, self._muon):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        for name in self._matrices:
            self._parameters[name].grad = None

    def moments(self) -> dict[str, Tensor]:
        """Give all that a step depends on beside parameters and gradients, by name of moment and parameter."""
        result: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            for key, value in self._state_of(name, parameter).items():
                if key != "step":
                    result[f"{key}.{name}"] = value
        return result

    def restore(self, num_steps: int, moment: Callable[[str], Tensor]) -> None:
        """Go on after `num_steps` steps.

        Args:
            num_steps: steps taken.
            moment: gives what `moments` gave then, by its name.
        """
        for name, parameter in self._parameters.items():
            if self._muon is not None and name in self._matrices:
                matrix = self._matrices[name]
                self._muon.state[matrix] = {"momentum_buffer": torch.empty_like(matrix).copy_(moment(f"momentum_buffer.{name}"))}
            elif self._adamw is not None:
                self._adamw.state[parameter] = {
                    "step": torch.tensor(float(num_steps), device=parameter.device if parameter.is_cuda else "cpu"),
                    # the parameter's own memory format, which the fused optimiser wants
                    **{key: torch.empty_like(parameter).copy_(moment(f"{key}.{name}")) for key in ("exp_avg", "exp_avg_sq")},
                }

    def _state_of(self, name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
        if self._muon is not None and name in self._matrices:
            return self._muon.state[self._matrices[name]]
        assert self._adamw is not None
        return self._adamw.state[parameter]
