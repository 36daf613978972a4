"""The names of run folders of real commands of torchrun."""

import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

PRINT_NAME = """
import os
from diffusion_lab.distributed import slurm_job
print("name", os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], slurm_job.job_name(), flush=True)
"""


def start_torchrun(script: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(script)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(*processes: "subprocess.Popen[str]") -> dict[tuple[str, str], str]:
    """Return the name of the run folder by rank and number of restarts."""
    lines = [line.split() for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    return {(line[1], line[2]): line[3] for line in lines if line[0] == "name"}


def test_a_run_of_torchrun_has_the_time_of_its_start_and_its_process_id_in_its_name_on_all_ranks(
    tmp_path: Path,
) -> None:
    (tmp_path / "script.py").write_text(PRINT_NAME)
    before = datetime.now()
    torchrun = start_torchrun(tmp_path / "script.py", "--standalone", "--nproc-per-node=2")
    found = names(torchrun)
    assert set(found) == {("0", "0"), ("1", "0")}
    (name,) = set(found.values())
    started = datetime.strptime(name, "%Y-%m-%d_%H-%M-%S-%f")
    assert before - timedelta(seconds=1) < started < datetime.now()  # the kernel rounds the time of a start
    assert started.microsecond % 10_000 == torchrun.pid % 10_000  # which a restart of the ranks does not change


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
