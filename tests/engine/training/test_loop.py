from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defectory.engine.training.config import LoopSettings, TrainingConfig
from defectory.engine.training.events import Checkpointed, Started, Step, Validated, plain
from defectory.engine.training.loop import Trained, Validation, train
from defectory.engine.training.noise import generator_of
from defectory.engine.training.prefetch import Prefetch
from defectory.engine.training.schedule import Schedule, learning_rate_at
from defectory.errors import StageError
from defectory.events import Notice, Progress, Work, finish

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


def run(model: nn.Module, folder: Path, config: TrainingConfig = CONFIG, *, recipe: str = "r") -> Work[Trained]:
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
        optimizer.param_groups[0]["lr"] = CONFIG.loop().schedules[0].at(step)
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
    rates = [learning_rate_at(step, config.loop().schedules) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert rates[100] == pytest.approx(0.2)


def test_the_rate_stays_at_its_peak_until_the_share_of_steps_in_which_it_falls() -> None:
    schedule = Schedule(num_steps=100, peak=1.0, warmup_steps=10, decay_share=0.25, final_share=0.02)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[10:76] == [1.0] * 66
    assert rates[75:] == pytest.approx([0.02 + 0.49 * (1 + math.cos(math.pi * i / 25)) for i in range(25)])


def test_schedules_follow_one_another() -> None:
    first, second = Schedule(num_steps=6, peak=1.0, warmup_steps=2), Schedule(num_steps=4, peak=0.5)
    assert [learning_rate_at(step, (first, second)) for step in range(10)] == [
        *(first.at(step) for step in range(6)),
        *(second.at(step) for step in range(4)),
    ]
    assert LoopSettings(schedules=(first, second)).num_steps == 10


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    small, large = fresh_model(), fresh_model()
    list(run(small, tmp_path / "a", CONFIG.model_copy(update={"gradient_accumulation_steps": 2})))

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
    events.close()
    model = fresh_deep_model()
    resumed = list(run(model, tmp_path / "left", config))
    assert isinstance(resumed[0], Started)
    assert resumed[0].resumed_at == done
    assert state_of(model, tmp_path / "left") == state_of(whole, tmp_path / "whole")


def test_prefetched_batches_are_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectory.engine.training import loop

    plain = fresh_model()
    list(run(plain, tmp_path / "a"))
    monkeypatch.setattr(
        loop, "Prefetch", lambda batch_of, *, every, enabled: Prefetch(batch_of, every=every, enabled=True)
    )
    prefetched = fresh_model()
    list(run(prefetched, tmp_path / "b"))
    assert state_of(plain, tmp_path / "a") == state_of(prefetched, tmp_path / "b")


def test_only_batches_of_this_process_are_prefetched() -> None:
    made: list[int] = []

    def batch_of(index: int) -> int:
        made.append(index)
        return index

    with Prefetch(batch_of, every=3, enabled=True) as batches:
        assert [batches.take(index) for index in (1, 4, 7)] == [1, 4, 7]
    assert made[:3] == [1, 4, 7]
    assert set(made) <= {1, 4, 7, 10}


def test_losses_read_a_few_at_a_time_are_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectory.engine.training import loop

    plain = fresh_model()
    losses = [event.loss for event in run(plain, tmp_path / "a") if isinstance(event, Step)]
    kind = loop._Stepper  # pyright: ignore[reportPrivateUsage]

    def reads_every_fourth(*args: object) -> object:
        stepper = kind(*args)  # type: ignore[arg-type]
        stepper._read_every = 4  # pyright: ignore[reportPrivateUsage]
        return stepper

    monkeypatch.setattr(loop, "_Stepper", reads_every_fourth)
    model = fresh_model()
    shown = [event.loss for event in run(model, tmp_path / "b") if isinstance(event, Step)]
    assert shown == [losses[at] for at in (0, 0, 0, 3, 3, 3, 3, 7, 8)]
    assert state_of(plain, tmp_path / "a") == state_of(model, tmp_path / "b")
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="step 1: the loss is nan"):
        list(run(model, tmp_path / "c"))


def test_checkpoint_of_another_recipe_is_not_used(tmp_path: Path) -> None:
    events = run(fresh_model(), tmp_path)
    for event in events:
        if isinstance(event, Checkpointed):
            break
    events.close()
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


def test_what_is_reported_are_progress_and_notices_and_the_losses_are_returned(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "state.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    events = list(run(fresh_model(), tmp_path))
    assert all(isinstance(event, Progress | Notice) for event in events)
    assert [event.text for event in events if isinstance(event, Notice)] == [
        f"{path} is damaged, or of other settings; training begins anew"
    ]
    steps = [event for event in events if isinstance(event, Step)]
    assert all((event.total, event.note.startswith("loss ")) == (9, True) for event in steps)
    assert "held-out loss" in steps[-1].note
    trained = finish(run(fresh_model(), tmp_path / "again"))
    assert trained.losses == tuple(event.loss for event in steps)
    assert [step for step, _ in trained.validated] == [3, 6, 9]
    assert trained.best is None


def test_a_plain_view_holds_steps_and_notices_alone_and_the_value(tmp_path: Path) -> None:
    events = list(plain(run(fresh_model(), tmp_path / "a")))
    assert {type(event) for event in events} == {Progress}
    assert [event.done for event in events if isinstance(event, Progress)] == list(range(1, 10))
    assert len(finish(plain(run(fresh_model(), tmp_path / "b"))).losses) == 9


class Normed(nn.Module):
    """A linear layer behind a batch norm, which has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), fresh_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def run_scored(
    model: nn.Module, folder: Path, scores: dict[int, float], *, best_after: int = 0, ema_decay: float | None = None
) -> tuple[Work[Trained], dict[int, dict[str, Tensor]]]:
    """Train with the given scores of the steps that are divisible by 3; the weights that got each are the second."""
    seen: dict[int, dict[str, Tensor]] = {}

    def measure(step: int) -> float:
        seen[step] = {name: value.clone() for name, value in model.state_dict().items()}
        return scores[step]

    work = train(
        dict(model.named_parameters()),
        batch_of,
        lambda batch: (model(batch[0]) - batch[1]).square().mean(),
        config=LoopSettings(
            schedules=(Schedule(num_steps=9, peak=0.05),), ema_decay=ema_decay, checkpoint_every=2, validate_every=3
        ),
        checkpoint=folder,
        recipe="r",
        validation=Validation(measure=measure, name="score", keeps_best=True, best_after=best_after),
        buffers=dict(model.named_buffers()),
    )
    return work, seen


@pytest.mark.parametrize("ema_decay", [None, 0.6])
@pytest.mark.parametrize(
    ("scores", "best_after", "kept"),
    [({3: 0.1, 6: 0.9, 9: 0.3}, 0, 6), ({3: 0.9, 6: 0.2, 9: 0.2}, 0, 3), ({3: 0.9, 6: 0.2, 9: 0.2}, 3, 9)],
)
def test_the_best_weights_are_kept_with_their_buffers(
    tmp_path: Path, scores: dict[int, float], best_after: int, kept: int, ema_decay: float | None
) -> None:
    model = Normed()
    work, seen = run_scored(model, tmp_path, scores, best_after=best_after, ema_decay=ema_decay)
    assert finish(work).best == scores[kept]
    assert all(torch.equal(value, seen[kept][name]) for name, value in model.state_dict().items())
    other = 9 if kept != 9 else 3
    assert any(not torch.equal(value, seen[other][name]) for name, value in model.state_dict().items())


def test_where_no_score_counts_the_last_weights_are_left(tmp_path: Path) -> None:
    model = Normed()
    work, seen = run_scored(model, tmp_path, {3: 0.9, 6: 0.2, 9: float("nan")}, best_after=8)
    assert finish(work).best is None
    assert all(torch.equal(value, seen[9][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("left_after", [3, 4, 6, 7, 8, 9])
def test_best_weights_and_buffers_outlive_an_interruption(tmp_path: Path, left_after: int) -> None:
    scores = {3: 0.1, 6: 0.9, 9: 0.3}
    whole, left = Normed(), Normed()
    finish(run_scored(whole, tmp_path / "whole", scores)[0])
    work, _ = run_scored(left, tmp_path / "left", scores)
    for event in work:
        if isinstance(event, Step) and event.done == left_after:
            work.close()
    again = Normed()
    trained = finish(run_scored(again, tmp_path / "left", scores)[0])
    assert trained.best == 0.9
    assert len(trained.losses) == 9
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_a_parameter_without_a_gradient_does_not_keep_a_training_from_resuming(tmp_path: Path) -> None:
    def work(model: nn.Sequential) -> Work[Trained]:
        return train(
            dict(model.named_parameters()),
            batch_of,
            lambda batch: model[0](batch[0]).square().mean(),
            config=CONFIG,
            checkpoint=tmp_path,
            recipe="r",
        )

    left = work(fresh_deep_model())
    for event in left:
        if isinstance(event, Checkpointed):
            left.close()
    assert len(finish(work(fresh_deep_model())).losses) == 9


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = fresh_model()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="step 1: the loss is nan"):
        list(run(model, tmp_path))
