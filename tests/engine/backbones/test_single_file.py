"""Single files in the original layout: converted bit for bit, once, and anything else refused in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.single_file import read_checkpoint
from defectory.engine.backbones.verify import verify
from defectory.errors import WeightsError

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_NAMES = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def original_unet(state: dict[str, Tensor], layers: int, levels: int) -> dict[str, Tensor]:
    """Rename a UNet of diffusers to the original names, block by block in the order of the original code."""
    places: dict[str, str] = {
        f"mid_block.{part}": f"middle_block.{number}"
        for number, part in enumerate(("resnets.0", "attentions.0", "resnets.1"))
    }
    number = 1
    for level in range(levels):
        for layer in range(layers):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    for level in range(levels):
        attends = f"up_blocks.{level}.attentions.0.norm.weight" in state
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        places[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{number}.{1 + attends}"
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        old = next(old for old in (*places, *UNET_ENDS) if name.startswith(f"{old}."))
        rest = name.removeprefix(f"{old}.")
        if "resnets" in old:
            part, _, kind = rest.rpartition(".")
            rest = f"{RESNET[part]}.{kind}"
        renamed[f"model.diffusion_model.{places.get(old) or UNET_ENDS[old]}.{rest}"] = value
    return renamed


def original_vae(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name
        for old, by in VAE_NAMES:
            new = re.sub(old, by, new)
        if match := re.search(r"up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)", new):
            part = "upsample" if match[3] is None else f"block.{match[3]}"
            new = new.replace(match[0], f"up.{levels - 1 - int(match[1])}.{part}")
        is_linear = "attn_1" in new and value.ndim == 2
        renamed[f"first_stage_model.{new}"] = value[:, :, None, None].contiguous() if is_linear else value
    return renamed


def original_text(state: dict[str, Tensor], *, is_sd2: bool) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in state.items() if "position_ids" not in name}
    if not is_sd2:
        return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in state.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name.replace("encoder.layers.", "transformer.resblocks.").replace("layer_norm", "ln_")
        new = new.replace("fc1", "c_fc").replace("fc2", "c_proj").replace("self_attn.out_proj", "attn.out_proj")
        new = new.replace("embeddings.token_embedding", "token_embedding").replace("final_ln_", "ln_final")
        new = new.replace("final_layer_norm", "ln_final").replace(
            "embeddings.position_embedding.weight", "positional_embedding"
        )
        if match := re.fullmatch(r"(.*)self_attn\.q_proj\.(weight|bias)", new):
            others = [state[name.replace("q_proj", f"{part}_proj")] for part in "kv"]
            renamed[f"cond_stage_model.model.{match[1]}attn.in_proj_{match[2]}"] = torch.cat([value, *others])
        elif "self_attn" not in new:
            renamed[f"cond_stage_model.model.{new}"] = value
    last = "cond_stage_model.model.transformer.resblocks."
    skipped = {n.replace(f"{last}22.", f"{last}23."): v + 1 for n, v in renamed.items() if n.startswith(f"{last}22.")}
    return {**renamed, **skipped}


def make(folder: Path, tokenizer: Path, *, is_sd2: bool) -> tuple[Path, dict[str, Any]]:
    """Write a tiny checkpoint of random weights, and return it with its models."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    num_tokens = len(CLIPTokenizer.from_pretrained(tokenizer))
    widths = (64, 128) if is_sd2 else (32, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=[1, 2] if is_sd2 else 8,
            use_linear_projection=is_sd2,
            cross_attention_dim=64,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            layers_per_block=1,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=num_tokens,
                hidden_size=64,
                intermediate_size=32,
                num_hidden_layers=23 if is_sd2 else 2,
                num_attention_heads=1,
                max_position_embeddings=16,
                hidden_act="gelu" if is_sd2 else "quick_gelu",
            )
        )
    tensors = {
        **original_unet(dict(unet.state_dict()), 1, 2),
        **original_vae(dict(vae.state_dict()), 2),
        **original_text(dict(text.state_dict()), is_sd2=is_sd2),
    }
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path, {"unet": unet, "vae": vae, "text_encoder": text}


@pytest.fixture(autouse=True)
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setenv("DEFECTORY_BASES", str(tmp_path / "bases"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "bases"


@pytest.mark.parametrize("is_sd2", [False, True])
def test_a_single_file_is_converted_once_and_bit_for_bit(
    is_sd2: bool, tiny_stable_diffusion_folder: Path, tmp_path: Path, bases: Path
) -> None:
    tokenizer = tiny_stable_diffusion_folder / "tokenizer"
    path, models = make(tmp_path, tokenizer, is_sd2=is_sd2)
    if is_sd2:
        with pytest.raises(WeightsError, match=r"nothing says which; put its settings beside it as model\.yaml"):
            resolve_base(str(path))
        (tmp_path / "model.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    with pytest.raises(WeightsError, match="carry the folder tokenizer/") as caught:
        resolve_base(str(path))
    assert "\n" not in str(caught.value)
    shutil.copytree(tiny_stable_diffusion_folder, bases / "acme" / "tiny")  # the tokenizer of another base serves
    folder = resolve_base(str(path))
    facts = verify(folder)
    expected = ("v_prediction", 192) if is_sd2 else ("epsilon", 128)
    assert (facts.prediction_type, facts.tile_px) == expected
    base: Any = load_base(folder)
    for part, model in models.items():
        found = getattr(base, part).state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(found[name], value), name
    with torch.no_grad():
        ids = torch.tensor([[base.tokenizer.bos_token_id, 5, 9, base.tokenizer.eos_token_id]])
        torch.testing.assert_close(base.text_encoder(ids)[0], models["text_encoder"](ids)[0])
        latents, times = torch.randn(1, 4, 8, 12), torch.tensor([7])
        context = torch.randn(1, 3, 64)
        ours, theirs = base.unet(latents, times, context).sample, models["unet"](latents, times, context).sample
        torch.testing.assert_close(ours, theirs)
    assert base.tokenizer.pad_token_id == (0 if is_sd2 else base.tokenizer.eos_token_id)
    made = (folder / "digests.json").stat().st_mtime_ns
    assert resolve_base(str(path)) == folder
    assert (folder / "digests.json").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conditioner.embedders.0.x": (1,)}, "is a checkpoint of Stable Diffusion XL, which is not supported yet"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}, "for inpainting .its UNet takes 9 channels"),
        ({"model.diffusion_model.double_blocks.0.x": (1,)}, "is a checkpoint of FLUX"),
        ({"lora_unet_down.weight": (1,)}, "a LoRA adapter, not a base"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "has no autoencoder"),
        ({"something": (1,)}, "of no layout that is known"),
    ],
)
def test_what_a_header_says_is_one_line(tensors: dict[str, tuple[int, ...]], said: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(WeightsError, match=said) as caught:
        resolve_base(str(path))
    assert "\n" not in str(caught.value)


def test_pickles_and_half_downloaded_files_are_refused(tmp_path: Path) -> None:
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match="a pickle, which can run code when opened; refused"):
        resolve_base(str(pickle))
    disguised = tmp_path / "model.safetensors"
    disguised.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="a pickle under a safetensors name"):
        resolve_base(str(disguised))
    half = tmp_path / "half.safetensors"
    save_file({"a": torch.zeros(100)}, half)
    size = half.stat().st_size
    half.write_bytes(half.read_bytes()[:-40])
    with pytest.raises(WeightsError, match=f"is half downloaded: {size - 40} of {size} bytes are here"):
        resolve_base(str(half))


def test_what_the_file_or_its_settings_say_of_the_prediction_is_taken(
    tiny_stable_diffusion_folder: Path, tmp_path: Path
) -> None:
    path, _ = make(tmp_path, tiny_stable_diffusion_folder / "tokenizer", is_sd2=True)
    tensors = load_file(path)
    save_file(tensors, path, {"modelspec.prediction_type": "epsilon"})
    assert read_checkpoint(path).prediction_type == "epsilon"
    save_file(tensors, path, {"modelspec.prediction_type": "sample"})
    with pytest.raises(WeightsError, match="its UNet predicts 'sample', eps or v was expected"):
        read_checkpoint(path)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, path, {"modelspec.prediction_type": "v"})
    shutil.copytree(tiny_stable_diffusion_folder / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(WeightsError, match="lacks weights of one of its networks; give the whole checkpoint"):
        resolve_base(str(path))
