from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from defectory.engine.training import checkpoint
from defectory.engine.training.checkpoint import TrainingState, remove_checkpoint, restore_checkpoint, save_checkpoint
from defectory.engine.training.config import OptimizerKind
from defectory.engine.training.optimizer import NamedOptimizer
from defectory.errors import StageError


def fresh_state(kind: OptimizerKind = "adamw") -> TrainingState:
    parameters = {"a": nn.Parameter(torch.zeros(16, 20)), "b": nn.Parameter(torch.zeros(4))}
    optimizer = NamedOptimizer(parameters, kind=kind, learning_rate=0.1, weight_decay=0.01)
    return TrainingState(
        parameters=parameters, average=[p.detach().clone() for p in parameters.values()], optimizer=optimizer
    )


def stepped_state(kind: OptimizerKind = "adamw") -> TrainingState:
    state = fresh_state(kind)
    for parameter in state.parameters.values():
        parameter.grad = torch.rand_like(parameter)
    state.optimizer.step()
    state.average = [mean + 0.25 for mean in state.average or ()]
    state.step, state.log, state.validated = 1, [(0.1 + 0.2, 1e-4)], [(1, 0.7)]
    return state


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_that_was_saved_equals_the_one_restored(tmp_path: Path, kind: OptimizerKind) -> None:
    saved, restored = stepped_state(kind), fresh_state(kind)
    save_checkpoint(tmp_path, saved, recipe="r")
    assert restore_checkpoint(tmp_path, restored, recipe="r")
    assert (restored.step, restored.log, restored.validated) == (saved.step, saved.log, saved.validated)
    assert all(torch.equal(parameter, restored.parameters[name]) for name, parameter in saved.parameters.items())
    moments = restored.optimizer.moments()
    assert sorted(moments) == sorted(saved.optimizer.moments())
    assert all(torch.equal(moment, moments[name]) for name, moment in saved.optimizer.moments().items())
    assert saved.average is not None
    assert restored.average is not None
    assert all(torch.equal(a, b) for a, b in zip(saved.average, restored.average, strict=True))


def test_best_weights_and_buffers_are_saved_and_an_average_is_optional(tmp_path: Path) -> None:
    def state() -> TrainingState:
        plain = fresh_state()
        plain.average, plain.buffers = None, {"mean": torch.zeros(3), "count": torch.tensor(0)}
        return plain

    saved, restored = state(), state()
    saved.buffers["mean"].add_(0.5)
    saved.buffers["count"].add_(4)
    saved.step, saved.best_value = 2, 0.25
    saved.best = {name: value.detach() + 1 for name, value in saved.weights().items()}
    save_checkpoint(tmp_path, saved, recipe="r")
    assert restore_checkpoint(tmp_path, restored, recipe="r")
    assert (restored.average, restored.best_value) == (None, 0.25)
    assert torch.equal(restored.buffers["mean"], saved.buffers["mean"])
    assert int(restored.buffers["count"]) == 4
    assert restored.best is not None
    assert restored.best.keys() == saved.best.keys()
    assert all(torch.equal(restored.best[name], value) for name, value in saved.best.items())


def test_full_disk_is_one_clear_line_and_the_earlier_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, stepped_state(), recipe="r")
    before = (tmp_path / checkpoint.FILE_NAME).read_bytes()

    def full(*_args: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StageError, match=r"(?i)no space left"):
        save_checkpoint(tmp_path, stepped_state(), recipe="r")
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_a_checkpoint_is_removed_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, stepped_state(), recipe="r")
    (folder / "notes.txt").write_text("mine")
    remove_checkpoint(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    save_checkpoint(folder, stepped_state(), recipe="r")
    remove_checkpoint(folder)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, stepped_state(), recipe="r")
    path = tmp_path / checkpoint.FILE_NAME
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x10
    path.write_bytes({"cut": bytes(content[:-40]), "flipped": bytes(content), "foreign": b"\x80\x04nonsense"}[damage])
    state = fresh_state()
    assert not restore_checkpoint(tmp_path, state, recipe="r")
    assert state.step == 0
    assert all(not parameter.any() for parameter in state.parameters.values())
