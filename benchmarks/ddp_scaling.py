"""Images a second of one process and of two, a core each: how much of the second core arrives.

python benchmarks/ddp_scaling.py            # two free cores, gloo
Each measurement is a training command of its own, so that nothing is shared; they take turns.
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


def images_per_second(num_processes: int, cores: list[int], *, model: str, batch_size: int, num_steps: int) -> float:
    """Of a training run, without its first steps; the batch of each process is the same."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"model={model}", f"data.batch_size={batch_size * num_processes}", f"trainer.max_steps={num_steps}",
            "trainer=ddp" if num_processes > 1 else "trainer=cpu", "trainer.accelerator=cpu",
            f"trainer.devices={num_processes}", "trainer.precision=32-true", "trainer.log_every_n_steps=1",
            "callbacks.measure_distance=null", "callbacks.sample_images=null",
            f"callbacks.save_last.every_n_steps={10 * num_steps}", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        places = ",".join(map(str, cores[:num_processes]))
        command = ["taskset", "-c", places, sys.executable, str(ROOT / "src" / "train.py"), *words]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        with (Path(folder) / "run" / "metrics.csv").open() as file:
            rates = [float(row["images_per_second"]) for row in csv.DictReader(file) if row.get("images_per_second")]
        return rates[-1]  # a mean over the run's last batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unet_small")
    parser.add_argument("--batch-size", type=int, default=16, help="of each process")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])
    words = parser.parse_args()
    settings = {"model": words.model, "batch_size": words.batch_size, "num_steps": words.num_steps}
    one, two = [], []
    for _ in range(words.num_rounds):
        one.append(images_per_second(1, words.cores, **settings))
        two.append(images_per_second(2, words.cores, **settings))
        print(f"1 process: {one[-1]:.2f} images/s, 2 processes: {two[-1]:.2f}", flush=True)
    efficiency = statistics.median(two) / (2 * statistics.median(one))
    print(f"median: {statistics.median(one):.2f} and {statistics.median(two):.2f}; efficiency {efficiency:.1%}")


if __name__ == "__main__":
    main()
