"""Compare the metric values of several runs in one table.

python src/compare.py 'numbers=[logs/evaluate/A,logs/evaluate/B]'
python src/compare.py 'numbers=logs/train/*'
python src/compare.py 'numbers=logs/evaluate/*' 'allow=[sampler]'                   # values of different samplers

Results: logs/compare/<date>_<time> contains the table and a plot of each metric, against the sampling steps, the
evaluations of the network (for samplers with different costs per step) or the training step if these differ, otherwise
with one point for each run. A note names the folders without results. For results that differ only in the seed, the
folder also contains numbers_over_seeds.csv with means and standard deviations. Without allow=[FIELD], metrics that were
measured with different settings are only in the CSV file, and the exit status is 1.
"""

import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.fingerprints import allowed_fields
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.find import MEASURED, find_places, searched
from diffusion_lab.runs.status import STATUS
from diffusion_lab.runs.tables.comparable import write_and_print_table
from diffusion_lab.runs.tables.table import short_paths
from diffusion_lab.runs.without_results import why_no_results

logger = logging.getLogger(__name__)


def compare(config: DictConfig) -> None:
    """Write and print one table of the metric values in the folders that `numbers` lists, and plot the table.

    Exits with status 1 if values of a metric were measured with different settings that `allow` does not list.
    """
    value = None if OmegaConf.is_missing(config, "numbers") else config.numbers
    folders = [place.folder for place in find_places("numbers", value, MEASURED)]
    _note_without_results([value] if isinstance(value, str) else list(value or ()), folders)
    output = Path(config.output_folder)
    comparable = write_and_print_table(
        folders,
        output,
        "numbers",
        swept=["run"],
        allowed=allowed_fields(config.allow),
        numbers=value or (),
        level=logging.ERROR,
    )
    print(f"results are in {terminal_text(output)}", flush=True)
    if not comparable:
        sys.exit(1)


def _note_without_results(values: Sequence[str], folders: Sequence[Path]) -> None:
    """Log the folders of commands that the values of `numbers` match and that contain no results.

    folders: folders with results that the values name.
    """
    matched = dict.fromkeys(folder for value in values for folder in _matched(str(value), folders))
    below = [file.parent for folder in (*matched, *folders) for file in sorted(folder.rglob(STATUS))]
    empty = [folder for folder in dict.fromkeys([*matched, *below]) if not MEASURED.is_one(folder)]
    if empty:
        names = short_paths([*folders, *empty])
        reasons = [(names[folder], why_no_results(folder)) for folder in empty]
        texts = [f"{name} ({reason})" if reason else name for name, reason in reasons]
        logger.info("no results in %s", terminal_text("; ".join(texts)))


def _matched(value: str, folders: Sequence[Path]) -> list[Path]:
    """Return the folders that a glob pattern matches where it also matches folders with results."""
    if not glob.has_magic(value):
        return []
    for base, path in searched(value, MEASURED):
        found = [Path(os.path.abspath(base / match)) for match in sorted(glob.glob(path, root_dir=base))]
        if set(found) & set(folders):
            return [folder for folder in found if folder.is_dir()]
    return []


def main() -> None:
    entry.entry("compare", compare)


if __name__ == "__main__":
    main()
