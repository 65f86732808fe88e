"""Compare the peak memory of one training step at Stable Diffusion 1.5's size: DreamBooth against LoRA.

Random weights, latents of 64x64, batch 1, fp32, gradient checkpointing, AdamW with its moments, no prior. The text
encoder stays frozen in both. Each method runs in a process of its own. Run:
`python bench/lora_memory.py [--shrink 2]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def measure(method: str, steps: int, shrink: int) -> None:
    """Take training steps, and print the peak resident memory and what trains."""
    import torch
    from diffusers import UNet2DConditionModel

    from defectory.concept.config import ConceptConfig
    from defectory.engine.backbones.lora import add_lora
    from defectory.engine.training.optimizer import NamedOptimizer

    # the class's own defaults with the text width of Stable Diffusion 1.5
    channels = tuple(width // shrink for width in (320, 640, 1280, 1280))
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, block_out_channels=channels)
    unet.requires_grad_(False)
    config = ConceptConfig()
    if method == "lora":
        targets, rank = config.lora_targets, config.lora_rank
        parameters = add_lora(unet, targets=targets, rank=rank, alpha=rank, seed=0, where="lora_targets")
    else:
        unet.requires_grad_(True)
        parameters = dict(unet.named_parameters())
    unet.enable_gradient_checkpointing()
    optimizer = NamedOptimizer(parameters, kind="adamw", learning_rate=1e-4, weight_decay=1e-2)
    loaded = peak_gb()
    began = time.monotonic()
    for _ in range(steps):
        latents, text = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
        predicted = unet(latents, torch.tensor([500]), encoder_hidden_states=text).sample
        (predicted - torch.randn_like(predicted)).square().mean().backward()
        optimizer.step()
    trained = sum(parameter.numel() for parameter in parameters.values())
    figures = {
        "method": method,
        "millions_of_parameters_trained": round(trained / 1e6, 2),
        "gb_before_the_first_step": round(loaded, 2),
        "peak_gb": round(peak_gb(), 2),
        "seconds_per_step": round((time.monotonic() - began) / steps, 1),
    }
    print(json.dumps(figures), flush=True)


def peak_gb() -> float:
    """Return this process's peak resident memory, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure both methods, each in its own process, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=("dreambooth", "lora"))
    parser.add_argument("--steps", type=int, default=2, help="the optimiser's moments are there from the second one")
    parser.add_argument("--shrink", type=int, default=1, help="divides the UNet's channels, where memory is short")
    args = parser.parse_args()
    if args.method is not None:
        measure(args.method, args.steps, args.shrink)
        return
    peaks: dict[str, float] = {}
    for method in ("lora", "dreambooth"):
        command = [
            sys.executable,
            __file__,
            "--method",
            method,
            "--steps",
            str(args.steps),
            "--shrink",
            str(args.shrink),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout.strip(), flush=True)
        peaks[method] = json.loads(done.stdout.strip().splitlines()[-1])["peak_gb"]
    print(json.dumps({"lora_over_dreambooth": round(peaks["lora"] / peaks["dreambooth"], 3)}))


if __name__ == "__main__":
    main()
