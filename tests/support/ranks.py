"""Run a function on several ranks."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from support.processes import forked_processes


def run_on_ranks(world_size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return the result of function(*arguments) on each rank, with one thread per rank.

    function: defined at the top level of a module, so that it can be pickled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forked_processes()
    started = [
        context.Process(target=_run, args=(rank, world_size, port, function, folder, arguments))
        for rank in range(world_size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in started] == [0] * world_size
    return [torch.load(folder / f"result_{world_size}_{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run(rank: int, world_size: int, port: int, function: Callable[..., Any], folder: Path, arguments: Any) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.save(function(*arguments), folder / f"result_{world_size}_{rank}.pt")
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
