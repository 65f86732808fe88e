"""What launchers such as accelerate's tell a process of its place among others, in environment variables."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from defectory.errors import ConfigError

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""A launched process knows all of these."""
FURTHER = ("LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "PARALLELISM_CONFIG_")
OTHER_WAYS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
SETTING = "DEFECTORY_TRAINING_PROCESSES"
HOW_TO_START = (
    "run `defectory run -o training_processes=N` without a launcher, or `accelerate launch --num_processes N`"
)


def without_launch(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of a launcher."""
    names = (*PLACE, *FURTHER)
    return {name: value for name, value in environment.items() if name not in names and not name.startswith(PREFIXES)}


def leads(environment: MutableMapping[str, str]) -> bool:
    """Return whether this process runs the command: the first process of a launch, or one that nobody launched.

    A command runs once, and starts processes of its own for the stages that train in several. So the first process
    takes the number of processes as its setting `training_processes`, unless the environment sets that already, and
    forgets the launch; the others have nothing to do.

    Args:
        environment: of this process; it is changed.

    Raises:
        ConfigError: a part of a process's place is missing or wrong, or the launch is of a sort that is not supported.
    """
    given = [name for name in PLACE if name in environment]
    if not given:
        return True
    missing = [name for name in PLACE if name not in environment]
    if missing:
        found = f"{', '.join(given)} set, but not {', '.join(missing)}"
        raise ConfigError("environment", found, f"unset what is set; {HOW_TO_START}")
    try:
        rank, _, size = (int(environment[name]) for name in PLACE)
        here = int(environment.get("LOCAL_WORLD_SIZE", size))
    except ValueError:
        rank, size, here = -1, 0, 0
    if not 0 <= rank < size:
        told = ", ".join(f"{name}={environment[name]}" for name in PLACE)
        raise ConfigError("environment", f"{told}: a process's number among others was expected", HOW_TO_START)
    if here != size:
        raise ConfigError("environment", f"{size} processes on several machines", "use the GPUs of one machine")
    for name in OTHER_WAYS:
        if environment.get(name, "false").lower() == "true":
            raise ConfigError(name, "every process holds the whole network here", "choose plain multi-GPU training")
    if rank > 0:
        return False
    kept = without_launch(environment)
    environment.clear()
    environment.update(kept)
    if size > 1:
        environment.setdefault(SETTING, str(size))
    return True
