"""Compare condition networks on one project: held-out loss, time per step, memory and fidelity, after equal steps.

Every network trains on the same concept, tiles, batches and noise, in the demo's project on the embedded base, and
draws the same plan. Fidelity is the mean IoU over all drafts, before curation. Run:
`python bench/condition_networks.py --work FOLDER [--steps 600] [--drafts 48] [--only NAME ...] [--device cpu]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from defectory.api.demo import open_demo

NETWORKS: dict[str, dict[str, object]] = {
    "controlnet, shipped": {},
    "controlnet, copy": {"condition.init": "copy"},
    "controlnet at 0.5": {"condition.init": "copy", "condition.capacity": 0.5},
    "controlnet at 0.25": {"condition.init": "copy", "condition.capacity": 0.25},
    "adapter": {"condition.network": "adapter"},
    "hypernetwork": {"condition.network": "hypernetwork"},
    "reward 0.1, shipped": {"condition.fidelity_reward": 0.1},
    "reward 0.5, shipped": {"condition.fidelity_reward": 0.5},
}


def main() -> None:
    """Train and draw with each network in a process of its own, so that memory is its own, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--drafts", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one, args.work, steps=args.steps, drafts=args.drafts, device=args.device)
        return
    print(f"{'network':22s} {'held-out loss':>13s} {'s per step':>10s} {'peak GiB':>8s} {'fidelity':>8s}", flush=True)
    for name in NETWORKS:
        if not args.only or any(name.startswith(start) for start in args.only):
            subprocess.run([sys.executable, *sys.argv, "--one", name], check=True)


def measure(name: str, work: Path, *, steps: int, drafts: int, device: str) -> None:
    """Train and draw with one network, and print its line."""
    overrides = {
        "condition.training.num_steps": steps,
        "condition.training.validate_every": steps,
        "synthesis.num_images": drafts,
        **NETWORKS[name],
    }
    project = open_demo(work, overrides=overrides, device=device)
    project.run(until="learn-concept")
    began = time.monotonic()
    project.run(until="learn-condition")
    seconds = time.monotonic() - began
    log = (project.run_folder / "control" / "log.jsonl").read_text().splitlines()
    loss = [line["held_out_loss"] for line in map(json.loads, log) if "held_out_loss" in line][-1]
    peak = peak_gib(device)
    project.run(until="curate")
    found = [decision.fidelity.iou for decision in project.store.decisions.decisions]
    print(f"{name:22s} {loss:13.4f} {seconds / steps:10.3f} {peak:8.2f} {sum(found) / len(found):8.3f}", flush=True)


def peak_gib(device: str) -> float:
    """Return the most memory that training held: of the process on a CPU, of the GPU elsewhere."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    main()
