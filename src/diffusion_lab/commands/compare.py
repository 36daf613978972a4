"""Compare the metric values of several runs in one table.

python src/compare.py 'numbers=[logs/evaluate/A,logs/evaluate/B]'
python src/compare.py 'numbers=logs/train/*' 'allow=[sampler]'
"""

import glob
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.runs import tables as run_tables


def compare(config: DictConfig) -> None:
    """Write and print one table of the metric values in the folders that `numbers` lists, and plot the table.

    Exits with status 1 if values of a metric were measured with different settings that `allow` does not list.
    """
    if OmegaConf.is_missing(config, "numbers"):
        raise UserError("numbers=... must list evaluation or run folders (numbers=[logs/evaluate/A]), got no value.")
    paths = config.numbers if OmegaConf.is_list(config.numbers) else [config.numbers]
    folders = [folder for path in paths for folder in _measured_folders(str(path))]
    output = Path(config.output_folder)
    comparable = run_tables.write_and_print_table(folders, output, "numbers", swept=["run"], allowed=config.allow)
    print(f"results are in {output}", flush=True)
    if not comparable:
        sys.exit(1)


def _measured_folders(path: str) -> list[Path]:
    """Return the folders that match a path or glob pattern and have metric values in them or in a subfolder."""
    expanded = os.path.expanduser(path)
    matches = sorted(map(Path, glob.glob(expanded))) if glob.has_magic(path) else [Path(expanded)]
    folders = [match for match in matches if match.is_dir() and run_tables.find_rows(match)]
    if not folders:
        raise UserError(f"numbers=... must list folders that contain a metrics.json (also in a subfolder), got {path}.")
    return folders


def main() -> None:
    entry.entry("compare", compare)


if __name__ == "__main__":
    main()
