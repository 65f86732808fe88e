from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def load_bench() -> Any:
    spec = spec_from_file_location("gpu_bench", BENCH / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["gpu_bench"] = module
    spec.loader.exec_module(module)
    return module


def test_the_bench_measures_both_sides_of_everything(
    tiny_stable_diffusion_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = load_bench()
    # compiling takes a minute, and is torch's own
    monkeypatch.setattr("torch.compile", lambda module: module)
    base, page = tiny_stable_diffusion_folder, tmp_path / "gpu.md"
    options = ["--base", str(base), "--tile-px", "32", "--device", "cpu", "--steps", "1", "--batch-size", "1"]
    assert bench.main([*options, "--num-inference-steps", "2", "--out", str(page)]) == 0
    rows = [line.split("|")[1:3] for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    found = [(what.strip(), who.strip()) for what, who in rows]
    for what in ("phase 1", "phase 2", "drafts, 2 steps"):
        assert [who for of, who in found if of == what] == ["Defectory", "diffusers"]
    assert [who for of, who in found if of.startswith("denoiser")] == [
        "eager",
        "channels-last",
        "channels-last, compiled",
    ]
    assert page.read_text() in capsys.readouterr().out
