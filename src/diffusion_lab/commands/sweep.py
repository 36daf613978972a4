"""Show the status of a sweep, during or after its runs.

python src/sweep.py status logs/train/SWEEP
python src/sweep.py status logs/train/SWEEP --allow precision      # also compare results with different precision
"""

import argparse
import logging
import sys
from pathlib import Path

from diffusion_lab.commands import logs
from diffusion_lab.config.program import command_line
from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps import table as sweep_table

logger = logging.getLogger(__name__)


def main() -> None:
    """Print the current table of a sweep's runs, and write the table to the sweep folder."""
    parser = argparse.ArgumentParser(
        prog=command_line("sweep"),
        description="Shows a table with the status of each run of a sweep, and writes the table to the sweep folder.",
    )
    parser.add_argument("command", choices=["status"], help="shows the table of the sweep's runs")
    parser.add_argument("folder", type=Path, help="sweep folder below logs/")
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="FIELD", help="fingerprint fields that may differ between results"
    )
    arguments = parser.parse_args()
    logs.configure()
    folder = arguments.folder.expanduser()
    if not folder.is_dir() or not any(folder.glob(f"*/{run_status.STATUS}")):
        logger.error("`folder` must be a sweep folder that contains runs, got %s.", folder)
        sys.exit(1)
    comparable = sweep_table.write_sweep_table(folder, arguments.allow)
    print(f"results are in {folder}")
    sys.exit(0 if comparable else 1)


if __name__ == "__main__":
    main()
