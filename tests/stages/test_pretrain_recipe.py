from __future__ import annotations

from pathlib import Path

import pytest

from defectory.engine.devices import usable_device
from defectory.errors import ConfigError
from defectory.pretraining.config import ON_ACCELERATOR, PretrainConfig
from defectory.tools.pretrain import pretrain_config, run_pretrain


def test_one_recipe_serves_a_cpu_and_an_accelerator() -> None:
    on_cpu, on_gpu = (pretrain_config([], device=device, seed=3) for device in ("cpu", "cuda:1"))
    assert on_cpu == PretrainConfig(seed=3)
    assert (on_gpu.device, on_gpu.seed) == ("cuda:1", 3)
    assert on_gpu.diffusion.batch_size > 8 * on_cpu.diffusion.batch_size
    assert on_gpu.control.learning_rate == on_cpu.control.learning_rate, (
        "what an accelerator has no value for is a CPU's"
    )
    changed = {key for key in PretrainConfig.model_fields if getattr(on_gpu, key) != getattr(on_cpu, key)}
    assert changed == {*(text.partition("=")[0].partition(".")[0] for text in ON_ACCELERATOR), "device"}
    networks = {
        key for key in PretrainConfig.model_fields if key.endswith(("channels", "groups")) or key.startswith("text_")
    }
    assert not networks & changed, "the networks are the same on either"


def test_settings_of_the_command_line_win_over_those_of_the_device() -> None:
    config = pretrain_config(["diffusion.num_steps=9000", "num_images=500"], device="cuda", seed=0)
    assert (config.diffusion.num_steps, config.num_images) == (9000, 500)
    assert config.diffusion.batch_size == pretrain_config([], device="cuda", seed=0).diffusion.batch_size
    with pytest.raises(ConfigError, match="no such setting"):
        pretrain_config(["diffusion.num_stepz=1"], device="cuda", seed=0)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_said_before_anything_is_written(device: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used on this machine; choose cpu"):
        list(run_pretrain(PretrainConfig(device=device), out=tmp_path / "out", work=tmp_path / "work"))
    assert not list(tmp_path.iterdir())
    assert usable_device("cpu") == "cpu"
