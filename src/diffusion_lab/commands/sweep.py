"""What became of a sweep, at any time.

python src/sweep.py status logs/train/SWEEP
python src/sweep.py status logs/train/SWEEP --allow precision      # a field in which its numbers may differ
"""

import argparse
import sys
from pathlib import Path

from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps import table as sweep_table


def main() -> None:
    """Sweep folder -> the table of its runs, brought up to date, in the folder too."""
    parser = argparse.ArgumentParser(
        description="What became of a sweep: one row a run, in its folder as sweep.csv too."
    )
    parser.add_argument("command", choices=["status"], help="shows the table of the sweep's runs")
    parser.add_argument("folder", type=Path, help="of a sweep, below logs/")
    parser.add_argument("--allow", nargs="+", default=[], metavar="FIELD", help="in which numbers may differ")
    words = parser.parse_args()
    folder = words.folder.expanduser()
    if not folder.is_dir() or not any(folder.glob(f"*/{run_status.STATUS}")):
        print(f"error: folder must be that of a sweep, with runs in it, got {folder}.", file=sys.stderr)
        sys.exit(1)
    alike = sweep_table.write_sweep_table(folder, words.allow)
    print(f"everything is in {folder}")
    sys.exit(0 if alike else 1)
