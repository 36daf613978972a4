"""Compare the throughput of one rank with that of two ranks, one core per rank.

    python benchmarks/ddp_scaling.py            # needs two idle cores; uses gloo

Each measurement is a separate training command, so that nothing is shared. The two kinds are measured in turns.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def images_per_second(num_ranks: int, cores: list[int], *, model: str, batch_size: int, num_steps: int) -> float:
    """Return the throughput of a training run, its first steps excluded.  batch_size: per rank."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"model={model}", f"data.batch_size={batch_size * num_ranks}", f"trainer.max_steps={num_steps}",
            "trainer=ddp" if num_ranks > 1 else "trainer=cpu", "trainer.accelerator=cpu",
            f"trainer.devices={num_ranks}", "trainer.precision=32-true", "trainer.log_every_n_steps=1",
            "callbacks.measure_distance=null", "callbacks.sample_images=null",
            f"callbacks.save_last.every_n_steps={10 * num_steps}", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        core_list = ",".join(map(str, cores[:num_ranks]))
        command = ["taskset", "-c", core_list, sys.executable, str(ROOT / "src" / "train.py"), *overrides]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        with (Path(folder) / "run" / "metrics.csv").open() as file:
            rates = [float(row["images_per_second"]) for row in csv.DictReader(file) if row.get("images_per_second")]
        return rates[-1]  # a mean over the last batches of the run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unet_small")
    parser.add_argument("--batch-size", type=int, default=16, help="images per rank and step")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--num-rounds", type=int, default=3, help="how often each kind is measured")
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1], help="numbers of the two cores")
    arguments = parser.parse_args()
    settings = {"model": arguments.model, "batch_size": arguments.batch_size, "num_steps": arguments.num_steps}
    one, two = [], []
    for _ in range(arguments.num_rounds):
        one.append(images_per_second(1, arguments.cores, **settings))
        two.append(images_per_second(2, arguments.cores, **settings))
        print(f"1 rank: {one[-1]:.2f} images/s, 2 ranks: {two[-1]:.2f} images/s", flush=True)
    efficiency = statistics.median(two) / (2 * statistics.median(one))
    print(f"median: {statistics.median(one):.2f} and {statistics.median(two):.2f}; efficiency {efficiency:.1%}")


if __name__ == "__main__":
    main()
