"""Detection of the launcher (srun, torchrun, submitit, or Lightning on a single node) and of the number of ranks.

The trainer settings are compared with the ranks that the launcher started.
"""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from diffusion_lab.distributed import signals, slurm_job
from diffusion_lab.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment


LAUNCH_MINUTES = "DIFFUSION_LAB_LAUNCH_MINUTES"
"""Environment variable with the number of minutes that ranks wait for each other at the start; 10 if it is not set."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "JSM_NAMESPACE_RANK")
"""Environment variables of a rank, which Lightning reads even if no launcher started this process."""

NODE_VARIABLES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of a node, which the user sets to start a run on several nodes without a launcher."""

_hidden: dict[str, str] = {}

_launchers: list[Any] = []


class LaunchError(UserError):
    """Error for settings of the trainer or of the launcher that do not match each other."""


def prepare_environment() -> None:
    """Validate the variables of the launcher; without a launcher, hide variables that look as if there was one.

    Lightning and torch read these variables too, so call it before they are imported. Raises UserError for variables of
    a launcher that are not accepted, and LaunchError if rank 0 of a rank that Lightning started has ended.
    """
    parent = os.environ.get(slurm_job.LIGHTNING_PARENT, "")
    if parent and parent != str(os.getppid()):
        if not parent.isdigit() or slurm_job.start_ticks(int(parent)) is None:
            raise LaunchError(f"rank 0 of this run (process {parent}) has ended before this rank started.")
        del os.environ[slurm_job.LIGHTNING_PARENT]  # inherited by a command that one of the ranks has started
    if slurm_job.started_by_lightning():
        signals.exit_without_parent()
    _hidden.clear()
    launched = slurm_job.started_by_torchrun(), slurm_job.in_slurm_step(), slurm_job.started_by_local_submitit()
    if not (any(launched) or slurm_job.started_by_lightning()):
        names = (*RANK_VARIABLES, *NODE_VARIABLES, "SLURM_PROCID")
        _hidden.update({name: os.environ.pop(name) for name in names if name in os.environ})
    elif not slurm_job.started_by_torchrun():
        for name in set(RANK_VARIABLES) - ({"LOCAL_RANK", "WORLD_SIZE"} if not any(launched) else set()):
            os.environ.pop(name, None)
    _validate_launcher()


def _validate_launcher() -> None:
    """Raise UserError unless the variables of the launcher are numbers that fit each other."""
    rank, world_size = slurm_job.rank(), slurm_job.world_size()
    if slurm_job.started_by_torchrun():
        local_rank, local_ranks = slurm_job.number("LOCAL_RANK"), slurm_job.number("LOCAL_WORLD_SIZE", 1)
        if rank >= world_size or local_rank >= local_ranks or world_size % local_ranks:
            raise LaunchError(
                "the environment variables of torchrun must satisfy RANK < WORLD_SIZE and LOCAL_RANK < "
                "LOCAL_WORLD_SIZE, and WORLD_SIZE must be a multiple of LOCAL_WORLD_SIZE, got "
                f"{rank} < {world_size} and {local_rank} < {local_ranks}."
            )
    elif slurm_job.in_slurm_step() and (rank >= world_size or num_nodes() > world_size):
        raise LaunchError(
            "the environment variables of srun must satisfy SLURM_PROCID < SLURM_STEP_NUM_TASKS and "
            f"SLURM_STEP_NUM_NODES <= SLURM_STEP_NUM_TASKS, got {rank} < {world_size} and {num_nodes()} <= "
            f"{world_size}."
        )
    num_local_ranks()
    _launch_timeout()


def num_local_ranks() -> int | None:
    """Return the number of ranks that torchrun, srun or submitit started on this node, or None without a launcher."""
    if slurm_job.started_by_torchrun():
        return slurm_job.number("LOCAL_WORLD_SIZE", 1)
    if slurm_job.in_slurm_step():
        counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "no value")  # such as 2(x3): 2 tasks on each of 3 nodes
        if not (same := re.fullmatch(r"(\d+)(\(x\d+\))?", counts)):
            raise LaunchError(
                f"srun must start the same number of tasks on each node (--ntasks-per-node), got {counts}."
            )
        return int(same[1])
    if slurm_job.started_by_local_submitit():
        return slurm_job.number("SUBMITIT_LOCAL_NTASKS", 1)
    return None


def num_nodes() -> int:
    """Return the number of nodes of a run that torchrun or srun started, or 1 for any other run."""
    if slurm_job.started_by_torchrun():
        return slurm_job.number("WORLD_SIZE", 1) // slurm_job.number("LOCAL_WORLD_SIZE", 1)
    return slurm_job.number("SLURM_STEP_NUM_NODES", 1) if slurm_job.in_slurm_step() else 1


def validate(devices: Any, nodes: Any, strategy: Any) -> None:
    """Raise LaunchError unless devices, num_nodes and strategy of the trainer match the ranks that were started."""
    if isinstance(strategy, str) and re.search(r"spawn|fork|notebook", strategy):
        raise LaunchError(f"trainer.strategy must run each rank as a separate command, as ddp does, got {strategy}.")
    local_ranks = num_local_ranks()
    count = len(devices) if isinstance(devices, list) else devices
    for name, number in {"devices": count, "num_nodes": nodes}.items():
        if isinstance(number, int) and number < 1 and (name, number) != ("devices", -1):  # -1: all devices
            raise LaunchError(f"trainer.{name} must be at least 1, got {number}.")
    if local_ranks is None:
        _validate_without_launcher(count, nodes)
        return
    launcher, option = _launcher()
    if isinstance(count, int) and count not in (local_ranks, -1):
        remedy = "; set trainer=ddp" if local_ranks > 1 and count == 1 else ""
        raise LaunchError(
            f"trainer.devices must be {local_ranks} (the number of ranks that {launcher} started on this node, set by "
            f"{option}), got {count}{remedy}."
        )
    if nodes != num_nodes():
        raise LaunchError(f"trainer.num_nodes must be {num_nodes()} (the number of {launcher} nodes), got {nodes}.")


def _validate_without_launcher(count: Any, nodes: Any) -> None:
    """Raise LaunchError unless Lightning can start all ranks: `count` ranks on each of `nodes` nodes."""
    if nodes != 1:
        os.environ.update({name: _hidden[name] for name in NODE_VARIABLES if name in _hidden})
        if "NODE_RANK" not in os.environ:
            raise LaunchError(
                f"trainer.num_nodes must be 1 without a launcher, got {nodes}; start the command with srun or torchrun."
            )
    started = {name: _hidden[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in _hidden}
    is_one_of_several = any(
        value.isdigit() and int(value) > (name == "WORLD_SIZE") and not slurm_job.started_by_lightning()
        for name, value in started.items()
    )
    if is_one_of_several and not (count in (1, "1") and nodes == 1):
        found = ", ".join(f"{name}={value}" for name, value in started.items())
        raise LaunchError(
            f"several ranks (trainer.devices={count}) must be started by torchrun, srun or this command alone, got the "
            f"environment variables {found} without a launcher; start the command with torchrun, or unset them."
        )


def limit_threads() -> None:
    """Limit the number of threads of an srun task to the number of its CPUs. Call it before torch is imported.

    By default torch uses one thread per core of the node in each task. More threads than cores make steps many times
    slower.
    """
    if slurm_job.in_slurm_step() and "OMP_NUM_THREADS" not in os.environ:
        cores = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
        own = os.environ.get("SLURM_CPUS_PER_TASK") or max(1, cores // (num_local_ranks() or 1))
        os.environ["OMP_NUM_THREADS"] = str(own)


def cluster_environment() -> "ClusterEnvironment":
    """Return Lightning's cluster environment for the launcher.

    Lightning's own detection treats a shell in a Slurm job as one of several tasks and waits forever for the other
    tasks. Lightning's automatic requeue is disabled, because StopOnSignal handles signals between two steps.
    """
    from lightning.fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if slurm_job.started_by_torchrun():
        return TorchElasticEnvironment()
    if slurm_job.in_slurm_step():
        _export_slurm_step()
        return SLURMEnvironment(auto_requeue=False)
    if slurm_job.started_by_local_submitit() and "MASTER_ADDR" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)  # Lightning selects the GPU by local rank
    return LightningEnvironment()


def protect_new_ranks(strategy: Any) -> None:
    """Let the ranks that Lightning starts from this process ignore signals until they have installed their handlers.

    A signal to the process group would otherwise end them with a traceback while they import their libraries. The new
    ranks find the id of this process in LIGHTNING_PARENT, and all ranks wait for each other at most LAUNCH_MINUTES.
    strategy: strategy of a trainer or of Fabric.
    """
    _limit_wait(strategy)
    launcher: Any = getattr(strategy, "launcher", None)
    start = getattr(launcher, "_call_children_scripts", None)
    if start is not None:

        def start_blocked() -> None:
            os.environ[slurm_job.LIGHTNING_PARENT] = str(os.getpid())
            try:
                with signals.blocked():
                    start()
                _launchers.append(launcher)
            finally:
                del os.environ[slurm_job.LIGHTNING_PARENT]

        launcher._call_children_scripts = start_blocked


def kill_new_ranks() -> None:
    """Kill the ranks that Lightning started from this process, because they would wait for this rank forever."""
    for launcher in _launchers:
        while launcher.procs:  # Lightning kills this process as well if a process in this list fails
            launcher.procs.pop().kill()


def _limit_wait(strategy: Any) -> None:
    """Limit the time for which the ranks of a strategy wait for each other at the start, see LAUNCH_MINUTES."""
    names = ("setup_distributed", "_setup_distributed")  # of a trainer, of Fabric
    name = next((name for name in names if hasattr(strategy, name)), None)
    if name is not None and hasattr(strategy, "_timeout"):
        join = getattr(strategy, name)
        setattr(strategy, name, lambda: _join(strategy, join))


def _join(strategy: Any, join: Any) -> None:
    """Call `join`, which waits for all ranks.  Raises LaunchError if they have not started after the timeout."""
    import torch.distributed as dist

    later, strategy._timeout = strategy._timeout, _launch_timeout()
    try:
        join()
    except dist.DistError as error:
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        minutes = _launch_timeout() / timedelta(minutes=1)
        raise LaunchError(
            f"not all ranks of this run met at {address}:{port} (MASTER_ADDR, MASTER_PORT) within {minutes:g} minutes, "
            f"the value of {LAUNCH_MINUTES}; start all ranks, or increase it ({_first_clause(error)})."
        ) from error
    finally:
        strategy._timeout = later
    if dist.is_initialized() and later is not None:  # waits between two steps may be longer
        set_timeout: Any = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch < 2.13
        set_timeout(later, dist.group.WORLD)


def _launch_timeout() -> timedelta:
    value = os.environ.get(LAUNCH_MINUTES, "10")
    if not re.fullmatch(r"\d{1,5}(\.\d*)?", value) or not float(value):
        raise LaunchError(f"the environment variable {LAUNCH_MINUTES} must be a number above 0, got {value}.")
    return timedelta(minutes=float(value))


def _first_clause(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:150]


def describe_device(device: Any, precision: str, world_size: int = 1) -> str:
    """Return the device and the precision of a command, and the settings that change them on this machine.

    device: torch.device of a rank.
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    has_gpu, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = {
        "trainer=cpu": device.type != "cpu",
        "trainer=gpu": has_gpu and device.type != "cuda",
        "trainer.accelerator=mps": has_mps and device.type != "mps",
        "trainer=ddp": world_size == 1 and has_gpu and torch.cuda.device_count() > 1,
    }
    others = ", ".join(setting for setting, is_possible in available.items() if is_possible)
    change = f"{others} or trainer.precision=... change it" if others else "trainer.precision=... changes it"
    return f"{name}, {precision}; {change}"


def _export_slurm_step() -> None:
    """Set the Slurm variables that Lightning reads, which describe the complete job, to the values of the job step."""
    step = int(os.environ["SLURM_STEP_ID"])
    os.environ["SLURM_NTASKS_PER_NODE"] = str(num_local_ranks())
    os.environ["SLURM_NNODES"] = str(num_nodes())
    os.environ["SLURM_NODELIST"] = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    # Use different ports for parallel steps of one job, and for jobs with adjacent ids on one node.
    os.environ.setdefault("MASTER_PORT", str(15000 + (int(os.environ["SLURM_JOB_ID"]) + 997 * step) % 10000))


def _launcher() -> tuple[str, str]:
    if slurm_job.started_by_torchrun():
        return "torchrun", "--nproc-per-node"
    return ("srun", "--ntasks-per-node") if slurm_job.in_slurm_step() else ("submitit", "hydra.launcher.tasks_per_node")
