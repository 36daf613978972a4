"""Puts numbers that were measured earlier beside each other.

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
    """Measured folders -> one table and its plots, if their numbers were made in like ways."""
    if OmegaConf.is_missing(config, "numbers"):
        raise UserError("numbers must be folders of evaluations or runs (numbers=[logs/evaluate/...]), got nothing.")
    words = config.numbers if OmegaConf.is_list(config.numbers) else [config.numbers]
    folders = [folder for word in words for folder in _folders(str(word))]
    output = Path(config.output_folder)
    alike = run_tables.write_and_print_table(folders, output, "numbers", swept=["run"], allowed=config.allow)
    print(f"everything is in {output}", flush=True)
    if not alike:
        sys.exit(1)


def _folders(word: str) -> list[Path]:
    """Those that a word names, each with something measured in or below it."""
    places = (
        sorted(map(Path, glob.glob(os.path.expanduser(word)))) if glob.has_magic(word) else [Path(word).expanduser()]
    )
    found = [place for place in places if place.is_dir() and run_tables.find_rows(place)]
    if not found:
        raise UserError(f"numbers must be folders with a metrics.json in or below them, got {word}.")
    return found


def main() -> None:
    entry.entry("compare", compare)
