"""Compare the metric values of several runs in one table.

python src/compare.py 'numbers=[logs/evaluate/A,logs/evaluate/B]'
python src/compare.py 'numbers=logs/train/*'
python src/compare.py 'numbers=logs/evaluate/*' 'allow=[sampler]'                   # values of different samplers

Results: logs/compare/<date>_<time> contains the table and a plot of each metric, against the sampling steps, the
evaluations of the network (for samplers with different costs per step) or the training step if these differ, otherwise
with one point for each run. For results that differ only in the seed, it also contains numbers_over_seeds.csv with
means and standard deviations. Without allow=[FIELD], metrics are left out that were measured with different settings,
and the exit status is 1.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.fingerprints import allowed_fields
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.comparable import write_and_print_table
from diffusion_lab.runs.find import MEASURED, find_places


def compare(config: DictConfig) -> None:
    """Write and print one table of the metric values in the folders that `numbers` lists, and plot the table.

    Exits with status 1 if values of a metric were measured with different settings that `allow` does not list.
    """
    value = None if OmegaConf.is_missing(config, "numbers") else config.numbers
    folders = [place.folder for place in find_places("numbers", value, MEASURED)]
    output = Path(config.output_folder)
    comparable = write_and_print_table(
        folders, output, "numbers", swept=["run"], allowed=allowed_fields(config.allow), numbers=value or ()
    )
    print(f"results are in {terminal_text(output)}", flush=True)
    if not comparable:
        sys.exit(1)


def main() -> None:
    entry.entry("compare", compare)


if __name__ == "__main__":
    main()
