from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defectory.engine.training.config import LoopSettings, TrainingConfig
from defectory.engine.training.events import Checkpointed, Step
from defectory.engine.training.loop import Validation, train
from defectory.engine.training.noise import generator_of
from defectory.engine.training.schedule import Schedule
from defectory.events import Notice, finish

RISING = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5, 12: 4.0, 14: 4.0, 16: 4.0}
"""Held-out losses of the steps that are divisible by 2."""
FALLING = {step: 1 / step for step in RISING}


class Training:
    """A training of a few numbers whose held-out losses are given; remembers the averaged weights of each."""

    def __init__(
        self, folder: Path, values: Mapping[int, float], patience: int | None, *, is_loss: bool = True
    ) -> None:
        self.weight = nn.Parameter(torch.zeros(3))
        self.seen: dict[int, Tensor] = {}
        self._values = values
        self.work = train(
            {"weight": self.weight},
            lambda index: torch.randn(3, generator=generator_of("b", index)),
            lambda batch: (self.weight - batch).square().sum(),
            config=LoopSettings(
                schedules=(Schedule(num_steps=16, peak=0.1),),
                ema_decay=0.5,
                validate_every=2,
                checkpoint_every=3,
                patience=patience,
            ),
            checkpoint=folder / "checkpoint",
            recipe="r",
            log=folder / "log.jsonl",
            validation=Validation(measure=self._measure, keeps_best=patience is not None, is_loss=is_loss),
        )

    def _measure(self, step: int) -> float:
        self.seen[step] = self.weight.detach().clone()
        return self._values[step]


def steps_of(events: list[Any]) -> list[int]:
    return [event.done for event in events if isinstance(event, Step)]


@pytest.mark.parametrize(("patience", "last", "kept"), [(1, 6, 4), (2, 8, 4), (3, 16, 10)])
def test_training_stops_without_improvement_and_keeps_the_best_weights(
    tmp_path: Path, patience: int, last: int, kept: int
) -> None:
    training = Training(tmp_path, RISING, patience)
    events = list(training.work)
    assert steps_of(events)[-1] == last
    assert torch.equal(training.weight.detach(), training.seen[kept])
    assert not torch.equal(training.seen[last], training.seen[kept])
    said = [event.text for event in events if isinstance(event, Notice)]
    assert len(said) == (last < 16)
    if said:
        assert said[0].startswith(f"stopped after step {last} of 16: the held-out loss did not improve in {patience}")
        assert f"the weights of step {kept} (1.0000) are kept" in said[0]


def test_equal_losses_are_no_improvement(tmp_path: Path) -> None:
    training = Training(tmp_path, dict.fromkeys(RISING, 1.0), 2)
    assert finish(training.work).best == 1.0
    assert torch.equal(training.weight.detach(), training.seen[2])
    assert max(training.seen) == 6


def test_scores_improve_by_rising(tmp_path: Path) -> None:
    training = Training(tmp_path, RISING, 2, is_loss=False)
    assert finish(training.work).best == 3.0
    assert max(training.seen) == 6


def test_without_patience_all_steps_are_taken_and_the_last_weights_kept(tmp_path: Path) -> None:
    training = Training(tmp_path, RISING, None)
    finish(training.work)
    assert torch.equal(training.weight.detach(), training.seen[16])


@pytest.mark.parametrize("left_after", range(1, 9))
def test_training_left_at_any_step_stops_at_the_same_one(tmp_path: Path, left_after: int) -> None:
    whole = Training(tmp_path / "whole", RISING, 2)
    finish(whole.work)
    left = Training(tmp_path / "left", RISING, 2)
    for event in left.work:
        if isinstance(event, Step) and event.done == left_after:
            break
    left.work.close()
    resumed = Training(tmp_path / "left", RISING, 2)
    taken = steps_of(list(resumed.work))
    assert (taken or [8])[-1] == 8
    assert torch.equal(resumed.weight, whole.weight)
    assert (tmp_path / "left/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_a_checkpoint_written_at_the_stop_takes_no_further_step(tmp_path: Path) -> None:
    whole = Training(tmp_path, {**RISING, 6: 1.2}, 1)
    for event in whole.work:
        if isinstance(event, Checkpointed) and event.done == 6:
            break
    whole.work.close()
    resumed = Training(tmp_path, RISING, 1)
    assert steps_of(list(resumed.work)) == []
    assert torch.equal(resumed.weight.detach(), whole.seen[4])


def test_a_loss_that_rises_for_long_is_told_of(tmp_path: Path) -> None:
    rising = {step: 1 + abs(step - 4) / 10 for step in RISING}
    said = [event.text for event in Training(tmp_path / "a", rising, None).work if isinstance(event, Notice)]
    assert said == [
        "the held-out loss was lowest at step 4 (1.0000) and is 2.2000 at the end, so the network overfits; train "
        "fewer steps, or set training.patience to keep the best weights"
    ]
    for folder, values in (("b", FALLING), ("c", dict.fromkeys(RISING, 1.0))):
        assert not [event for event in Training(tmp_path / folder, values, None).work if isinstance(event, Notice)]


def test_the_setting_reaches_the_loop() -> None:
    assert (TrainingConfig(patience=3).loop().patience, TrainingConfig().loop().patience) == (3, None)
