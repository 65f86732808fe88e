"""The verbs that bring a base to this machine and describe it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from defectory.cli import quiet

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEFECTORY_BASES", str(tmp_path / "bases"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "bases"


def test_a_base_that_was_carried_here_is_pulled_listed_described_and_verified(
    defectory: Cli, tiny_stable_diffusion_folder: Path, bases: Path
) -> None:
    pulled = defectory("base", "pull", "acme/tiny", "--from", tiny_stable_diffusion_folder)
    assert pulled.code == 0, pulled.err
    assert 'base = "acme/tiny"' in pulled.out
    assert "licence of acme/tiny: not stated" in pulled.out + pulled.err
    listed = defectory("base", "list").out
    assert all(name in listed for name in ("embedded", "sd15", "sd21", "sdxl", "acme/tiny", "ready"))
    told = json.loads(defectory("base", "info", "acme/tiny", "--json").out)
    assert (told["folder"], told["tile_px"], told["prediction_type"]) == (str(bases / "acme" / "tiny"), 32, "epsilon")
    assert {part["name"] for part in told["parts"]} >= {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert "parameters" in defectory("base", "info", "acme/tiny").out
    assert "whole" in defectory("base", "verify", "acme/tiny").out


def test_without_a_network_pull_is_one_line_that_says_what_to_carry(
    defectory: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    outcome = defectory("base", "pull", "sd15")
    assert outcome.code == 2
    assert "`defectory base pull sd15 --from STICK/sd15`" in outcome.error_line


@pytest.mark.parametrize("by_user", [False, True])
def test_only_pull_lifts_the_ban_on_the_network_and_not_the_users_own(
    by_user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "_ours", set[str]())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if by_user:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quiet.keep_quiet()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    quiet.allow_network()
    assert ("HF_HUB_OFFLINE" in os.environ) == by_user
