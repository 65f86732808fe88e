from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defectory.engine.training.optimizer import (
    NamedOptimizer,
    StackedMuon,
    as_matrix,
    is_hidden_matrix,
    orthogonal,
    usable_kind,
)


class Small(nn.Module):
    """An outer convolution, a hidden one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 20, 3)
        self.hidden = nn.Conv2d(20, 24, 3)
        self.head = nn.Linear(24, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.conv_in(x)).mean(dim=(2, 3)))


def model(*, channels_last: bool = False) -> Small:
    torch.manual_seed(3)
    made = Small()
    return made.to(memory_format=torch.channels_last) if channels_last else made  # pyright: ignore[reportCallIssue]


def gradients(of: Small, seed: int) -> None:
    of(torch.randn(5, 3, 9, 11, generator=torch.Generator().manual_seed(seed))).square().sum().backward()


def named(of: Small, kind: Any) -> NamedOptimizer:
    return NamedOptimizer(dict(of.named_parameters()), kind=kind, learning_rate=0.01, weight_decay=0.1)


def test_muon_is_for_matrices_inside_the_model() -> None:
    hidden = [name for name, parameter in model().named_parameters() if is_hidden_matrix(name, parameter)]
    assert hidden == ["hidden.weight", "head.weight"]
    assert not is_hidden_matrix("text_model.embeddings.token_embedding.weight", torch.zeros(100, 64))
    assert not is_hidden_matrix("thin.weight", torch.zeros(64, 8)), "eight columns are no matrix worth the work"


def test_without_muon_it_is_adamw() -> None:
    ours, theirs = model(), model()
    optimizer = named(ours, "adamw")
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.02, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer.set_learning_rate(0.02)
    for seed in range(3):
        gradients(ours, seed)
        optimizer.step()
        gradients(theirs, seed)
        reference.step()
        reference.zero_grad()
        assert all(parameter.grad is None for parameter in ours.parameters()), "gradients are forgotten"
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_hidden_matrices_move_orthogonally_by_adamws_size_and_the_rest_by_adamw() -> None:
    ours, theirs, before = model(), model(), model()
    optimizer = NamedOptimizer(dict(ours.named_parameters()), kind="muon", learning_rate=0.01, weight_decay=0.0)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    slopes = {name: torch.randn(parameter.shape, generator=generator) for name, parameter in ours.named_parameters()}
    for name, slope in slopes.items():
        ours.get_parameter(name).grad, theirs.get_parameter(name).grad = slope.clone(), slope.clone()
    optimizer.step()
    reference.step()
    for name in ("conv_in.weight", "hidden.bias", "head.bias"):
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name), rtol=1e-4, atol=1e-6)
    for name, (rows, columns) in {"hidden.weight": (24, 180), "head.weight": (40, 24)}.items():
        moved = (before.get_parameter(name) - ours.get_parameter(name)).detach().reshape(rows, columns)
        u, _, v = torch.linalg.svd(slopes[name].reshape(rows, columns), full_matrices=False)
        exact = 0.01 * 0.2 * max(rows, columns) ** 0.5 * (u @ v)
        # Newton-Schulz in five steps leaves singular values between .6 and 1.3
        assert float(nn.functional.cosine_similarity(moved.flatten(), exact.flatten(), dim=0)) > 0.97
        assert 0.7 < float(moved.norm() / exact.norm()) < 1.2


def test_the_layout_in_memory_changes_nothing() -> None:
    plain, last = model(), model(channels_last=True)
    assert not last.hidden.weight.is_contiguous()
    for of in (plain, last):
        optimizer = named(of, "muon")
        for seed in range(2):
            gradients(of, seed)
            optimizer.step()
    moved = (plain.hidden.weight - model().hidden.weight).detach().abs().mean()
    assert float((plain.hidden.weight - last.hidden.weight).detach().abs().mean()) < 0.05 * float(moved)
    matrix = as_matrix(last.hidden.weight.detach(), like=last.hidden.weight)
    assert matrix.data_ptr() == last.hidden.weight.data_ptr(), "no copy: a step on the matrix is a step on the kernel"


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "muon"])
def test_restored_it_goes_on_as_if_it_had_not_stopped(kind: str) -> None:
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra")
    whole, left = model(), model()
    optimizer, first = named(whole, kind), named(left, kind)
    for seed in range(4):
        gradients(whole, seed)
        optimizer.step()
    for seed in range(2):
        gradients(left, seed)
        first.step()
    again = model()
    again.load_state_dict(left.state_dict())
    second = named(again, kind)
    kept = {name: value.clone() for name, value in first.moments().items()}
    second.restore(2, kept)
    for seed in range(2, 4):
        gradients(again, seed)
        second.step()
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_moments_in_8_bits_take_a_quarter_and_move_as_adamw_does() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra")
    ours, theirs, before = model(), model(), model()
    eight, full = named(ours, "adamw8bit"), named(theirs, "adamw")
    for seed in range(5):
        for of, optimizer in ((ours, eight), (theirs, full)):
            gradients(of, seed)
            optimizer.step()
    sizes = [
        sum(value.nbytes for key, value in of.moments().items() if "hidden.weight" in key and "qmap" not in key)
        for of in (eight, full)
    ]
    assert sizes[0] < 0.27 * sizes[1]
    moved, exact = ((of.hidden.weight - before.hidden.weight).detach().flatten() for of in (ours, theirs))
    assert float(nn.functional.cosine_similarity(moved, exact, dim=0)) > 0.98
    assert 0.9 < float(moved.norm() / exact.norm()) < 1.1


def test_without_bitsandbytes_adamw_takes_its_place_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("defectory.engine.training.optimizer.find_spec", lambda name: None)
    kind, remark = usable_kind("adamw8bit")
    assert kind == "adamw"
    assert "bitsandbytes is not installed" in remark
    assert usable_kind("muon") == ("muon", "")


def test_matrices_made_orthogonal_together_move_as_one_by_one() -> None:
    shapes = [(24, 40), (24, 40), (40, 24), (24, 24), (24, 40)]
    generator = torch.Generator().manual_seed(1)
    begin = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(value.clone()) for value in begin] for _ in range(2))
    stacked = StackedMuon(ours, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        if step == 1:
            ours[1].grad = theirs[1].grad = None
        stacked.step()
        reference.step()
    for one, other, value in zip(ours, theirs, begin, strict=True):
        moved = (other - value).detach()
        # bf16 inside the iteration, summed in another order
        assert float((one - other).detach().norm() / moved.norm()) < 0.02
    assert torch.allclose(stacked.state[ours[0]]["momentum_buffer"], reference.state[theirs[0]]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(24, 216), (216, 24), (24, 48), (24, 30), (16, 16)])
@pytest.mark.parametrize("rank", [16, 3])
def test_in_fp32_wide_and_tall_matrices_become_what_the_plain_iteration_gives(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], rank: int
) -> None:
    monkeypatch.setattr("defectory.engine.training.optimizer.has_bf16", lambda device_type: False)
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(2, side, rank, generator=generator, dtype=torch.float64) for side in shape)
    matrices = left @ right.mT
    a, b, c = coefficients = (3.4445, -4.775, 2.0315)
    expected = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = expected @ expected.mT
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    found = orthogonal(matrices.float(), coefficients, 5, 1e-7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
