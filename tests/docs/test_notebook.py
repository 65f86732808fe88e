"""The notebook runs from its first cell to its last one, and shows pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first-look.ipynb"
MAX_BYTES = 1_000_000
NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there: a download fails instead of passing on a machine with a network."""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a kernel that runs this Python, and keeps its own files in the test's folder."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python",
        "language": "python",
        "env": {"HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path), **proxies},
    }
    (tmp_path / "kernels" / "this-python").mkdir(parents=True)
    (tmp_path / "kernels" / "this-python" / "kernel.json").write_text(json.dumps(spec))
    return "this-python"


def test_the_notebook_runs_and_shows_pictures(kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (tmp_path / "here").mkdir()
    NotebookClient(
        notebook, timeout=90, kernel_name=kernel, resources={"metadata": {"path": str(tmp_path / "here")}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [of for of in outputs if any("image/png" in output.get("data", {}) for output in of)]
    assert len(pictures) >= 3
    written = [output.text for of in outputs for output in of if output.output_type == "stream"]
    assert not any("Warning" in text for text in written), written
    assert not list((tmp_path / "here").iterdir())


def test_the_stored_notebook_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert len(text.encode()) < MAX_BYTES
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    shown = [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert not any(place in text for text in shown for place in ("/tmp", "/home", "/Users", "site-packages"))
