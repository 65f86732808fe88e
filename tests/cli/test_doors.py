from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.images.load import load_rgb
from defectory.images.save import save_png

Cli = Callable[..., Any]
VERBS = (
    "demo",
    "init",
    "import",
    "check",
    "base",
    "learn-concept",
    "learn-condition",
    "drivers",
    "plan",
    "synthesize",
    "curate",
    "export",
    "segment",
    "predict",
    "evaluate",
    "report",
    "run",
    "finalize",
    "doctor",
)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc; with another C library nothing is set"
)
def test_freed_memory_is_kept_unless_the_environment_says_otherwise() -> None:
    code = (
        "import resource\n"
        "from defectory.memory import keep_freed_memory\n"
        "print(keep_freed_memory())\n"
        "faults = []\n"
        "for _ in range(3):\n"
        "    filled = bytearray(b'x') * (64 << 20)\n"
        "    del filled\n"
        "    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
        "print(faults[2] - faults[1])\n"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    answers = [
        subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout.split()
        for env in (plain, plain | {"MALLOC_MMAP_THRESHOLD_": "131072"})
    ]
    (kept, few), (left, many) = answers
    assert (kept, left) == ("True", "False")
    assert int(few) < 100 < 1000 < int(many)


def test_help_names_every_verb_and_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['defectory', '--help']\n"
        "from defectory.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'torchvision', 'diffusers', 'transformers', 'cv2', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f" {verb} " in done.stdout


def test_dependencies_are_told_to_stay_offline() -> None:
    code = (
        "import sys, os; sys.argv = ['defectory', '--version']\n"
        "from defectory.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert os.environ['HF_HUB_OFFLINE'] == os.environ['DO_NOT_TRACK'] == os.environ['HF_HUB_DISABLE_TELEMETRY'] "
        "== '1'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={})


def test_init_writes_a_file_that_run_accepts(defectory: Cli, tmp_path: Path) -> None:
    file = tmp_path / "project.toml"
    assert defectory("init", file, "--data", "labels.json").code == 0
    done = defectory("run", file, "--dry-run")
    assert done.code == 0, done.err
    assert "learn-condition" in done.out
    assert "to be run" in done.out
    assert not (tmp_path / "runs").exists()


def test_init_does_not_replace_a_file(defectory: Cli, tmp_path: Path) -> None:
    file = tmp_path / "project.toml"
    file.write_text("mine")
    done = defectory("init", file)
    assert (done.code, file.read_text()) == (2, "mine")
    assert "--force" in done.error_line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[data]\npath = 'a.json'\n[synthesis]\nnum_imagess = 3\n",
            ("synthesis.num_imagess", "no such setting", "did you mean 'synthesis.num_images'"),
        ),
        (
            "[data]\npath = 'a.json'\n[synthesis]\nnum_images = 'many'\n",
            ("synthesis.num_images", "valid integer", "'many'"),
        ),
        ("[data]\npath = 'a.json'\n[split]\nfraction = 1.5\n", ("split.fraction", "less than or equal to 1", "1.5")),
        ("[synthesis]\nnum_images = 3\n", ("data", "is missing")),
        ("[data\npath = 3", ("is not TOML",)),
        ("preset = 'fast'\n[data]\npath = 'a.json'\n", ("preset 'fast'", "no such preset", "demo-full")),
    ],
)
def test_a_wrong_project_file_is_one_line_and_exit_code_2(
    defectory: Cli, tmp_path: Path, text: str, said: tuple[str, ...]
) -> None:
    file = tmp_path / "project.toml"
    file.write_text(text)
    done = defectory("run", file)
    assert done.code == 2
    for words in said:
        assert words in done.error_line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["project.toml"]


def test_a_demo_with_a_wrong_setting_leaves_nothing_behind(defectory: Cli, tmp_path: Path) -> None:
    done = defectory("demo", "--out", tmp_path / "demo", "-o", "synthesis.num_images=many")
    assert (done.code, "synthesis.num_images" in done.error_line) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_demo_has_one_length(defectory: Cli, tmp_path: Path) -> None:
    done = defectory("demo", "--full", "--short", "--out", tmp_path / "demo")
    assert (done.code, "option --short" in done.error_line) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_shortened_demo_says_so_and_keeps_to_json_if_asked(defectory: Cli, tmp_path: Path) -> None:
    begun = ("demo", "--out", tmp_path / "demo", "--dry-run")
    defectory(*begun, "--short")
    assert "the demo is shortened" in defectory(*begun).out
    lines = defectory(*begun, "--json").out.splitlines()
    assert lines
    assert all(json.loads(line) for line in lines)


def test_a_missing_project_file_says_how_to_write_one(defectory: Cli, tmp_path: Path) -> None:
    done = defectory("run", tmp_path / "project.toml")
    assert done.code == 2
    assert "defectory init" in done.error_line


def test_a_wrong_override_and_a_wrong_environment_name_themselves(
    defectory: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "project.toml"
    file.write_text("[data]\npath = 'a.json'\n")
    done = defectory("run", file, "-o", "seeds=3")
    assert (done.code, "command line: seeds" in done.error_line) == (2, True)
    done = defectory("run", file, "-o", "seed")
    assert (done.code, "key=value" in done.error_line) == (2, True)
    monkeypatch.setenv("DEFECTORY_SYNTHESIS__NUM_IMAGES", "none")
    done = defectory("run", file)
    assert (done.code, "DEFECTORY_SYNTHESIS__NUM_IMAGES" in done.error_line) == (2, True)


def test_resolved_configuration_is_saved_with_origins(
    defectory: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "project.toml"
    file.write_text(
        "preset = 'cpu'\nseed = 4\n[data]\npath = 'empty.json'\n[synthesis]\nnum_images = 5\nbatch_size = 2\n"
    )
    (tmp_path / "empty.json").write_text("{}")
    monkeypatch.setenv("DEFECTORY_SYNTHESIS__BATCH_SIZE", "3")
    done = defectory("run", file, "--seed", "9")
    assert done.code == 2
    assert "empty.json" in done.error_line
    saved = json.loads((tmp_path / "runs" / "project" / "project.json").read_text())
    config, origins = saved["config"], saved["origins"]
    assert (config["seed"], origins["seed"]) == (9, "command line")
    assert (config["synthesis"]["batch_size"], origins["synthesis.batch_size"]) == (
        3,
        "DEFECTORY_SYNTHESIS__BATCH_SIZE",
    )
    assert (config["synthesis"]["num_images"], origins["synthesis.num_images"]) == (5, str(file))
    assert origins["condition.training.num_steps"] == "preset cpu"
    assert origins["split.val_share"] == "default"


def test_an_output_folder_that_cannot_be_written_is_exit_code_2(defectory: Cli, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    file = tmp_path / "project.toml"
    file.write_text("out = 'occupied/run'\n[data]\npath = 'a.json'\n")
    (tmp_path / "a.json").write_text("{}")
    done = defectory("run", file)
    assert done.code == 2
    assert "is a file, not a folder" in done.error_line


def test_a_full_disk_is_exit_code_2_and_leaves_nothing(
    defectory: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    file, data = tmp_path / "project.toml", tmp_path / "a.json"
    file.write_text("[data]\npath = 'a.json'\n")
    data.write_text("{}")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = defectory("run", file)
    assert done.code == 2
    assert "no space left on device" in done.error_line
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {file, data}


def test_interrupting_a_run_is_exit_code_130(defectory: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectory.stages import all as all_module

    def interrupted(*_args: object, **_kw: object) -> Any:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(all_module, "run_all", interrupted)
    file = tmp_path / "project.toml"
    file.write_text("[data]\npath = 'a.json'\n")
    (tmp_path / "a.json").write_text("{}")
    done = defectory("run", file)
    assert done.code == 130
    assert "again" in done.err


@pytest.fixture
def mask_folder(tmp_path: Path) -> Path:
    root = tmp_path / "labelled"
    rows = ["image,mask,class,group"]
    for index in range(4):
        image = np.full((40, 56, 3), 120, np.uint8)
        mask = np.zeros((40, 56), np.uint8)
        mask[10 + index : 20, 12:30] = 1
        save_png(root / "images" / f"p{index}.png", image + np.uint8(index))
        save_png(root / "masks" / f"p{index}.png", mask)
        rows.append(f"images/p{index}.png,masks/p{index}.png,scratch,batch{index // 2}")
    (root / "index.csv").write_text("\n".join(rows) + "\n")
    return root


def test_import_then_check_tells_what_is_there(defectory: Cli, mask_folder: Path, tmp_path: Path) -> None:
    done = defectory("import", mask_folder / "index.csv", "--out", tmp_path / "data")
    assert done.code == 0, done.err
    done = defectory("check", tmp_path / "data")
    assert done.code == 0, done.err
    assert "class scratch" in done.out
    assert "4 instances in 4 images" in done.out
    assert load_rgb(tmp_path / "data" / "contact_sheet.png").shape[2] == 3
    report = json.loads(defectory("check", tmp_path / "data", "--json").out)
    assert (report["num_images"], report["num_instances"], report["num_groups"]) == (4, 4, 2)


def test_one_bad_image_stops_the_import_unless_skipped(defectory: Cli, mask_folder: Path, tmp_path: Path) -> None:
    (mask_folder / "images" / "p2.png").write_bytes(b"")
    done = defectory("import", mask_folder / "index.csv", "--out", tmp_path / "data")
    assert done.code == 2
    assert "p2.png" in done.error_line
    assert not (tmp_path / "data").exists()
    done = defectory("import", mask_folder / "index.csv", "--out", tmp_path / "data", "--skip-bad")
    assert done.code == 0
    assert "skipped" in done.out
    assert "p2.png" in done.out


def test_a_wrong_option_of_import_is_exit_code_2(defectory: Cli, mask_folder: Path, tmp_path: Path) -> None:
    done = defectory("import", mask_folder, "--out", tmp_path / "data", "--format", "png")
    assert done.code == 2
    assert "--format" in done.error_line


def test_drivers_extract_paints_the_mask_bright_on_dim_geometry(
    defectory: Cli, mask_folder: Path, tmp_path: Path
) -> None:
    done = defectory(
        "drivers",
        "extract",
        tmp_path / "none.toml",
        "--image",
        mask_folder / "images" / "p0.png",
        "--mask",
        mask_folder / "masks" / "p0.png",
        "--out",
        tmp_path / "drivers",
    )
    assert done.code == 0, done.err
    driver, mask = load_rgb(tmp_path / "drivers" / "p0.png"), load_rgb(mask_folder / "masks" / "p0.png")[..., 0] > 0
    assert driver[mask].max() == 255
    assert driver[~mask].max() <= 50


def test_a_pickled_segmenter_is_refused(defectory: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "segmenter"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"\x80\x04.")
    save_png(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    done = defectory("predict", tmp_path / "a.png", "--segmenter", folder, "--out", tmp_path / "predictions")
    assert done.code == 2
    assert "pickle" in done.error_line
    assert not (tmp_path / "predictions").exists()


def test_a_pickled_base_is_refused(defectory: Cli, tmp_path: Path, make_base: Callable[..., Path]) -> None:
    base = make_base(tmp_path / "base", with_control=False)
    (base / "digests.json").unlink()
    weights = next((base / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    done = defectory("base", "verify", base)
    assert done.code == 2
    assert "pickle" in done.error_line


def test_the_shipped_base_is_whole_and_listed(defectory: Cli) -> None:
    assert "whole" in defectory("base", "verify").out
    assert "embedded" in defectory("base", "list").out


def test_predict_gives_coco_results_and_overlays(defectory: Cli, tmp_path: Path) -> None:
    from defectory.artifacts.annotation import Category
    from defectory.rle import encode
    from defectory.segmentation.config import SegmentationConfig
    from defectory.segmentation.data import SegmentationImage
    from defectory.segmentation.sizing import Sizing
    from defectory.segmentation.training import train_segmenter

    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    image = np.full((64, 64, 3), 180, np.uint8)
    image[mask] = 20
    tile = SegmentationImage(id="t", image=image, instances=((1, encode(mask)),))
    sizing = Sizing(scale=1.0, input_px=64)
    for _ in train_segmenter(
        arm="real",
        images={"real": [tile]},
        validate=lambda _model: 0.0,
        categories=(Category(id=1, name="scratch"),),
        sizing=sizing,
        config=SegmentationConfig(model="light", num_steps=2, batch_size=1),
        seed=0,
        out=tmp_path / "segmenter",
    ):
        pass
    save_png(tmp_path / "photos" / "a.png", image[:48])
    (tmp_path / "photos" / "b.png").write_bytes(b"not an image")
    done = defectory("predict", tmp_path / "photos", "-m", tmp_path / "segmenter", "--out", tmp_path / "found")
    assert done.code == 2
    assert "b.png" in done.error_line
    done = defectory(
        "predict", tmp_path / "photos", "-m", tmp_path / "segmenter", "--out", tmp_path / "found", "--skip-bad"
    )
    assert done.code == 0, done.err
    assert load_rgb(next((tmp_path / "found" / "overlays").glob("*a.png"))).shape[:2] == (48, 64)
    for row in json.loads((tmp_path / "found" / "predictions.json").read_text()):
        assert row["segmentation"]["size"] == [48, 64]
        assert 0 <= row["score"] <= 1


@pytest.mark.long
def test_a_base_is_taught_a_word_of_the_world(defectory: Cli, tmp_path: Path) -> None:
    out = tmp_path / "taught"
    few = [
        f"-o{name}={value}"
        for name, value in {
            "num_images": 8,
            "num_held_out": 2,
            "num_texts": 8,
            "num_workers": 1,
            "num_drawn": 1,
        }.items()
    ]
    done = defectory("base", "teach", "dent", "--out", out, *few, "-otraining.num_steps=2", "-otraining.batch_size=2")
    assert done.code == 0, done.err
    assert str(out) in done.out
    assert f"samples: {out}.work/before.png, {out}.work/after.png" in done.out
    assert (tmp_path / "taught.work" / "after.png").is_file()
    assert "whole" in defectory("base", "verify", out).out


def test_other_words_are_refused(defectory: Cli, tmp_path: Path) -> None:
    done = defectory("base", "teach", "rust", "--out", tmp_path / "no")
    assert done.code == 2
    assert "'rust' is not one of crack, " in done.error_line
    assert not (tmp_path / "no").exists()
    assert not (tmp_path / "no.work").exists()
