"""A function on several processes that know of each other."""

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist


def on_processes(count: int, job: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What job(*arguments) returns on each of `count` processes of one thread.  job: of a module's top level."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    started = [context.Process(target=_run, args=(rank, count, port, job, folder, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in started] == [0] * count
    return [torch.load(folder / f"answer_{count}_{rank}.pt", weights_only=False) for rank in range(count)]


def _run(rank: int, count: int, port: int, job: Callable[..., Any], folder: Path, arguments: Any) -> None:
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    torch.save(job(*arguments), folder / f"answer_{count}_{rank}.pt")
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()
