"""What a training phase tells while it works; every event is yielded after its state changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """`done` of `total` items of `what` are ready (cached latents, class images)."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """The loop begins at step `resumed_at` of `num_steps`; 0 is a fresh start. `remark` says why it is one, where it
    need not have been.
    """

    num_steps: int
    resumed_at: int
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Optimiser step `step` of `num_steps` is done; `seconds` is what it took."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    seconds: float

    @property
    def num_left(self) -> int:
        """Give the number of steps still to do."""
        return self.num_steps - self.step


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The averaged weights were scored on held-out tiles with fixed noise; no training weighting in the loss."""

    step: int
    held_out_loss: float


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """Everything needed to go on from `step` is on disk."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The phase's outcome is on disk; `digest` is that of its weights."""

    digest: str


TrainingEvent = Preparing | Started | Step | Validated | Checkpointed | Finished
