"""The job of a process from environment variables."""

import os
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
import torch

from diffusion_lab.distributed import launch, slurm_job
from diffusion_lab.distributed.launch import LaunchError
from diffusion_lab.errors import UserError

STEP = {
    "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_CPUS_ON_NODE": "16",
}  # fmt: skip
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
OTHERS = ("DIFFUSION_LAB_LIGHTNING_PARENT", "GROUP_RANK", "OMP_NUM_THREADS", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
LIGHTNING = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "DIFFUSION_LAB_LIGHTNING_PARENT": str(os.getppid())}
BARE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "x"}
SUBMITIT = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}


@pytest.fixture(autouse=True)
def no_job() -> Iterator[None]:
    """Give each test an environment without the variables of the job in which the tests may run."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("SLURM_", "SUBMITIT_", "TORCHELASTIC_")) or name in (*TORCHRUN, *OTHERS):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "rank", "world_size"),
    [
        ({}, 0, 1),
        (STEP, 3, 4),
        (TORCHRUN, 5, 8),
        (SUBMITIT, 1, 1),
        (LIGHTNING, 1, 1),
        (BARE, 0, 1),
        (STEP | TORCHRUN, 5, 8),  # srun starts one torchrun per node
    ],
)
def test_rank_and_world_size_are_those_of_the_launcher(
    environment: dict[str, str], rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    assert (slurm_job.rank(), slurm_job.world_size()) == (rank, world_size)


def test_the_job_name_has_the_job_the_array_task_and_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, STEP)
    assert slurm_job.job_name() == "slurm_17"
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    assert slurm_job.job_name() == "slurm_17.2"
    set_environment(monkeypatch, {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "4"})
    assert slurm_job.job_name() == "slurm_16_4.2"
    assert slurm_job.slurm_id() == "16_4"


@pytest.mark.parametrize(
    ("shell", "step", "named"),
    [("interactive", {}, False), ("interactive", {"SLURM_STEP_ID": "3", "SLURM_PROCID": "0"}, True),
     ("bash", {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, False), ("train", {}, True)],
)  # fmt: skip
def test_commands_in_an_interactive_shell_of_a_job_have_separate_names(
    shell: str, step: dict[str, str], named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example after salloc or srun --pty bash, where one job runs several commands."""
    set_environment(monkeypatch, {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": shell, **step})
    assert slurm_job.job_name().startswith("slurm_17") == named


def test_a_run_outside_of_slurm_keeps_the_name_that_contains_the_time_of_its_first_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning passes the name to the other ranks seconds later."""
    set_environment(monkeypatch, {})
    slurm_job._start_time.cache_clear()
    started, name = datetime.now(), slurm_job.job_name()
    assert started <= datetime.strptime(name, "%Y-%m-%d_%H-%M-%S-%f") <= datetime.now()
    later = datetime.now() + timedelta(hours=1)
    monkeypatch.setattr(slurm_job, "datetime", SimpleNamespace(now=lambda: later))
    assert slurm_job.job_name() == name


def test_the_run_id_of_torchrun_names_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TORCHRUN | {"TORCHELASTIC_RUN_ID": "night"})
    assert slurm_job.job_name() == "torchrun_night"


@pytest.mark.parametrize(
    ("environment", "local_ranks", "nodes"), [({}, None, 1), (STEP, 2, 2), (TORCHRUN, 4, 2), (SUBMITIT, 2, 1)]
)
def test_nodes_and_local_ranks_are_those_of_the_launcher(
    environment: dict[str, str], local_ranks: int | None, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    assert (launch.num_local_ranks(), launch.num_nodes()) == (local_ranks, nodes)
    launch.validate(local_ranks or 1, nodes, "ddp")


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "strategy", "message"),
    [
        (BARE, 2, 1, "ddp", r"\(trainer.devices=2\) .* got .* RANK=1, LOCAL_RANK=1, WORLD_SIZE=2 without a launcher"),
        ({}, 0, 1, "ddp", "trainer.devices must be at least 1, got 0"),
        ({}, -2, 1, "ddp", "trainer.devices must be at least 1, got -2"),
        ({}, 1, 2, "ddp", "trainer.num_nodes must be 1 without a launcher, got 2"),
        ({}, 2, 1, "ddp_spawn", "trainer.strategy must run each rank as a separate command, .* got ddp_spawn"),
        (STEP, 1, 2, "auto", r"must be 2 .* srun started on this node.*, got 1; set trainer=ddp"),
        (STEP, 4, 2, "ddp", r"trainer.devices must be 2 .* srun started .* --ntasks-per-node\), got 4\."),
        (STEP, 2, 1, "ddp", r"trainer.num_nodes must be 2 \(the number of srun nodes\), got 1"),
        (TORCHRUN, [0, 1], 2, "ddp", r"must be 4 .* torchrun started on this node, set by --nproc-per-node\), got 2"),
        (SUBMITIT, 3, 1, "ddp", r"must be 2 .* hydra.launcher.tasks_per_node\), got 3"),
    ],
)
def test_a_trainer_that_does_not_match_the_launcher_is_rejected(
    environment: dict[str, str], devices: object, nodes: int, strategy: str, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    set_environment(monkeypatch, environment)
    launch.prepare_environment()
    with pytest.raises(LaunchError, match=message):
        launch.validate(devices, nodes, strategy)


def test_a_step_with_different_numbers_of_tasks_per_node_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, STEP | {"SLURM_STEP_TASKS_PER_NODE": "2,1"})
    with pytest.raises(LaunchError, match=r"the same number of tasks on each node .*, got 2,1"):
        launch.num_local_ranks()


@pytest.mark.parametrize(("variables", "threads"), [({}, "8"), ({"SLURM_CPUS_PER_TASK": "5"}, "5")])
def test_a_task_of_srun_uses_the_threads_of_its_own_cpus(
    variables: dict[str, str], threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, STEP | variables)
    launch.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_a_shell_in_a_job_is_not_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script of two tasks runs a command without srun. Lightning would wait for the second task."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    set_environment(monkeypatch, {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"})
    assert isinstance(launch.cluster_environment(), LightningEnvironment)
    set_environment(monkeypatch, STEP)
    set_environment(monkeypatch, {"SLURM_STEP_NODELIST": "n[3-4]", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "7"})
    environment = launch.cluster_environment()
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False
    assert (environment.main_address, environment.world_size(), environment.global_rank()) == ("n3", 4, 3)
    environment.validate_settings(num_devices=2, num_nodes=2)  # those of the step, not of the job
    set_environment(monkeypatch, TORCHRUN)
    assert isinstance(launch.cluster_environment(), TorchElasticEnvironment)


@pytest.mark.parametrize("variable", [*BARE, "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID"])
@pytest.mark.parametrize("value", ["1", "abc"])
def test_a_variable_of_a_rank_without_a_launcher_is_hidden(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example RANK=1 that a shell exports. Lightning would write no logs."""
    monkeypatch.setenv(variable, value)
    launch.prepare_environment()
    assert variable not in os.environ
    assert slurm_job.rank() == 0
    launch.validate(1, 1, "auto")


def test_the_variables_of_a_node_reach_lightning_only_in_a_run_on_several_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_environment(monkeypatch, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"})
    launch.prepare_environment()
    launch.validate(2, 1, "ddp")
    assert "MASTER_ADDR" not in os.environ
    launch.validate(2, 2, "ddp")
    assert (os.environ["NODE_RANK"], os.environ["MASTER_ADDR"]) == ("1", "10.0.0.1")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN | {"RANK": "abc"}, "variable RANK, which the launcher sets, must be .* at least 0, got abc"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "variable WORLD_SIZE, .* at least 1, got 0"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": ""}, "variable LOCAL_WORLD_SIZE, .* got no value"),
        (TORCHRUN | {"RANK": "8"}, "must satisfy RANK < WORLD_SIZE .* got 8 < 8 and 1 < 4"),
        (TORCHRUN | {"LOCAL_RANK": "-1"}, "variable LOCAL_RANK, .* got -1"),
        (STEP | {"SLURM_PROCID": "4"}, "must satisfy SLURM_PROCID < SLURM_STEP_NUM_TASKS .* got 4 < 4"),
        (STEP | {"SLURM_STEP_NUM_NODES": "two"}, "variable SLURM_STEP_NUM_NODES, .* got two"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": ""}, "must start the same number of tasks on each node"),
        (SUBMITIT | {"SUBMITIT_LOCAL_NTASKS": "0"}, "variable SUBMITIT_LOCAL_NTASKS, .* at least 1, got 0"),
        ({"DIFFUSION_LAB_LAUNCH_MINUTES": "soon"}, "DIFFUSION_LAB_LAUNCH_MINUTES must be a number above 0, got soon"),
        ({"DIFFUSION_LAB_LIGHTNING_PARENT": "999999999"}, r"rank 0 of this run \(process 999999999\) has ended"),
    ],
)
def test_nonsense_in_the_variables_of_a_launcher_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    with pytest.raises(UserError, match=message):
        launch.prepare_environment()


def test_a_command_that_a_rank_of_lightning_starts_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, LIGHTNING | {"DIFFUSION_LAB_LIGHTNING_PARENT": str(os.getpid())})
    launch.prepare_environment()
    assert slurm_job.rank() == 0
    assert "LOCAL_RANK" not in os.environ


def test_ranks_that_never_start_end_the_wait_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    set_environment(
        monkeypatch, TORCHRUN | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    )
    set_environment(
        monkeypatch, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DIFFUSION_LAB_LAUNCH_MINUTES": "0.02"}
    )
    strategy = DDPStrategy(cluster_environment=launch.cluster_environment(), parallel_devices=[torch.device("cpu")] * 2)
    launch.protect_new_ranks(strategy)
    before = strategy._timeout
    with pytest.raises(LaunchError, match=rf"not all ranks .* 127.0.0.1:{port} .* within 0.02 minutes, the value of "):
        strategy.setup_distributed()
    assert strategy._timeout == before


@pytest.mark.parametrize(
    ("num_gpus", "kind", "world_size", "settings"),
    [
        (0, "cpu", 1, "trainer.precision=... changes it"),
        (0, "cpu", 2, "trainer.precision=... changes it"),
        (1, "cpu", 1, "trainer=gpu or trainer.precision=... change it"),
        (1, "cuda", 1, "trainer=cpu or trainer.precision=... change it"),
        (2, "cuda", 1, "trainer=cpu, trainer=ddp or trainer.precision=... change it"),
        (2, "cuda", 2, "trainer=cpu or trainer.precision=... change it"),
    ],
)
def test_the_line_about_the_device_names_settings_that_change_it_on_this_machine(
    num_gpus: int, kind: str, world_size: int, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    name = "NVIDIA H200" if kind == "cuda" else "CPU"
    assert launch.describe_device(torch.device(kind), "32-true", world_size) == f"{name}, 32-true; {settings}"
