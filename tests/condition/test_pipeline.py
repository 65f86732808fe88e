from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from defectory.artifacts.weights import Control
from defectory.condition.finalize import finalize_pipeline
from defectory.engine.backbones.load import load_base
from defectory.files import digest_folder


def test_a_finished_pipeline_is_a_plain_one_in_fp32(tiny_base_folder: Path, tmp_path: Path) -> None:
    """That it draws without defectory is shown on a whole run, in stages/test_run.py and stages/test_distill.py."""
    shutil.copytree(tiny_base_folder / "controlnet", tmp_path / "control" / "controlnet")
    Control(concept_digest="c", driver_config_digest="d", weights_digest="w").save(tmp_path / "control/control.json")
    pipeline, digest = finalize_pipeline(load_base(tiny_base_folder), tmp_path / "control", tmp_path / "pipeline")
    assert (pipeline, digest) == ("StableDiffusionControlNetPipeline", digest_folder(tmp_path / "pipeline"))
    paths = sorted((tmp_path / "pipeline").rglob("*.safetensors"))
    assert paths
    for path in paths:
        assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {torch.float32}
