"""The processes that train a phase together, one per GPU, and what they exchange, through accelerate.

Each process holds the whole network and computes its share of every step. Gradients and losses are added up, so all
processes take the same step. Only the main process writes.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from defectory.errors import LostProcessError, StageError
from defectory.launch import without_launch

TIMEOUT = timedelta(days=1)
"""Others wait this long while the main process prepares latents and class images. A process that ended is noticed at
once by the one that started it.
"""
BUCKET_VALUES = 8 << 20
"""Most values of gradients that are added up at a time, unless one gradient has more; 32 MiB."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes that train together, seen from one of them; a process that trains alone by default.

    Attributes:
        rank: number of this process, from 0.
        num_processes: how many train together.
        state: accelerate's `PartialState`; None of a process that trains alone.
    """

    rank: int = 0
    num_processes: int = 1
    state: Any = None

    @property
    def is_main(self) -> bool:
        """Check whether this process is the one that writes."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Generator[None]:
        """Let the main process do something, such as filling a cache, before the others do the same."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.state is not None:
            with _lost():
                self.state.wait_for_everyone()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, which is the same bits in each.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.state is None:
            return tensor
        from accelerate.utils import reduce

        with _lost():
            total: Any = reduce(tensor, reduction="sum")
        return total

    def add_up_gradients(self, weights: Iterable[Tensor]) -> None:
        """Replace the gradient of each weight by the sum of all processes'.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.state is None:
            return
        for gradients in _in_buckets(weight.grad for weight in weights if weight.grad is not None):
            total = self.add_up(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def require_same(self, step: int) -> None:
        """Require that all processes are at the same step, and wait for them.

        Raises:
            StageError: they have read different checkpoints.
            LostProcessError: another process has ended.
        """
        if self.state is None:
            return
        from accelerate.utils import gather

        with _lost():
            found: Any = gather(torch.tensor([step], device=self.state.device))
        if len(set(found.tolist())) > 1:
            raise StageError(
                f"the processes resume at different steps ({', '.join(map(str, found.tolist()))}); all must see the "
                "same run folder"
            )

    def leave(self) -> None:
        """End the connection to the other processes."""
        if self.state is not None:
            self.state.destroy_process_group()


def _in_buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group gradients, since many small sums take longer than a large one."""
    bucket, size = list[Tensor](), 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > BUCKET_VALUES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


ALONE = Team()
_joined = ALONE


def this_team() -> Team:
    """Return the processes that this one trains with; it trains alone unless it has joined others."""
    return _joined


def join_team(*, on_cpu: bool) -> Team:
    """Connect this process with those it was started with (see `environment_of`), and return them.

    Args:
        on_cpu: train on the CPU, even if there is a GPU.
    """
    from accelerate import PartialState
    from accelerate.utils import check_cuda_p2p_ib_support

    global _joined
    if not on_cpu and not check_cuda_p2p_ib_support():
        # as accelerate's launcher does; some cards with old drivers cannot talk to each other directly
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    with _lost():
        state: Any = PartialState(cpu=on_cpu, timeout=TIMEOUT, **({"backend": "gloo"} if on_cpu else {}))
    _joined = Team(rank=state.process_index, num_processes=state.num_processes, state=state)
    return _joined


def environment_of(rank: int, num_processes: int, *, port: int) -> dict[str, str]:
    """Return the environment of a process that joins a team on this machine: this one's, and its place in the team.

    Args:
        rank: number of the process, from 0.
        num_processes: of the team.
        port: free on this machine, the same for all.
    """
    place: Mapping[str, str] = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # what torch logs when a process ends early says the same as our one line, at length
    return {"TORCH_CPP_LOG_LEVEL": "FATAL", "OMP_NUM_THREADS": "1", **without_launch(os.environ), **place}


@contextmanager
def _lost() -> Generator[None]:
    """Say in one line that the connection to the others has failed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise LostProcessError(f"the processes that train together lost each other ({reason}); run again") from error
