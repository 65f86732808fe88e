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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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


def original_clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in state.items() if "position_ids" not in name}
    return {f"{prefix}{name}": value for name, value in state.items()}


def original_open_clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in state.items() if "position_ids" not in name}
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
            renamed[f"{prefix}{match[1]}attn.in_proj_{match[2]}"] = torch.cat([value, *others])
        elif name == "text_projection.weight":
            renamed[f"{prefix}text_projection"] = value.T
        elif "self_attn" not in new:
            renamed[f"{prefix}{new}"] = value
    return renamed


def original_text(state: dict[str, Tensor], *, is_sd2: bool) -> dict[str, Tensor]:
    if not is_sd2:
        return original_clip(state, "cond_stage_model.transformer.text_model.")
    renamed = original_open_clip(state, "cond_stage_model.model.")
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


def make_xl(folder: Path, tokenizer: Path) -> tuple[Path, dict[str, Any]]:
    """Write a tiny checkpoint of Stable Diffusion XL, and return it with its models."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(tokenizer)

    def text(width: int, act: str, num_layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=num_layers,
            num_attention_heads=width // 64,
            max_position_embeddings=16,
            projection_dim=48,
            hidden_act=act,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=64 + 128,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            layers_per_block=1,
            scaling_factor=0.13025,
        )
        first = CLIPTextModel(text(64, "quick_gelu", 2))
        second = CLIPTextModelWithProjection(text(128, "gelu", 3))
    tensors = {
        **original_unet(dict(unet.state_dict()), 1, 2),
        **original_vae(dict(vae.state_dict()), 2),
        **original_clip(dict(first.state_dict()), "conditioner.embedders.0.transformer.text_model."),
        **original_open_clip(dict(second.state_dict()), "conditioner.embedders.1.model."),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
    }
    path = folder / "xl.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path, {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": first.eval(), "text_encoder_2": second.eval()}


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


def test_a_single_file_of_xl_gives_the_same_outputs_as_its_networks(
    tiny_stable_diffusion_folder: Path, tmp_path: Path, bases: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    shutil.copytree(tiny_stable_diffusion_folder, bases / "acme" / "tiny")
    path, models = make_xl(tmp_path, tiny_stable_diffusion_folder / "tokenizer")
    folder = resolve_base(str(path))
    said = "".join(record.getMessage() for record in caplog.records)
    assert said.startswith(f"{path} is converted once, into {folder} (about ")
    assert said.endswith("you can delete that folder, it is made again when needed")
    facts = verify(folder)
    assert (facts.family, facts.prediction_type, facts.tile_px) == ("Stable Diffusion XL", "epsilon", 256)
    base: Any = load_base(folder)
    for part, model in models.items():
        found = getattr(base, part).state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(found[name], value), name
    assert (base.tokenizer.pad_token_id, base.tokenizer_2.pad_token_id) == (base.tokenizer.eos_token_id, 0)
    with torch.no_grad():
        plain = StableDiffusionXLPipeline(
            **models,
            tokenizer=base.tokenizer,
            tokenizer_2=base.tokenizer_2,
            scheduler=EulerDiscreteScheduler(),
            add_watermarker=False,
        )
        told = plain.encode_prompt("a crack on steel", do_classifier_free_guidance=False)
        context = base.encode_prompts(["a crack on steel"])
        torch.testing.assert_close(context.tokens, told[0])
        torch.testing.assert_close(context.pooled, told[2])
        latents, times = torch.randn(1, 4, 8, 12), torch.tensor([7])
        sizes = torch.tensor([[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]])
        besides = {"text_embeds": told[2], "time_ids": sizes}
        theirs = models["unet"](latents, times, told[0], added_cond_kwargs=besides).sample
        torch.testing.assert_close(base.predict(latents, times, context), theirs)
        torch.testing.assert_close(base.decode_latents(latents), models["vae"].decode(latents / 0.13025).sample)
    caplog.clear()
    assert resolve_base(str(path)) == folder
    assert not caplog.records


def test_what_a_single_file_of_xl_lacks_or_has_besides_is_named(
    tiny_stable_diffusion_folder: Path, tmp_path: Path
) -> None:
    path, _ = make_xl(tmp_path, tiny_stable_diffusion_folder / "tokenizer")
    shutil.copytree(tiny_stable_diffusion_folder / "tokenizer", tmp_path / "tokenizer")
    whole = load_file(path)
    save_file({**whole, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.prediction_type, checkpoint.has_zero_snr) == ("v_prediction", True)

    def refused(kept: dict[str, Tensor]) -> str:
        save_file(kept, path)
        with pytest.raises(WeightsError) as caught:
            resolve_base(str(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for beginning, said in (
        ("conditioner.embedders.0.", "has no text encoder (conditioner.embedders.0.*)"),
        ("conditioner.embedders.1.", "has no text encoder 2 (conditioner.embedders.1.*)"),
        ("conditioner.embedders.1.model.text_projection", "lacks a tensor of Stable Diffusion"),
        ("first_stage_model.decoder.", "has no autoencoder"),
        ("model.diffusion_model.label_emb.", "its UNet reads no sizes"),
        ("model.diffusion_model.middle_block.1.", "lacks weights of one of its networks"),
    ):
        kept = {name: value for name, value in whole.items() if not name.startswith(beginning)}
        assert said in refused(kept)
    deeper = "model.diffusion_model.output_blocks.0.1.transformer_blocks.2.norm1.weight"
    assert "were expected from its layers" in refused({**whole, deeper: torch.zeros(128)})
    conv_in = "model.diffusion_model.input_blocks.0.0.weight"
    assert "for inpainting" in refused({**whole, conv_in: torch.zeros(64, 9, 3, 3)})
    half = path.read_bytes()[:-40]
    path.write_bytes(half)
    with pytest.raises(WeightsError, match=f"is half downloaded: {len(half):,} of {len(half) + 40:,} bytes are here"):
        resolve_base(str(path))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conditioner.embedders.0.model.x": (1,)}, "is a checkpoint of the refiner of Stable Diffusion XL"),
        ({"edm_mean": (1,)}, "is a checkpoint of Playground v2.5"),
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
