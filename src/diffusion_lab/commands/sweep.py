"""Show the status of a sweep, during or after its runs.

python src/sweep.py status logs/train/SWEEP
python src/sweep.py status last
python src/sweep.py status logs/train/SWEEP --allow precision              # compare results with different precision
python src/sweep.py status logs/train/SWEEP --allow num_samples seed

--allow lists fingerprint fields in which the results of the runs may differ, in addition to the swept settings.

Results: a table with the state of each run; the sweep folder then contains sweep.csv, sweep.md and plots, and for a
swept seed sweep_over_seeds.csv with means and standard deviations.
Resuming: the command that started the sweep starts only the runs that are missing, and resumes interrupted runs.
"""

import logging
import sys
from difflib import get_close_matches
from pathlib import Path

from diffusion_lab.commands import logs
from diffusion_lab.commands.help import print_help
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import allowed_fields
from diffusion_lab.runs.find import SWEEP, find_place
from diffusion_lab.sweeps import table as sweep_table

logger = logging.getLogger(__name__)


def main() -> None:
    """Print the current table of a sweep's runs, and write the table to the sweep folder."""
    logs.configure()
    if print_help("sweep", sys.argv[1:]):
        return
    try:
        logs.take_folder()
        name, allowed = _parsed(sys.argv[1:])
        folder = find_place("folder", name, SWEEP).folder
        comparable = sweep_table.write_sweep_table(folder, allowed, level=logging.ERROR)
    except UserError as error:
        logger.error("%s", error)
        sys.exit(1)
    sys.exit(0 if comparable else 1)


def _parsed(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the sweep folder and the fields of --allow.  Raises UserError for other arguments."""
    position = arguments.index("--allow") if "--allow" in arguments else len(arguments)
    named, allowed = arguments[:position], arguments[position + 1 :]
    if len(named) != 2 or named[0] != "status" or (position < len(arguments) and not allowed):
        given = " ".join(arguments) or "no arguments"
        first, *others = [*named, ""]
        is_mistyped = first != "status" and bool(get_close_matches(first, ["status"], cutoff=0.5))
        meant = " ".join(filter(None, others)) or "SWEEP_FOLDER" if is_mistyped else given
        hint = f"; perhaps you mean status {meant}" if is_mistyped or (others == [""] and first != "status") else ""
        raise UserError(f"the arguments must be: status SWEEP_FOLDER [--allow FIELD ...], got {given}{hint}.")
    key, _, folder = named[1].partition("=")
    if key in ("run", "folder", "sweep", "numbers") and not Path(named[1]).exists():
        raise UserError(f"the folder must be given without {key}=, got {named[1]}; perhaps you mean status {folder}.")
    return named[1], allowed_fields(allowed)


if __name__ == "__main__":
    main()
