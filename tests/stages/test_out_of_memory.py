from __future__ import annotations

from typing import Any

import pytest

from defectory.config.presets import GPU_PRESETS, next_smaller
from defectory.config.resolve import resolve
from defectory.errors import StageError
from defectory.runs.out_of_memory import is_out_of_memory, out_of_memory, preset_of


def config_of(preset: str, **settings: Any) -> Any:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return resolve(project={"data": {"path": "a.json"}}, preset=preset, environment={}, overrides=overrides).config


def test_the_next_smaller_preset_is_named() -> None:
    for preset, smaller in (("gpu-80gb", "gpu-24gb"), ("gpu-16gb", "gpu-12gb"), ("gpu-12gb", "gpu-8gb")):
        config = config_of(preset)
        assert preset_of(config) == preset
        error = out_of_memory("learn-condition", config)
        assert isinstance(error, StageError)
        assert f'"{smaller}"' in str(error)
        assert "segmentation.batch_size to 4" in str(out_of_memory("segment-real-seed0", config))
    assert next_smaller(next(iter(GPU_PRESETS))) is None
    assert next_smaller("cpu") is None


def test_without_a_smaller_preset_the_setting_that_takes_less_is_named() -> None:
    batch = config_of("cpu", condition__training__batch_size=6)
    assert "condition.training.batch_size to 3" in str(out_of_memory("learn-condition", batch))
    assert "gradient_accumulation_steps to 2" in str(out_of_memory("learn-condition", batch))
    one = config_of("cpu", concept__training__batch_size=1)
    assert "gradient_checkpointing to true" in str(out_of_memory("learn-concept", one))
    assert "synthesis.batch_size to 2" in str(out_of_memory("synthesize", config_of("cpu", synthesis__batch_size=4)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_that_say_memory_ran_out(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
