"""Checks of the file search.db of a search with Optuna, which another person may have written."""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError
from diffusion_lab.runs.trust import is_recorded

SEARCH = "search.db"

WITHOUT_PICKLES = tuple(
    f"optuna.samplers.{name}Sampler"
    for name in ("BruteForce", "GP", "Grid", "NSGAII", "NSGAIII", "PartialFixed", "QMC", "Random", "TPE")
)
"""Samplers that read only numbers and texts from the file. CmaEsSampler, for example, loads a pickle from it."""

_ACTS = re.compile(r"\b(GENERATED|VIRTUAL)\b|\bAS\s*\(", re.IGNORECASE)


def require_plain_search(folder: Path, sampler: Mapping[str, Any]) -> None:
    """Raise UserError if the search in a sweep folder could run code, or compute without an end, when it is continued.

    folder: folder of the sweep.  sampler: config of the Optuna sampler.
    """
    file = folder / SEARCH
    is_own = any(is_recorded(path) for path in folder.glob("[!.]*") if path.is_dir())
    if is_own or not (file.exists() or file.is_symlink()):
        return
    advice = "; sweep.name=NAME starts a search in another folder."
    if file.is_symlink() or not file.is_file():
        raise UserError(f"{file} must be a regular file, because no run next to it was recorded as yours{advice}")
    if (name := str(sampler.get("_target_"))) not in WITHOUT_PICKLES:
        raise UserError(
            f"hydra.sweeper.sampler must be one of optuna.samplers that load no pickle from {file}, because no run "
            f"next to it was recorded as yours, got {name}{advice}"
        )
    if problem := _problem(file):
        raise UserError(f"{file} must be the file of a search of this package, but {problem}{advice}")


@contextmanager
def reading_search(folder: Path) -> Iterator[None]:
    """Raise UserError for the errors of Optuna in a block that reads a file with unexpected content."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OptunaError, SQLAlchemyError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / SEARCH} cannot be read as Optuna writes it ({type(error).__name__}); sweep.name=NAME starts a "
            "search in another folder."
        ) from error


def _problem(file: Path) -> str | None:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            entries = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        return f"it cannot be read ({error})"
    for kind, name, sql in entries:
        if kind not in ("table", "index") or _ACTS.search(str(sql)):
            return f"it contains more than tables of values ({kind} {name})"
    return None
