"""How many processes a run has, and who starts them: srun, torchrun, submitit, or Lightning on one machine."""

import os
import re
from typing import TYPE_CHECKING, Any

from diffusion_lab.distributed import slurm_job

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment


class LaunchError(ValueError):
    """The processes that a trainer is for are not those that were started."""


def num_local_ranks() -> int | None:
    """How many processes torchrun, srun or submitit started on this machine; None where Lightning is to."""
    if slurm_job.started_by_torchrun():
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if slurm_job.in_slurm_step():
        counts = os.environ["SLURM_STEP_TASKS_PER_NODE"]  # such as 2(x3), 2 on each of three nodes
        if not (same := re.fullmatch(r"(\d+)(\(x\d+\))?", counts)):
            raise LaunchError(f"srun must start as many tasks on each node (--ntasks-per-node), got {counts}.")
        return int(same[1])
    if _by_submitit_here():
        return int(os.environ["SUBMITIT_LOCAL_NTASKS"])
    return None


def num_nodes() -> int:
    """Of the run that torchrun or srun started; 1 where none did."""
    if slurm_job.started_by_torchrun():
        return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["SLURM_STEP_NUM_NODES"]) if slurm_job.in_slurm_step() else 1


def validate(devices: Any, nodes: Any, strategy: Any) -> None:
    """Raises LaunchError unless a trainer of so many devices on so many nodes is one of the started processes."""
    if isinstance(strategy, str) and re.search(r"spawn|fork|notebook", strategy):
        raise LaunchError(f"trainer.strategy must be one whose processes are commands, such as ddp, got {strategy}.")
    here = num_local_ranks()
    count = len(devices) if isinstance(devices, list) else devices
    for name, number in {"devices": count, "num_nodes": nodes}.items():
        if number == 0:
            raise LaunchError(f"trainer.{name} must be at least 1, got {number}.")
    if here is None:
        if nodes != 1 and "NODE_RANK" not in os.environ:
            raise LaunchError(
                f"trainer.num_nodes={nodes} needs a process on each node: start the command with srun or torchrun."
            )
        return
    starter, option = _starter()
    if here > 1 and count == 1:
        raise LaunchError(f"trainer must be of the {here} processes that {starter} started here, got one: trainer=ddp.")
    if isinstance(count, int) and count not in (here, -1):
        raise LaunchError(
            f"trainer.devices must be {here}, as many processes as {starter} started here ({option}), got {count}."
        )
    if nodes != num_nodes():
        raise LaunchError(f"trainer.num_nodes must be {num_nodes()}, as {starter} was told, got {nodes}.")


def limit_threads() -> None:
    """Leaves each task that srun started on a node the threads of its own CPUs, before torch counts those of the node.

    More threads than cores make each step many times slower.
    """
    if slurm_job.in_slurm_step() and "OMP_NUM_THREADS" not in os.environ:
        cores = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
        own = os.environ.get("SLURM_CPUS_PER_TASK") or max(1, cores // (num_local_ranks() or 1))
        os.environ["OMP_NUM_THREADS"] = str(own)


def cluster_environment() -> "ClusterEnvironment":
    """Lightning's view of who starts the processes of a run.

    Its own guess takes a shell in a Slurm job for one of many tasks, and waits for the others for ever. Signals are
    answered by StopOnSignal, between two steps, and not by Lightning.
    """
    from lightning.fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if slurm_job.started_by_torchrun():
        return TorchElasticEnvironment()
    if slurm_job.in_slurm_step():
        _tell_of_the_step()
        return SLURMEnvironment(auto_requeue=False)
    if _by_submitit_here() and "MASTER_ADDR" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)  # Lightning chooses by the local rank
    return LightningEnvironment()


def _tell_of_the_step() -> None:
    """Lightning reads what Slurm says of the whole job, and would refuse, or wait in, a step that is a part of it."""
    step = int(os.environ["SLURM_STEP_ID"])
    os.environ["SLURM_NTASKS_PER_NODE"] = str(num_local_ranks())
    os.environ["SLURM_NNODES"] = str(num_nodes())
    os.environ["SLURM_NODELIST"] = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
    # Two steps of a job may be there at once, and jobs of neighbouring numbers on one node.
    os.environ.setdefault("MASTER_PORT", str(15000 + (int(os.environ["SLURM_JOB_ID"]) + 997 * step) % 10000))


def _by_submitit_here() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "local" and "SUBMITIT_LOCAL_NTASKS" in os.environ


def _starter() -> tuple[str, str]:
    if slurm_job.started_by_torchrun():
        return "torchrun", "--nproc-per-node"
    return ("srun", "--ntasks-per-node") if slurm_job.in_slurm_step() else ("submitit", "hydra.launcher.tasks_per_node")
