"""All benchmarks beside the peers, one after the other: docs/benchmarks.json and the tables in docs/benchmarks.md.

    make bench                                          # all, about half an hour on two cores
    make bench WORDS='--only sampler_step,features'     # some; the tables of the others stay as they were

Each runs in a process of its own and takes turns with its peer inside of it. What cannot be measured so, such as ten
minutes of training each, is in files of its own.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measuring import ROOT, Row, as_row, table

BENCHMARKS = {
    "training_step": "A training step",
    "overhead": "What Lightning and our module add",
    "network": "The network alone",
    "optimizer": "Optimiser and average",
    "sampler_step": "A sampler's step outside the network",
    "features": "Features and distance",
    "loading": "Loading images",
    "checkpoints": "Checkpoints",
    "startup": "Start-up",
    "scaling": "How costs grow",
}
RECORD, PAGE = ROOT / "docs" / "benchmarks.json", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench wrote -->"
PEERS = ("diffusers", "denoising-diffusion-pytorch", "torchmetrics", "torch-fidelity", "torchvision", "datasets")


def machine() -> str:
    """Processor, cores that this process may use, and what it can multiply."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next(iter(re.findall(r"model name\s*: (.+)", text)), platform.processor() or platform.machine())
    units = "".join(f", {unit}" for unit in ("avx512_bf16", "amx_bf16") if unit in text)
    return f"{len(os.sched_getaffinity(0))} cores of {os.cpu_count()} of {name}{units}"


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", *PEERS):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def measured(name: str, words: list[str]) -> dict[str, Any]:
    """The rows of one benchmark, and where and when they were measured."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / f"{name}.py"), "--json", file.name, *words]
        print(f"== {' '.join(command[3:4] + words)}", flush=True)
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
        print(done.stdout, flush=True)
        return {
            "rows": json.loads(Path(file.name).read_text()),
            "machine": machine(),
            "versions": versions(),
            "date": time.strftime("%Y-%m-%d"),
            "minutes": round((time.monotonic() - started) / 60, 1),
        }


def short_of(rows: list[Row]) -> list[Row]:
    """Rows in which a peer is ahead, noise of 4% apart, and rows short of what was asked."""
    return [row for row in rows if row.ratio is not None and row.ratio < max(0.96, 0.96 * (row.asked or 1))]


def page(record: dict[str, Any]) -> str:
    """The tables: first all rows in which we lose or fall short, then each benchmark."""
    parts = {name: [as_row(row) for row in record[name]["rows"]] for name in BENCHMARKS if name in record}
    lost = [row for rows in parts.values() for row in short_of(rows)]
    lines = [BEGIN, "## Where a peer is ahead, or less was reached than asked", ""]
    lines += [table(lost) if lost else "Nowhere, up to the 4% that are noise here."]
    for name, rows in parts.items():
        about = record[name]
        packages = ", ".join(f"{package} {found}" for package, found in about["versions"].items())
        lines += ["", f"## {BENCHMARKS[name]}", "", f"`python benchmarks/{name}.py`", "", table(rows), ""]
        lines += [f"{about['machine']}; {packages}; {about['date']}; took {about['minutes']} minutes."]
        if name == "scaling":
            lines += ["", "![Seconds against batch, side, width, samples and runs](scaling.png)"]
    return "\n".join([*lines, END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="names of benchmarks, with commas between them")
    parser.add_argument("--path", default="", help="folder of CIFAR-10 as parquet, for loading")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each job")
    arguments = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in arguments.only.split(","):
        if name not in BENCHMARKS:
            sys.exit(f"error: --only must name some of {', '.join(BENCHMARKS)}, got {name}.")
        path = ["--path", arguments.path] if name == "loading" and arguments.path else []
        record[name] = measured(name, ["--rounds", str(arguments.rounds), *path])
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + page(record) + rest.partition(END)[2])
    print(f"written to {RECORD} and {PAGE}")


if __name__ == "__main__":
    main()
