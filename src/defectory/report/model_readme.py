"""Writes the README of a concept or a finished pipeline from its card, with the header that model hubs read."""

from __future__ import annotations

from defectory.artifacts.model_card import ModelCard, Trained
from defectory.terminal import printable

FEW_DIGITS = 16
METHODS = {
    "dreambooth": "DreamBooth",
    "lora": "LoRA",
    "textual_inversion": "Textual Inversion",
    "lora_textual_inversion": "LoRA and Textual Inversion",
    "none": "nothing (the base as it is)",
    "controlnet": "ControlNet",
    "adapter": "T2I-Adapter",
    "hypernetwork": "hypernetwork",
}
LORA = {"lora", "lora_textual_inversion"}
NEW_WORD = {"textual_inversion", "lora_textual_inversion"}


def model_readme(card: ModelCard) -> str:
    """Write the README of a model's folder, in Markdown."""
    noun = _with_article(printable(card.class_noun))
    title = f"# Concept of {noun}" if card.kind == "concept" else f"# Draws {noun} with defects from drivers"
    return "\n\n".join(
        [
            _header(card),
            title,
            _what(card),
            "## How to use it",
            *_how_to_use(card),
            "## What it was trained on",
            *_training(card),
            "## Limits",
            "It draws parts and defects like those that it was trained on, and nothing else. Images may come out as "
            "copies of training images; Defectory's curation looks for these. Its images are no evidence that a real "
            "part is good or bad. Whether they help a segmenter, the report of the run says.",
            "## Licence",
            _licence(card),
            f"Written by Defectory {card.version}. `card.json` holds all of this for programs.\n",
        ]
    )


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _header(card: ModelCard) -> str:
    tags = ["defectory", "stable-diffusion", *dict.fromkeys(one.method.replace("_", "-") for one in card.trained)]
    lines = ["---", "library_name: diffusers", f"license: {card.licence_id or 'other'}"]
    if card.base_hub_id is not None:
        lines.append(f"base_model: {card.base_hub_id}")
    return "\n".join([*lines, "pipeline_tag: text-to-image", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what(card: ModelCard) -> str:
    methods = " and ".join(METHODS.get(one.method, one.method) for one in card.trained)
    base = f"`{printable(card.base)}`" + (f" ({card.family})" if card.family != card.base else "")
    if card.kind == "concept":
        return f"It teaches the base {base} what these parts look like, by {methods}. Weights: `{card.folder}/`."
    return (
        f"It is the base {base}, adapted to these parts and steered by a network ({methods}). It draws a part with a "
        "defect of a given class at a given place: both are painted into a driver image."
    )


def _how_to_use(card: ModelCard) -> list[str]:
    prompt = printable(card.prompt).replace('"', "'")
    told = [f"A prompt of training: `{prompt}`. `{printable(card.instance_token)}` stands for the part."]
    if card.tone_words:
        told.append("The words before it name the lightness and contrast of the image.")
    told.append(f"It was trained on tiles of {card.tile_px} px.")
    if card.kind == "concept":
        return [" ".join(told), f"```python\n{_concept_code(card, prompt)}\n```"]
    colours = [f"| {printable(one.name)} | `{one.colour}` |" for one in card.classes]
    return [
        " ".join(told),
        "A driver is a dim drawing of the part's geometry, with the defect's mask in the bright colour of its class. "
        "`defectory drivers extract` makes one from a photograph and a mask.",
        "\n".join(["| class | colour in drivers |", "|---|---|", *colours]),
        f"```python\n{_pipeline_code(card, prompt)}\n```",
        *_further(card),
        "Defectory also guides its drafts by driver and mask. Plain diffusers cannot, so defects are fainter there.",
    ]


def _further(card: ModelCard) -> list[str]:
    if not card.num_further_networks:
        return []
    names = ", ".join(f"`controlnet_{number}`" for number in range(1, card.num_further_networks + 1))
    return [
        f"Drafts were drawn with further control networks ({names}). diffusers opens all of them with "
        '`MultiControlNetModel.from_pretrained("controlnet")`; give it as `controlnet`, with a driver for each network.'
    ]


def _concept_code(card: ModelCard, prompt: str) -> str:
    method, folder = card.trained[0].method, card.folder
    is_whole = not {method} & (LORA | NEW_WORD)
    base = folder if is_whole else card.base_hub_id or "FOLDER_OF_THE_BASE"
    lines = [
        f"from diffusers import {card.opens_as}",
        "",
        f'pipeline = {card.opens_as}.from_pretrained("{base}"{card.opens_with})',
        *([f'pipeline.load_textual_inversion("{folder}")'] if method in NEW_WORD else []),
        *([f'pipeline.load_lora_weights("{folder}")'] if method in LORA else []),
        f'pipeline("{prompt}", height={card.tile_px}, width={card.tile_px}).images[0].save("drawn.png")',
    ]
    return "\n".join(lines)


def _pipeline_code(card: ModelCard, prompt: str) -> str:
    if card.trained[-1].method == "hypernetwork":
        return "\n".join(
            [
                "import sys",
                "",
                f"from diffusers import {card.opens_as}",
                "from PIL import Image",
                "from torchvision.transforms.functional import to_tensor",
                "",
                'sys.path.insert(0, "hypernetwork")',
                "from hypernetwork import HyperNetwork",
                "",
                f'pipeline = {card.opens_as}.from_pretrained(".")',
                'driver = Image.open("driver.png").convert("RGB")',
                'size = {"height": driver.height, "width": driver.width}',
                'network = HyperNetwork.from_folder("hypernetwork")',
                "with network.steering(pipeline.unet, to_tensor(driver)[None]):",
                f'    image = pipeline("{prompt}", guidance_scale=1.0, **size).images[0]',
                'image.save("drawn.png")',
            ]
        )
    argument = "control_image" if card.opens_as.startswith("StableDiffusion3") else "image"
    steps = "" if card.num_inference_steps is None else f", num_inference_steps={card.num_inference_steps}"
    return "\n".join(
        [
            f"from diffusers import {card.opens_as}",
            "from PIL import Image",
            "",
            f'pipeline = {card.opens_as}.from_pretrained("."{card.opens_with})',
            'driver = Image.open("driver.png").convert("RGB")',
            f'image = pipeline("{prompt}", {argument}=driver, guidance_scale=1.0{steps}).images[0]',
            'image.save("drawn.png")',
        ]
    )


def _training(card: ModelCard) -> list[str]:
    return [
        f"{card.num_images} images of the training part, with and without defects. Images of validation and test were "
        "not trained on.",
        "\n".join(["| phase | trained | steps | held-out loss |", "|---|---|---|---|", *map(_row, card.trained)]),
        "\n".join(
            [
                "| SHA-256 of | begins with |",
                "|---|---|",
                f"| base | `{card.base_digest[:FEW_DIGITS]}` |",
                f"| weights | `{card.weights_digest[:FEW_DIGITS]}` |",
            ]
        ),
    ]


def _row(of: Trained) -> str:
    loss = "not measured"
    if of.held_out_losses:
        first, lowest, last = of.held_out_losses
        loss = f"{first:.4f} at first, {lowest:.4f} at best, {last:.4f} at the end"
    return f"| {of.phase} | {METHODS.get(of.method, of.method)} | {of.num_steps} | {loss} |"


def _licence(card: ModelCard) -> str:
    told = f"The base's licence holds for what is made from it: {printable(card.licence)}."
    if card.licence_files:
        files = ", ".join(f"`{name}`" for name in card.licence_files)
        return f"{told} Its text lies beside this page ({files}); hand it on together with the weights."
    if card.licence_id == "apache-2.0":
        return f"{told} The weights are yours to use under it."
    return (
        f"{told} The base's folder holds no text of it: add one before you hand the weights on. Your own images are "
        "under your own terms."
    )
