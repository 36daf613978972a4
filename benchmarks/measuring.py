"""What all benchmarks share: interleaved timing, rows of ours beside a peer's, and their table as text and JSON."""

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
    """One comparison.  ours, peer: every measured value; costs, of which less is better, unless `more_is_better`.

    asked: the ratio that we want, above 1 where we want to be faster.  note: what the row means, or why it is lost.
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
        """How many times better ours is."""
        if not self.peer:
            return None
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return ours / peer if self.more_is_better else peer / ours


def as_row(written: dict[str, Any]) -> Row:
    """A row out of the file that `main` wrote."""
    return Row(**{key: value for key, value in written.items() if key != "ratio"})


def timed(job: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def peak_memory() -> float:
    """The most memory that this process has used, MB."""
    # The system's own count of a process begins with that of the process that started it.
    status = Path("/proc/self/status")
    if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else ""):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_turns(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each job answers, `rounds` times, in turns that start with another job each time; a first round warms up."""
    names = list(jobs)
    answers: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for k in range(len(names)):
            name = names[(round_ + k) % len(names)]
            answer = jobs[name]()
            if round_:
                answers[name].append(answer)
    return answers


class Paused:
    """A training loop in a process of its own that stands still between its steps: `advance` lets it do one.

    command: of that process, which calls `stands_still()` after each step.  peak: the most memory that it has used, MB.
    """

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process lives
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.peak = 0.0

    def advance(self) -> float:
        """The seconds of the next step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print("go", file=self._process.stdin, flush=True)
        if not (said := self._process.stdout.readline()):
            self._errors.seek(0)
            raise RuntimeError(f"a loop ended:\n{self._errors.read()[-3000:]}")
        seconds, self.peak = map(float, said.split())
        return seconds

    def end(self) -> None:
        with self._errors, self._process:
            self._process.kill()


def stands_still() -> Callable[[], None]:
    """What a process of `Paused` calls after each step: it tells the seconds since it was let go, and waits again."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the loop prints is no answer
    sys.stdin.readline()
    started = time.perf_counter()

    def after_step() -> None:
        nonlocal started
        print(time.perf_counter() - started, peak_memory(), file=told, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # whoever measured is gone
        started = time.perf_counter()

    return after_step


def table(rows: Sequence[Row]) -> str:
    """As markdown."""
    lines = ["| | ours | peer | | times as good | asked | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        asked = "" if row.asked is None else f"{row.asked:g}"
        values = [_value(values, row.unit) for values in (row.ours, row.peer)]
        lines.append(f"| {row.what} | {values[0]} | {values[1]} | {row.peer_name} | {ratio} | {asked} | {row.note} |")
    return "\n".join(lines)


def _value(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    spread = "" if len(values) == 1 else f" ({_digits(min(values))} to {_digits(max(values))})"
    return f"{_digits(statistics.median(values))} {unit}{spread}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(doc: str | None, rows: Callable[[argparse.Namespace], Sequence[Row]], **words: Any) -> None:
    """The command of a benchmark.  words: further arguments, name=(type, default, help)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written to")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each job")
    for name, (kind, default, text) in words.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    arguments = parser.parse_args()
    found = list(rows(arguments))
    if found:
        print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in found], indent=1))
