from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from defectory.artifacts.weights import Control
from defectory.condition.finalize import finalize_pipeline
from defectory.engine.backbones.load import load_base
from defectory.files import digest_folder


def test_finished_pipeline_draws_in_plain_diffusers(tiny_base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base_folder / "controlnet", tmp_path / "control" / "controlnet")
    Control(concept_digest="c", driver_config_digest="d", weights_digest="w").save(tmp_path / "control/control.json")
    pipeline, digest = finalize_pipeline(load_base(tiny_base_folder), tmp_path / "control", tmp_path / "pipeline")
    assert (pipeline, digest) == ("StableDiffusionControlNetPipeline", digest_folder(tmp_path / "pipeline"))
    for path in (tmp_path / "pipeline").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {torch.float32}
    script = f"""
import sys
import numpy as np
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
pipeline = StableDiffusionControlNetPipeline.from_pretrained({str(tmp_path / "pipeline")!r}, local_files_only=True)
driver = Image.fromarray(np.zeros((32, 48, 3), np.uint8))
image = pipeline("an image of a sks with a crack", image=driver, num_inference_steps=2, guidance_scale=1.0).images[0]
assert image.size == (48, 32), image.size
assert not any(name.split(".")[0] == "defectory" for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
