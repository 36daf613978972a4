"""The names of run folders of real commands of torchrun."""

import os
import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

PRINT_NAME = """
import os, sys
from diffusion_lab.distributed import slurm_job
words = "name", os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], slurm_job.job_name()
sys.stdout.write(" ".join(words) + "\\n")
"""
# print would write each word alone, because torchrun starts ranks without buffers, and mix the words of two ranks.

LAUNCH = """
import os, subprocess, sys
variables = ("RANK", "TORCHELASTIC_RESTART_COUNT")
environments = [{**os.environ, **dict(zip(variables, values))} for values in ("00", "10", "01", "11")]
ranks = [subprocess.Popen([sys.executable, sys.argv[1]], env=environment) for environment in environments]
sys.exit(max(rank.wait() for rank in ranks))
"""
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "False",
    "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def start(*command: str, **environment: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **environment}, stdout=pipe, stderr=pipe, text=True
    )


def start_torchrun(script: Path, *options: str) -> "subprocess.Popen[str]":
    return start("-m", "torch.distributed.run", *options, str(script))


def names(*processes: "subprocess.Popen[str]") -> dict[tuple[str, str], str]:
    """Return the name of the run folder by rank and number of restarts."""
    outputs = [process.communicate(timeout=60) for process in processes]
    found = {
        (line[1], line[2]): line[3]
        for output, _ in outputs
        for line in map(str.split, output.splitlines())
        if line[0] == "name"
    }
    assert found, "".join(errors for _, errors in outputs)
    return found


def test_ranks_are_named_by_the_start_and_the_process_id_of_their_parent_also_when_it_starts_them_again(
    tmp_path: Path,
) -> None:
    """The parent has the environment of torchrun, which itself is tested below."""
    (tmp_path / "script.py").write_text(PRINT_NAME)
    before = datetime.now()
    parent = start("-c", LAUNCH, str(tmp_path / "script.py"), **TORCHRUN)
    found = names(parent)
    assert set(found) == {("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")}
    (name,) = set(found.values())
    started = datetime.strptime(name, "%Y-%m-%d_%H-%M-%S-%f")
    assert before - timedelta(seconds=1) < started < datetime.now()  # the kernel rounds the time of a start
    assert started.microsecond % 10_000 == parent.pid % 10_000


@pytest.mark.full
def test_a_run_of_torchrun_has_the_same_name_after_its_ranks_are_restarted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{PRINT_NAME}\nassert os.environ['TORCHELASTIC_RESTART_COUNT'] == '1'")
    found = names(start_torchrun(script, "--standalone", "--nproc-per-node=2", "--max-restarts=1"))
    assert {restarts for _, restarts in found} == {"0", "1"}
    assert {rank for rank, restarts in found if restarts == "1"} == {"0", "1"}
    assert len(set(found.values())) == 1


@pytest.mark.full
def test_a_run_of_torchrun_on_two_nodes_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PRINT_NAME)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ("--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    before = datetime.now()
    found = names(*(start_torchrun(tmp_path / "script.py", *address, f"--node-rank={node}") for node in (0, 1)))
    assert {rank for rank, _ in found} == {"0", "1"}
    (name,) = set(found.values())
    assert before < datetime.strptime(name, "%Y-%m-%d_%H-%M-%S-%f") < datetime.now()
