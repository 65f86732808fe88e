"""A power cut at any moment: what a manifest vouches for was on disk before the manifest was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RECORDER = """
import json, os, stat, sys
from pathlib import Path

synced = {}  # (device, inode) -> (size, mtime) when it was last synced
unsynced = []  # what a manifest came to stand beside, though it was not on disk
real_fsync, real_replace, real_rename = os.fsync, os.replace, os.rename

def fsync(descriptor):
    real_fsync(descriptor)
    about = os.fstat(descriptor)
    synced[about.st_dev, about.st_ino] = (about.st_size, about.st_mtime_ns)

def on_disk(path):
    about = os.stat(path)
    if stat.S_ISDIR(about.st_mode):
        return (about.st_dev, about.st_ino) in synced
    return synced.get((about.st_dev, about.st_ino)) == (about.st_size, about.st_mtime_ns)

def look(source):
    # a manifest is about to appear under its name, in its folder or with it
    source = Path(source)
    if source.is_dir() and (source / "stage.json").is_file():
        folder = source
    elif "stage.json" in source.name:
        folder = source.parent
    else:
        return
    unsynced.extend(str(path) for path in folder.rglob("*") if path.is_file() and not on_disk(path))

def replace(source, target, **keywords):
    look(source)
    return real_replace(source, target, **keywords)

def rename(source, target, **keywords):
    look(source)
    return real_rename(source, target, **keywords)

os.fsync, os.replace, os.rename = fsync, replace, rename
import torch
torch.set_num_threads(1)
from defectory.stages.all import run_all, stages_of
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.config.resolve import resolve

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
config = resolve(project=settings, overrides=("num_processes=1",)).config
project = Run(config=config, folder=folder / "run", sources=Sources(folder=folder))
for _ in run_all(project):
    pass
paths = [path for stage in stages_of(project.config) for path in (project.folder / stage.folder).rglob("*")]
lost = [str(path) for path in paths if path.is_file() and not on_disk(path)]
print(json.dumps({"unsynced": unsynced, "lost": lost, "synced": len(synced)}))
"""


def test_everything_a_manifest_vouches_for_is_synced_before_the_manifest(
    tiny_run: tuple[Path, dict[str, Any], list[Any]], tmp_path: Path
) -> None:
    folder, settings, _ = tiny_run
    (tmp_path / "source").symlink_to(folder / "source")
    done = subprocess.run(
        [sys.executable, "-P", "-c", RECORDER, str(tmp_path), json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["synced"] > 100, "the recorder saw no writes"
    assert found["unsynced"] == []
    assert found["lost"] == []
