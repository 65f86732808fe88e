"""Compare concept methods and their settings by held-out loss, on the demo's data and the embedded base.

Each setting trains alone, from the same base, with the same tiles, batches and noise, and without class images. Run:
`python bench/concept_methods.py --work FOLDER [--steps 60] [--batch 16] [--only NAME ...]`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from defectory.api.demo import open_demo

MORE = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
RATE, LORA_RATE, TARGETS = "concept.training.learning_rate", "concept.lora_learning_rate", "concept.lora_targets"
TOKEN_RATE = "concept.embedding_learning_rate"
ADAMW = {"concept.training.optimizer": "adamw"}
LORA, TOKEN = {"concept.method": "lora"}, {"concept.method": "textual_inversion"}
BOTH = {"concept.method": "lora_textual_inversion"}
SETTINGS: dict[str, dict[str, object]] = {
    "nothing": {RATE: 1e-12, **ADAMW},
    "dreambooth 1.2e-3": {RATE: 1.2e-3, **ADAMW},
    **{f"lora {rate:g}": {**LORA, LORA_RATE: rate} for rate in (3e-3, 1e-3, 1e-2)},
    **{f"lora with ff and conv {rate:g}": {**LORA, LORA_RATE: rate, TARGETS: MORE} for rate in (3e-3, 1e-3)},
    **{f"textual_inversion {rate:g}": {**TOKEN, TOKEN_RATE: rate} for rate in (5e-3, 2e-2)},
    "lora_textual_inversion": {**BOTH, LORA_RATE: 3e-3, TOKEN_RATE: 5e-3},
}


def main() -> None:
    """Train with each setting in turn, and print its held-out loss and seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    common = {
        "concept.training.num_steps": args.steps,
        "concept.training.validate_every": args.steps,
        "concept.training.batch_size": args.batch,
        "concept.prior_loss_weight": 0,
    }
    for name, settings in SETTINGS.items():
        if args.only and not any(name.startswith(start) for start in args.only):
            continue
        project = open_demo(args.work, overrides={**common, **settings}, device="cpu")
        began = time.monotonic()
        project.run(until="learn-concept")
        lines = [json.loads(line) for line in (project.run_folder / "concept" / "log.jsonl").read_text().splitlines()]
        loss = [line["held_out_loss"] for line in lines if "held_out_loss" in line][-1]
        print(f"{name:30s} {loss:.4f} {time.monotonic() - began:5.0f} s", flush=True)


if __name__ == "__main__":
    main()
