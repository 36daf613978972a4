"""Options of sbatch and lines of the batch script for the settings of conf/hydra/launcher/slurm.yaml."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.distributed.slurm_job import REQUEUE_FILE
from diffusion_lab.errors import UserError
from diffusion_lab.paths import NODE_CACHE
from diffusion_lab.runs.job_output import JOBS as JOBS

REQUEUE = (
    "status=$?",
    f'if job=$(cat "${REQUEUE_FILE}" 2>/dev/null); then rm "${REQUEUE_FILE}"; scontrol requeue "$job" && sleep 60; fi',
    "exit $status",
)
"""Lines at the end of a batch script that requeue the job if the run asked for it, see `slurm_job.REQUEUE_FILE`."""

REFUSALS = {
    "account": "account", "partition": "partition", "qos": "qos", "time limit": "time", "mem": "memory",
    "generic resource|gres": "gpus", "processors": "cpus",
}  # fmt: skip
"""Words of Slurm's reasons to refuse a job, with the setting that the reason is about."""


def sbatch_options(trainer: DictConfig | None, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return submitit's options for the settings of conf/hydra/launcher/slurm.yaml.

    folder: sweep folder.  Raises UserError if a setting is not accepted or contradicts the trainer.
    """
    check_settings(settings)
    nodes, tasks, gpus = _resources(trainer, settings["nodes"], settings["gpus"])
    others = {
        "time": settings["time"],
        "signal": f"USR1@{settings['signal_before']}",
        "requeue" if settings["requeue"] else "no-requeue": True,
        "mem": settings["memory"],
        "qos": settings["qos"],
    } | (settings["more"] or {})
    options = {
        "job_name": settings["name"],
        "partition": settings["partition"],
        "account": settings["account"],
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": gpus or None,
        "cpus_per_task": settings["cpus"],
        "array_parallelism": settings["num_at_once"],
        "setup": [*_setup(settings, folder), *(settings["setup"] or [])] or None,
        "teardown": list(REQUEUE) if settings["requeue"] else None,
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {name: value for name, value in others.items() if value is not None},
    }
    return {name: value for name, value in options.items() if value is not None}


def python_command(settings: dict[str, Any]) -> str:
    """Return the shell command that starts Python in a job, including the prefix, such as the start of a container."""
    python = shlex.quote(settings["python"] or sys.executable)
    return f"{settings['prefix']} {python}" if settings["prefix"] else python


def refusal(reason: str, settings: dict[str, Any]) -> str:
    """Return the error message for a job that Slurm refuses, which names the setting if one was given."""
    for pattern, name in REFUSALS.items():
        if settings[name] is not None and re.search(rf"\b({pattern})", reason, re.IGNORECASE):
            return f"hydra.launcher.{name} must be accepted by Slurm, got {settings[name]} ({reason})."
    return f"hydra/launcher=slurm: {reason}."


def missing_programs(settings: dict[str, Any]) -> Iterator[str]:
    """Yield a note if the first word of the command of the jobs is no program on this machine."""
    name = "prefix" if settings["prefix"] else "python"
    if settings[name] and shutil.which(program := shlex.split(settings[name])[0]) is None:
        yield f"hydra.launcher.{name}: this machine has no program {program}; the nodes of the jobs must have it."


def _setup(settings: dict[str, Any], folder: Path) -> list[str]:
    """Return the lines of the batch script before the shell commands of the user."""
    lines = []
    if settings["requeue"]:
        start = shlex.quote(str(folder / JOBS / "requeue_"))
        lines += [f"export {REQUEUE_FILE}={start}$SLURM_JOB_ID", f'rm -f "${REQUEUE_FILE}"']
    if settings["node_cache"]:
        lines.append(f'export {NODE_CACHE}="{settings["node_cache"]}"')
    return lines


def check_settings(settings: dict[str, Any]) -> None:
    """Raise UserError for settings of conf/hydra/launcher/slurm.yaml that are not accepted."""
    for name in ("signal_before", "num_at_once"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least 1, got {settings[name]}.")
    for name in ("nodes", "gpus", "cpus"):
        value, least = settings[name], 0 if name == "gpus" else 1
        if value is not None and not (isinstance(value, int) and value >= least):
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least {least}, or null, got {value}.")
    for name in ("requeue", "dry_run"):
        if not isinstance(settings[name], bool):
            raise UserError(f"hydra.launcher.{name} must be true or false, got {settings[name]}.")
    for name, accepted in (
        ("python", "the path of a Python"),
        ("prefix", 'the words of a shell command, such as "apptainer exec image.sif"'),
        ("node_cache", "a folder on the disk of each node"),
    ):
        if settings[name] is not None and not _is_one_line_of_shell(settings[name]):
            raise UserError(f"hydra.launcher.{name} must be {accepted}, or null, got {settings[name]}.")
    if not re.fullmatch(r"\d+[KMGT]?|None", str(settings["memory"]), re.IGNORECASE):
        raise UserError(f"hydra.launcher.memory must be a size such as 64G or 500M, or null, got {settings['memory']}.")
    collections = ("setup", list, "a list of shell commands"), ("more", dict, "options of sbatch such as {exclude: n7}")
    for name, kind, accepted in collections:
        if not isinstance(settings[name] or kind(), kind):
            raise UserError(f"hydra.launcher.{name} must be {accepted}, got {settings[name]}.")
    for name, value in (settings["more"] or {}).items():
        if isinstance(value, (list, dict)):
            raise UserError(f"hydra.launcher.more.{name} must be a text, a number, true or null, got {value}.")
    time = str(settings["time"])
    if not re.fullmatch(r"[1-9]\d*|(\d+-)?\d+(:\d+){0,2}", time) or time == "0":
        raise UserError(
            f"hydra.launcher.time must be a number of minutes, or a time like 12:00:00 or 2-00:00:00, got {time}."
        )
    _require_time_before_signal(settings)


def _require_time_before_signal(settings: dict[str, Any]) -> None:
    """Raise UserError unless Slurm starts a job before it sends the signal.  Otherwise no start completes a step."""
    more = settings["more"] or {}
    time = str(more.get("time", settings["time"]))
    signal = str(more.get("signal", f"USR1@{settings['signal_before']}")).rpartition("@")[2]
    if (limit := _seconds(time)) is not None and signal.isdigit() and limit <= int(signal):
        raise UserError(
            f"hydra.launcher.time must be longer than hydra.launcher.signal_before ({signal} seconds), got {time} "
            f"({limit} seconds)."
        )


def _seconds(time: str) -> int | None:
    """Return the number of seconds of a time limit in one of Slurm's formats; None for another text.

    The formats are MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS and DAYS-HOURS, DAYS-HOURS:MINUTES,
    DAYS-HOURS:MINUTES:SECONDS.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        return None
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]  # without days, the first of one or two numbers is minutes
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _is_one_line_of_shell(text: Any) -> bool:
    """Return whether a value is a text of one line with complete quotes."""
    try:
        return isinstance(text, str) and "\n" not in text and bool(shlex.split(text))
    except ValueError:
        return False


def _resources(trainer: DictConfig | None, nodes: int | None, gpus: int | None) -> tuple[int, int, int | None]:
    """Return the number of nodes of a job, of tasks per node (one for each rank) and of GPUs per node.

    nodes, gpus: settings of the launcher; None selects the value of the trainer.
    Raises UserError if the numbers of nodes or devices differ between the launcher and the trainer.
    """
    defaults: dict[str, Any] = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}
    trainer_settings = defaults | dict(trainer or {})
    devices, accelerator = trainer_settings["devices"], trainer_settings["accelerator"]
    num_nodes = trainer_settings["num_nodes"]
    num_devices = len(devices) if OmegaConf.is_list(devices) else devices
    if not isinstance(num_devices, int) or num_devices <= 0:  # the trainer uses as many ranks as the job has tasks
        return nodes or num_nodes, gpus or 1, gpus
    if gpus and accelerator != "cpu" and num_devices != gpus:
        raise UserError(
            f"hydra.launcher.gpus must equal trainer.devices ({num_devices}, with one GPU per rank), got {gpus}."
        )
    if nodes is not None and nodes != num_nodes:
        raise UserError(f"hydra.launcher.nodes must equal trainer.num_nodes ({num_nodes}), got {nodes}.")
    return num_nodes, num_devices, num_devices if gpus is None and accelerator in ("gpu", "cuda") else gpus
