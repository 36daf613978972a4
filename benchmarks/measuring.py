"""Helpers of all benchmarks: interleaved timing, and rows that compare ours with a peer, as Markdown and JSON."""

import argparse
import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One comparison.

    ours, peer: all measured values.  more_is_better: false for times and memory, true for rates.
    asked: target of the ratio; above 1, ours must be better than the peer.  note: further numbers, or a difference
    between the two measurements.
    """

    what: str
    unit: str
    ours: list[float]
    peer: list[float]
    peer_name: str
    asked: float | None = None
    more_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better the median of ours is; None without values of a peer."""
        if not self.peer:
            return None
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return ours / peer if self.more_is_better else peer / ours


def row_from_json(content: dict[str, Any]) -> Row:
    """Return the row that `main` wrote to a JSON file."""
    return Row(**{key: value for key, value in content.items() if key != "ratio"})


def timed(job: Callable[[], object]) -> float:
    """Call `job` once and return the seconds that it took."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB."""
    # ru_maxrss of a child process starts at the value of its parent; VmHWM does not.
    status = Path("/proc/self/status")
    if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else ""):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interleave(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all jobs in turns, `rounds` times, and return the results of each job.

    Each round starts with a different job. An additional first round warms up; its results are discarded.
    """
    names = list(jobs)
    results: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for k in range(len(names)):
            name = names[(round_ + k) % len(names)]
            result = jobs[name]()
            if round_:
                results[name].append(result)
    return results


class PausedLoop:
    """A training loop in a separate process that pauses after each step.

    command: command of that process, which must call `pause_after_each_step()`.  peak: its peak memory so far in MB.
    """

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process lives
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.peak = 0.0

    def advance(self) -> float:
        """Run the next step and return its duration in seconds.  Raises RuntimeError if the loop has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print("go", file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            self._errors.seek(0)
            raise RuntimeError(f"a training loop ended:\n{self._errors.read()[-3000:]}")
        seconds, self.peak = map(float, line.split())
        return seconds

    def stop(self) -> None:
        """Kill the process."""
        with self._errors, self._process:
            self._process.kill()


def pause_after_each_step() -> Callable[[], None]:
    """Wait until `PausedLoop.advance` is called; return a function that the loop must call after each step.

    That function sends the duration of the step and the peak memory, and waits for the next call of `advance`.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what the loop prints out of the replies
    sys.stdin.readline()
    started = time.perf_counter()

    def after_step() -> None:
        nonlocal started
        print(time.perf_counter() - started, peak_memory(), file=replies, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the measuring process has exited
        started = time.perf_counter()

    return after_step


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| measurement | ours | peer | peer name | ratio | target | notes |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        target = "" if row.asked is None else f"{row.asked:g}"
        values = [_format_values(values, row.unit) for values in (row.ours, row.peer)]
        lines.append(f"| {row.what} | {values[0]} | {values[1]} | {row.peer_name} | {ratio} | {target} | {row.note} |")
    return "\n".join(lines)


def _format_values(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    spread = "" if len(values) == 1 else f" ({_format_number(min(values))} to {_format_number(max(values))})"
    return f"{_format_number(statistics.median(values))} {unit}{spread}"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(doc: str | None, rows: Callable[[argparse.Namespace], Sequence[Row]], **options: Any) -> None:
    """Run the command of a benchmark.  options: further command-line options, name=(type, default, help)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--rounds", type=int, default=7, help="how often each job is measured")
    for name, (kind, default, text) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    arguments = parser.parse_args()
    found = list(rows(arguments))
    if found:
        print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in found], indent=1))
