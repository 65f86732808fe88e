"""Pulling a base: from a small hub on this machine, from its cache, and from a folder that was carried here."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import pytest
from huggingface_hub import constants

from defectory import finish
from defectory.api.bases import describe_base, find_bases, pull_base
from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.verify import verify
from defectory.errors import OutputError, WeightsError
from defectory.events import Notice

NAME, COMMIT = "acme/tiny", "c" * 40


class Hub:
    """A hub with one model, which may be broken in several ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.broken: dict[str, bytes] = {}
        self.fails: str | None = None

    def files(self) -> dict[str, Path]:
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return dict(sorted(found.items()))

    def listed(self) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = []
        for name, path in self.files().items():
            content = path.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            about: dict[str, Any] = {"rfilename": name, "path": name, "type": "file", "size": len(content)}
            about |= {"blobId": blob, "oid": blob}
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(content).hexdigest()
                about["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 100}
            files.append(about)
        return files


def answer(hub: Hub, handler: BaseHTTPRequestHandler) -> tuple[int, bytes, dict[str, str]]:
    path = urlparse(handler.path).path
    if path.startswith(f"/api/models/{NAME}/tree/"):
        return 200, json.dumps(hub.listed()).encode(), {}
    if path.startswith(f"/api/models/{NAME}"):
        about = {"id": NAME, "sha": COMMIT, "siblings": hub.listed(), "cardData": {"license": "openrail"}, "tags": []}
        return 200, json.dumps(about).encode(), {}
    name = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
    if name in hub.files():
        hub.asked += [name] if handler.command == "GET" else []
        content = hub.files()[name].read_bytes()
        if name == hub.fails and handler.command == "GET":
            return 500, b"", {}
        etag = next(about.get("lfs", about)["oid"] for about in hub.listed() if about["path"] == name)
        return 200, hub.broken.get(name, content), {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
    return 404, b"", {"X-Error-Code": "RepoNotFound"}


@pytest.fixture
def hub(tiny_stable_diffusion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    published = tmp_path / "published"
    shutil.copytree(tiny_stable_diffusion_folder, published)
    (published / "digests.json").unlink(missing_ok=True)
    # what published repositories hold besides
    (published / "README.md").write_text("---\nlicense: openrail\n---\n")
    (published / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04never")
    shutil.copy(
        published / "unet" / "diffusion_pytorch_model.safetensors",
        published / "unet" / "diffusion_pytorch_model.non_ema.safetensors",
    )
    (published / "safety_checker").mkdir()
    (published / "safety_checker" / "model.safetensors").write_bytes(b"unwanted")
    made = Hub(published)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content, headers = answer(made, self)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEFECTORY_BASES", str(tmp_path / "bases"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "bases"


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_pulled_base_is_whole_and_found_by_its_name(hub: Hub, bases: Path) -> None:
    assert find_bases()[0].name == "embedded"
    folder = finish(pull_base(NAME))
    assert folder == bases / NAME == resolve_base(NAME) == resolve_base(f"/project/{NAME}")
    facts = verify(folder)
    assert facts.prediction_type == "epsilon"
    names = names_in(folder)
    assert {"digests.json", "source.json", "unet/diffusion_pytorch_model.safetensors"} <= names
    assert not [name for name in names if "non_ema" in name or "safety" in name or name.endswith((".bin", ".md"))]
    assert not (bases / ".partial").exists()
    assert json.loads((folder / "source.json").read_text())["commit"] == COMMIT
    info = describe_base(NAME)
    assert info.licence.startswith("openrail")
    assert info.origin == f"{NAME}, {COMMIT}"
    unet = next(part for part in info.parts if part.name == "unet")
    assert (unet.kind, unet.dtype) == ("UNet2DConditionModel", "F32")
    assert 0.9 < 4 * unet.num_parameters / unet.num_bytes < 1
    assert [(base.name, base.problem) for base in find_bases()] == [("embedded", None), (NAME, None)]
    # the second time nothing is downloaded
    asked = len(hub.asked)
    told = [event for event in pull_base(NAME) if isinstance(event, Notice)]
    assert "already" in told[0].text
    assert len(hub.asked) == asked


def test_an_interrupted_pull_is_no_base_and_goes_on(hub: Hub, bases: Path) -> None:
    hub.fails = "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(WeightsError, match="cannot be reached"):
        finish(pull_base(NAME))
    assert len(find_bases()) == 1
    with pytest.raises(WeightsError, match="not on this machine"):
        resolve_base(NAME)
    hub.fails = None
    done = set(hub.asked) - {"vae/diffusion_pytorch_model.safetensors"}
    hub.asked.clear()
    verify(finish(pull_base(NAME)))
    assert "unet/diffusion_pytorch_model.safetensors" in done
    assert not done & set(hub.asked)


def test_a_file_with_another_digest_is_refused_and_downloaded_again(hub: Hub, bases: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(hub.files()[name].read_bytes())
    content[-1] ^= 1
    hub.broken[name] = bytes(content)
    with pytest.raises(WeightsError, match="digest differs from what the hub states"):
        finish(pull_base(NAME))
    assert len(find_bases()) == 1
    hub.broken.clear()
    verify(finish(pull_base(NAME)))


def test_a_damaged_base_is_pulled_again(hub: Hub, bases: Path) -> None:
    folder = finish(pull_base(NAME))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    finish(pull_base(NAME))
    verify(folder)


def test_without_a_network_the_message_says_what_to_carry_where(
    hub: Hub, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        with pytest.raises(WeightsError) as caught:
            finish(pull_base(NAME))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in told()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = told()
    assert "cannot be reached" in line
    assert f"carry the folder STICK/{NAME} here" in line
    assert f"`defectory base pull {NAME} --from STICK/{NAME}`" in line


def test_other_families_and_unknown_models_are_refused_before_weights_are_downloaded(hub: Hub, bases: Path) -> None:
    with pytest.raises(WeightsError, match="no such model"):
        finish(pull_base("acme/other"))
    index = hub.folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "_class_name": "FluxPipeline"}))
    with pytest.raises(WeightsError, match="is FLUX"):
        finish(pull_base(NAME))
    index.write_text(json.dumps(content))
    (hub.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (hub.folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").unlink()
    with pytest.raises(WeightsError, match="unet/ has no safetensors file, and pickles are refused"):
        finish(pull_base(NAME))
    assert not [name for name in hub.asked if name.endswith(".safetensors")]


def test_a_base_is_copied_from_a_stick_without_a_network(
    tiny_stable_diffusion_folder: Path, tmp_path: Path, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: pytest.fail("used a network"))
    stick = Path(shutil.copytree(tiny_stable_diffusion_folder, tmp_path / "stick"))
    folder = finish(pull_base(NAME, source=stick))
    assert folder == bases / NAME
    verify(folder)
    # carried on: the digests of the first pull are checked on the next machine
    carried = Path(shutil.copytree(folder, tmp_path / "carried"))
    weights = carried / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match=r"digest differs from digests\.json"):
        finish(pull_base("acme/second", source=carried))
    assert not (bases / "acme" / "second").exists()
    shutil.rmtree(carried / "vae")
    with pytest.raises(WeightsError, match="the part vae/ is missing"):
        finish(pull_base("acme/second", source=carried))
    with pytest.raises(WeightsError, match="is not sd15: tiles of 32 px"):
        finish(pull_base("sd15", source=stick))


def test_a_users_folder_of_that_name_is_kept(tiny_stable_diffusion_folder: Path, bases: Path) -> None:
    (bases / "sd15").mkdir(parents=True)
    (bases / "sd15" / "notes.txt").write_text("years of work")
    with pytest.raises(OutputError, match="sd15"):
        finish(pull_base("sd15", source=tiny_stable_diffusion_folder))
    assert (bases / "sd15" / "notes.txt").exists()


@pytest.mark.parametrize(("name", "said"), [("nothing", "neither a known name"), ("embedded", "shipped")])
def test_what_is_no_name_is_refused_at_once(name: str, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        pull_base(name)


def test_the_hubs_cache_is_searched_and_a_part_of_a_base_is_none(
    tiny_stable_diffusion_folder: Path, tmp_path: Path, bases: Path
) -> None:
    model = tmp_path / "cache" / "models--acme--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    snapshot = Path(shutil.copytree(tiny_stable_diffusion_folder, model / "snapshots" / COMMIT))
    assert resolve_base(NAME) == snapshot
    assert [base.name for base in find_bases()] == ["embedded", NAME]
    folder = finish(pull_base(NAME))
    assert folder == bases / NAME == resolve_base(NAME)
    shutil.rmtree(bases)
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"only a part of it is in the hub's cache .*vae: no safetensors file"):
        resolve_base(NAME)
    assert find_bases()[1].problem is not None
