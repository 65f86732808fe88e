"""Keeps dependencies from using the network and from printing; one verb asks for the network."""

from __future__ import annotations

import os

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""No verb but `base pull` uses the network; these variables keep dependencies from using it."""
_ours = set[str]()


def keep_quiet() -> None:
    """Set the variables that the user has not set."""
    for name, value in QUIET.items():
        if name not in os.environ:
            os.environ[name] = value
            _ours.add(name)


def allow_network() -> None:
    """Let the hub's library use the network, unless the user has forbidden it. Call it before the library is loaded."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if name in _ours:
            os.environ.pop(name, None)
            _ours.discard(name)
