"""Bases of other families, torn ones and hostile ones: one line that says what they are, before any library opens
them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.verify import verify
from defectory.errors import InputError, WeightsError

NUM_MUTATIONS = 400
LOADED_EVERY = 16
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(tiny_stable_diffusion_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_stable_diffusion_folder, tmp_path / "copy"))


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_key(file: str, key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, lambda content: content.__setitem__(key, value))


def named(pipeline: str, **parts: list[str]) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / "model_index.json", lambda content: content.update({"_class_name": pipeline, **parts})
    )


def with_transformer(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    (folder / "transformer").mkdir()
    edit(
        folder / "model_index.json",
        lambda c: (c.pop("unet"), c.update(_class_name="SomePipeline", transformer=["diffusers", "DiT"]))[0],
    )


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "SDXL for inpainting": (named("StableDiffusionXLInpaintPipeline"), "Stable Diffusion XL for inpainting"),
    "a third text encoder": (
        named("OwnPipeline", text_encoder_3=["transformers", "T5EncoderModel"]),
        "third text encoder",
    ),
    "SDXL by its UNet": (set_key("unet/config.json", "addition_embed_type", "text_time"), "Stable Diffusion XL"),
    "SD3 by its name alone": (named("StableDiffusion3Pipeline"), "names no transformer (StableDiffusion3Pipeline)"),
    "SD3 for inpainting": (named("StableDiffusion3InpaintPipeline"), "Stable Diffusion 3 for another task"),
    "FLUX": (named("FluxPipeline"), "FLUX"),
    "Z-Image": (named("ZImagePipeline"), "Z-Image"),
    "a transformer of any name": (with_transformer, "a transformer base"),
    "inpainting by name": (named("StableDiffusionInpaintPipeline"), "inpainting"),
    "inpainting by its UNet": (set_key("unet/config.json", "in_channels", 9), "inpainting"),
    "InstructPix2Pix": (set_key("unet/config.json", "in_channels", 8), "InstructPix2Pix"),
    "depth": (set_key("unet/config.json", "in_channels", 5), "depth"),
    "a latent consistency model": (set_key("unet/config.json", "time_cond_proj_dim", 256), "latent consistency"),
    "flow matching by its schedule": (
        set_key("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler"),
        "a flow-matching base",
    ),
    "a video model": (named("StableVideoDiffusionPipeline"), "a video model"),
    "another text encoder": (
        named("StableDiffusionPipeline", text_encoder=["transformers", "T5EncoderModel"]),
        "T5EncoderModel",
    ),
    "another autoencoder": (named("StableDiffusionPipeline", vae=["diffusers", "VQModel"]), "VQModel"),
    "another prediction": (set_key("scheduler/scheduler_config.json", "prediction_type", "sample"), "predicts sample"),
    "quantized": (set_key("unet/config.json", "quantization_config", {"load_in_4bit": True}), "quantized"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_family_is_named(copy: Path, kind: str) -> None:
    change, said = OTHERS[kind]
    change(copy)
    for check in (verify, load_base):
        with pytest.raises(WeightsError) as caught:
            check(copy)
        assert said in str(caught.value)
        assert "give" in str(caught.value).rpartition(";")[2]


def test_a_base_says_what_it_is(tiny_base_folder: Path, tiny_stable_diffusion_folder: Path) -> None:
    ours, theirs = verify(tiny_base_folder), verify(tiny_stable_diffusion_folder)
    assert (ours.family, ours.tile_px, ours.latent_factor, ours.prediction_type) == ("embedded", 32, 4, "v_prediction")
    assert (theirs.family, theirs.tile_px, theirs.latent_factor, theirs.prediction_type) == (
        "Stable Diffusion",
        32,
        8,
        "epsilon",
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no model_index.json here"),
        (("model.safetensors",), "a single-file checkpoint"),
        (("v1-5.ckpt",), "a single-file checkpoint"),
        (("config.json", "diffusion_pytorch_model.safetensors"), "one model"),
        (("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter"),
    ],
)
def test_a_folder_that_is_no_base_is_told_by_what_lies_there(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=said):
        verify(tmp_path)


def without_tokenizer_files(folder: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.unlink()


def with_vocabulary(vocab: dict[str, Any], merges: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        without_tokenizer_files(folder)
        (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocab))
        (folder / "tokenizer" / "merges.txt").write_text(merges)

    return change


LETTERS = {
    text: number for number, text in enumerate([c + end for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")])
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_tokenizer_files, "every word would be unknown"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{}"), "no vocabulary with merges"),
        (
            lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text(
                '{"model": {"vocab": {}, "merges": []}}'
            ),
            "does not know the letters",
        ),
        (with_vocabulary({"<|endoftext|>": 0}, "a b\n"), "does not know the letters"),
        (with_vocabulary(LETTERS, "#version: 0.2\n"), "merges are missing"),
        (with_vocabulary(LETTERS, "a b c\n"), "merges are missing or damaged"),
        (with_vocabulary(LETTERS, "q z</w>\n"), "merges give words that the vocabulary lacks"),
        (with_vocabulary({**LETTERS, "a": "0"}, "a b\n"), "gives a word no number"),
    ],
)
def test_a_tokenizer_that_knows_no_words_is_refused(copy: Path, change: Callable[[Path], None], said: str) -> None:
    change(copy)
    with pytest.raises(WeightsError, match=said):
        verify(copy)


def test_a_vocabulary_without_merges_is_refused(copy: Path) -> None:
    with_vocabulary(LETTERS, "")(copy)
    (copy / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"merges\.txt is missing"):
        verify(copy)


def sharded(folder: Path, part: str = "unet", *, change: Change | None = None) -> None:
    """Divide a model's weights over two files with an index, as diffusers writes large ones."""
    whole = next((folder / part).glob("*.safetensors"))
    tensors = load_file(whole)
    stem = whole.name.removesuffix(".safetensors")
    names = sorted(tensors)
    halves = {
        f"{stem}-00001-of-00002.safetensors": names[: len(names) // 2],
        f"{stem}-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    whole.unlink()
    for file, of in halves.items():
        save_file({name: tensors[name] for name in of}, folder / part / file, {"format": "pt"})
    index: dict[str, Any] = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, of in halves.items() for name in of},
    }
    if change is not None:
        change(index)
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def test_whole_shards_are_loaded_with_the_same_weights(copy: Path, tiny_stable_diffusion_folder: Path) -> None:
    sharded(copy)
    ours, theirs = load_base(copy).unet.state_dict(), load_base(tiny_stable_diffusion_folder).unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def first_names(file: str) -> Change:
    return lambda index: index["weight_map"].__setitem__(next(iter(index["weight_map"])), file)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("opened",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (first_names("evil.bin"), "no safetensors file; refused"),
        (first_names("evil.pt"), "no safetensors file; refused"),
        (first_names("../../evil.safetensors"), "not a file beside it; refused"),
        (first_names("/elsewhere/evil.safetensors"), "not a file beside it; refused"),
        (first_names("sub\\evil.safetensors"), "not a file beside it; refused"),
        (first_names("gone.safetensors"), "missing, though"),
        (
            lambda index: index["weight_map"].__setitem__("more", next(iter(index["weight_map"].values()))),
            "lacks the weight",
        ),
        (lambda index: index.__setitem__("weight_map", []), "has no weight_map"),
        (lambda index: index["weight_map"].__setitem__("x", 3), "names no file"),
    ],
)
def test_an_index_that_names_anything_else_is_refused_unopened(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sharded(copy, change=change)
    for name in ("evil.bin", "evil.pt"):
        torch.save(_Bomb(), copy / "unet" / name)
    for check in (verify, load_base):
        with pytest.raises(WeightsError) as caught:
            check(copy)
        assert said in str(caught.value)
    assert not (tmp_path / "opened").exists()


def test_an_adapter_beside_a_model_is_refused(copy: Path) -> None:
    (copy / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="an adapter beside a model"):
        verify(copy)


@pytest.mark.parametrize(
    "head", [b"\xff" * 8, (2**40).to_bytes(8, "little"), (8).to_bytes(8, "little") + b"{" * 8, b"", b"\0" * 7]
)
def test_a_header_that_cannot_be_is_one_line(copy: Path, head: bytes) -> None:
    next((copy / "vae").glob("*.safetensors")).write_bytes(head)
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        verify(copy)


def test_a_file_that_may_not_be_read_is_not_called_damaged(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    target, real = copy / "unet" / "config.json", builtins.open

    def refuse(file: Any, *args: Any, **more: Any) -> Any:
        if Path(str(file)) == target:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **more)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(
        WeightsError, match=r"config\.json: cannot be read \(permission denied\); change its permissions"
    ):
        verify(copy)


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    10**6,
    10**12,
    10**400,
    1.5,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    "\0",
    [],
    [0],
    [[1]],
    ["x"],
    [-1, 2],
    {},
    {"a": 1},
)


def mutate(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    kind = rng.randrange(6)
    if kind == 0:
        text = text[: rng.randrange(len(text))]
    elif kind == 1:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(['"', "{", "[", ",", "\0", "é", "1e999", "[" * 3000]) + text[place + 1 :]
    elif kind == 2:
        text = rng.choice(["", "[]", "3", "null", "[" * 50_000, '{"a":' * 2000, "\ufeff" + text])
    else:
        content = json.loads(text)
        node, key = content, rng.choice(list(content))
        while isinstance(node[key], dict) and node[key] and rng.random() < 0.8:
            node = node[key]
            key = rng.choice(list(node))
        if kind == 3:
            del node[key]
        else:
            node[key] = rng.choice(VALUES)
        text = json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def test_mutated_bases_raise_nothing_but_one_line(tiny_stable_diffusion_folder: Path, tmp_path: Path) -> None:
    rng = random.Random(16)
    source = Path(shutil.copytree(tiny_stable_diffusion_folder, tmp_path / "base"))
    sharded(source, "vae")
    files = sorted(source.rglob("*.json"))
    whole = {path: path.read_bytes() for path in files}
    lines: list[str] = []
    for number in range(NUM_MUTATIONS):
        path = rng.choice(files)
        mutate(path, rng)
        try:
            verify(source)
            if number % LOADED_EVERY == 0:
                load_base(source)
        except InputError as error:
            lines.append(str(error))
        path.write_bytes(whole[path])
    assert len(lines) > NUM_MUTATIONS // 3
    assert all("\n" not in line and ";" in line for line in lines)
    verify(source)


def test_mutated_weights_raise_nothing_but_one_line(tiny_stable_diffusion_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(17)
    source = Path(shutil.copytree(tiny_stable_diffusion_folder, tmp_path / "base"))
    path = next((source / "unet").glob("*.safetensors"))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, header, int(rng.integers(1, 4))):
            data[int(place)] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            verify(source)
        except WeightsError as error:
            refused += "\n" not in str(error)
    assert refused > 100
