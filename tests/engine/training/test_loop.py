from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.events import Checkpointed, Started, Step, TrainingEvent, Validated
from defectory.engine.training.loop import learning_rate_at, train
from defectory.engine.training.noise import generator_of
from defectory.errors import StageError

CONFIG = TrainingConfig(
    num_steps=9,
    learning_rate=0.05,
    warmup_steps=3,
    ema_decay=0.6,
    checkpoint_every=4,
    validate_every=3,
    max_grad_norm=0.5,
)
MUON = CONFIG.model_copy(update={"optimizer": "muon"})


def batch_of(index: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 3, generator=generator_of("batch", index))
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def fresh_model() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(3, 1)


def fresh_deep_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 18), nn.Linear(18, 1))


def run(
    model: nn.Module, folder: Path, config: TrainingConfig = CONFIG, *, recipe: str = "r"
) -> Iterator[TrainingEvent]:
    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    return train(
        dict(model.named_parameters()),
        batch_of,
        loss_of,
        config=config,
        checkpoint=folder / "checkpoint",
        recipe=recipe,
        log=folder / "log.jsonl",
        held_out_loss=lambda: float(loss_of(batch_of(10_000)).detach()),
    )


def state_of(model: nn.Module, folder: Path) -> tuple[list[float], str]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist(), (folder / "log.jsonl").read_text()


def test_loop_equals_the_textbook_loop(tmp_path: Path) -> None:
    model, reference = fresh_model(), fresh_model()
    losses = [event.loss for event in run(model, tmp_path) if isinstance(event, Step)]
    optimizer = torch.optim.AdamW(reference.parameters(), betas=(0.9, 0.99), weight_decay=CONFIG.weight_decay)
    average = [p.detach().clone() for p in reference.parameters()]
    expected: list[float] = []
    for step in range(9):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, CONFIG)
        x, y = batch_of(step)
        loss = (reference(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters() if p.grad is not None))
        for p in reference.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, 0.5 / norm)
        optimizer.step()
        decay = min(0.6, (step + 1) / (step + 10))
        average = [
            decay * mean + (1 - decay) * p.detach() for mean, p in zip(average, reference.parameters(), strict=True)
        ]
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    for weight, mean in zip(model.parameters(), average, strict=True):
        assert torch.allclose(weight, mean, atol=1e-6)


def test_muon_takes_the_hidden_matrix_elsewhere(tmp_path: Path) -> None:
    plain, muon = fresh_deep_model(), fresh_deep_model()
    list(run(plain, tmp_path / "a"))
    list(run(muon, tmp_path / "b", MUON))
    assert not torch.equal(plain[1].weight, muon[1].weight)


def test_learning_rate_warms_up_and_decays_to_its_final_share() -> None:
    config = TrainingConfig(num_steps=100, learning_rate=1.0, warmup_steps=10, final_lr_share=0.2)
    rates = [learning_rate_at(step, config) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert rates[100] == pytest.approx(0.2)


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    small, large = fresh_model(), fresh_model()
    list(run(small, tmp_path / "a", CONFIG.model_copy(update={"accumulation": 2})))

    def both(index: int) -> tuple[Tensor, Tensor]:
        parts = [batch_of(2 * index), batch_of(2 * index + 1)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (large(batch[0]) - batch[1]).square().mean()

    list(
        train(
            dict(large.named_parameters()),
            both,
            loss_of,
            config=CONFIG,
            checkpoint=tmp_path / "b",
            recipe="r",
            log=tmp_path / "b" / "log.jsonl",
        )
    )
    assert torch.allclose(small.weight, large.weight, atol=1e-5)


def test_events_come_in_order_after_their_state_changed(tmp_path: Path) -> None:
    kinds: list[str] = []
    for event in run(fresh_model(), tmp_path):
        match event:
            case Started():
                assert (event.num_steps, event.resumed_at) == (9, 0)
            case Step():
                kinds.append(f"s{event.step}")
                assert event.num_left == 9 - event.step
            case Validated():
                kinds.append(f"v{event.step}")
            case Checkpointed():
                kinds.append(f"c{event.step}")
                assert (tmp_path / "checkpoint" / "state.safetensors").is_file()
            case _:
                raise AssertionError(event)
    assert kinds == ["s1", "s2", "s3", "v3", "s4", "c4", "s5", "s6", "v6", "s7", "s8", "c8", "s9", "v9", "c9"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 9
    assert [line["step"] for line in lines if "held_out_loss" in line] == [3, 6, 9]


@pytest.mark.parametrize("config", [CONFIG, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("left_after", [0, 1, 4, 5, 9, 12, 14])
def test_run_that_was_left_at_any_event_ends_bit_identical(
    tmp_path: Path, left_after: int, config: TrainingConfig
) -> None:
    whole = fresh_deep_model()
    list(run(whole, tmp_path / "whole", config))
    events = run(fresh_deep_model(), tmp_path / "left", config)
    done = 0
    for _, event in zip(range(left_after + 1), events, strict=False):
        done = event.step if isinstance(event, Step) else done
    events.close()  # type: ignore[attr-defined]
    model = fresh_deep_model()
    resumed = list(run(model, tmp_path / "left", config))
    assert isinstance(resumed[0], Started)
    assert resumed[0].resumed_at == done
    assert state_of(model, tmp_path / "left") == state_of(whole, tmp_path / "whole")


def test_prefetched_batches_are_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectory.engine.training import loop

    plain = fresh_model()
    list(run(plain, tmp_path / "a"))
    kind = loop._Prefetch  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(loop, "_Prefetch", lambda batch_of, *, enabled: kind(batch_of, enabled=True))
    prefetched = fresh_model()
    list(run(prefetched, tmp_path / "b"))
    assert state_of(plain, tmp_path / "a") == state_of(prefetched, tmp_path / "b")


def test_checkpoint_of_another_recipe_is_not_used(tmp_path: Path) -> None:
    events = run(fresh_model(), tmp_path)
    for event in events:
        if isinstance(event, Checkpointed):
            break
    events.close()  # type: ignore[attr-defined]
    first = next(iter(run(fresh_model(), tmp_path, recipe="other")))
    assert isinstance(first, Started)
    assert first.resumed_at == 0


def test_a_damaged_checkpoint_is_named_and_training_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "state.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"\x80\x04nonsense")
    first = next(iter(run(fresh_model(), tmp_path)))
    assert isinstance(first, Started)
    assert first.resumed_at == 0
    assert "state.safetensors is damaged" in first.remark


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = fresh_model()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="step 1: the loss is nan"):
        list(run(model, tmp_path))
