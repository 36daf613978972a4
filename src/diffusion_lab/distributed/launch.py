"""Detection of the launcher (srun, torchrun, submitit, or Lightning on a single node) and of the number of ranks.

The trainer settings are compared with the ranks that the launcher started.
"""

import os
import re
from typing import TYPE_CHECKING, Any

from diffusion_lab.distributed import signals, slurm_job

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment


class LaunchError(ValueError):
    """Error for settings of the trainer or of the launcher that do not match each other."""


def num_local_ranks() -> int | None:
    """Return the number of ranks that torchrun, srun or submitit started on this node, or None without a launcher."""
    if slurm_job.started_by_torchrun():
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if slurm_job.in_slurm_step():
        counts = os.environ["SLURM_STEP_TASKS_PER_NODE"]  # for example 2(x3): 2 tasks on each of 3 nodes
        if not (same := re.fullmatch(r"(\d+)(\(x\d+\))?", counts)):
            raise LaunchError(
                f"srun must start the same number of tasks on each node (--ntasks-per-node), got {counts}."
            )
        return int(same[1])
    if _started_by_local_submitit():
        return int(os.environ["SUBMITIT_LOCAL_NTASKS"])
    return None


def num_nodes() -> int:
    """Return the number of nodes of a run that torchrun or srun started, or 1 for any other run."""
    if slurm_job.started_by_torchrun():
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["SLURM_STEP_NUM_NODES"]) if slurm_job.in_slurm_step() else 1


def validate(devices: Any, nodes: Any, strategy: Any) -> None:
    """Raise LaunchError unless devices, num_nodes and strategy of the trainer match the ranks that were started."""
    if isinstance(strategy, str) and re.search(r"spawn|fork|notebook", strategy):
        raise LaunchError(f"trainer.strategy must run each rank as a separate command, as ddp does, got {strategy}.")
    local_ranks = num_local_ranks()
    count = len(devices) if isinstance(devices, list) else devices
    for name, number in {"devices": count, "num_nodes": nodes}.items():
        if number == 0:
            raise LaunchError(f"trainer.{name} must be at least 1, got {number}.")
    if local_ranks is None:
        if nodes != 1 and "NODE_RANK" not in os.environ:
            raise LaunchError(
                f"trainer.num_nodes must be 1 without a launcher, got {nodes}; start the command with srun or torchrun."
            )
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
    if _started_by_local_submitit() and "MASTER_ADDR" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)  # Lightning selects the GPU by local rank
    return LightningEnvironment()


def protect_new_ranks(strategy: Any) -> None:
    """Let the ranks that Lightning starts from this process ignore signals until they have installed their handlers.

    A signal to the process group would otherwise end them with a traceback while they import their libraries.
    strategy: strategy of a trainer or of Fabric.
    """
    launcher: Any = getattr(strategy, "launcher", None)
    start = getattr(launcher, "_call_children_scripts", None)
    if start is not None:

        def start_blocked() -> None:
            with signals.blocked():
                start()

        launcher._call_children_scripts = start_blocked


def describe_device(device: Any, precision: str) -> str:
    """Return the device and the precision of a command, and the settings that change them.  device: torch.device."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    others = "trainer=cpu" if device.type == "cuda" else "trainer=gpu"
    return f"{name}, {precision}; {others}, trainer=ddp, trainer.accelerator=mps or trainer.precision=... change it"


def _export_slurm_step() -> None:
    """Set the Slurm variables that Lightning reads, which describe the complete job, to the values of the job step."""
    step = int(os.environ["SLURM_STEP_ID"])
    os.environ["SLURM_NTASKS_PER_NODE"] = str(num_local_ranks())
    os.environ["SLURM_NNODES"] = str(num_nodes())
    os.environ["SLURM_NODELIST"] = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    # Use different ports for parallel steps of one job, and for jobs with adjacent ids on one node.
    os.environ.setdefault("MASTER_PORT", str(15000 + (int(os.environ["SLURM_JOB_ID"]) + 997 * step) % 10000))


def _started_by_local_submitit() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "local" and "SUBMITIT_LOCAL_NTASKS" in os.environ


def _launcher() -> tuple[str, str]:
    if slurm_job.started_by_torchrun():
        return "torchrun", "--nproc-per-node"
    return ("srun", "--ntasks-per-node") if slurm_job.in_slurm_step() else ("submitit", "hydra.launcher.tasks_per_node")
