"""Trust in run folders: which code a run folder may name, and which folders this user has written.

A run folder may come from another person. Its config may name the classes of this package, see
`config.accepted_targets`. Code from other packages needs trust: the setting `trust` names the packages. A training run
that this user starts is recorded in the state folder of the user, outside of the run folder, so that its own packages
are trusted later. The record contains the place of the folder and a digest of its config, so that a folder that was
copied or edited needs trust again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from diffusion_lab.config.accepted_targets import Target, foreign_targets
from diffusion_lab.config.overrides import OVERRIDES_FILE
from diffusion_lab.config.saved_files import LARGEST
from diffusion_lab.config.trusted_packages import checked_names, trusted_packages
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.files.regular import read_regular

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"


def require_trusted(
    config: dict[str, Any], folder: Path, *, trust: Sequence[str] = (), typed: Collection[Target] = ()
) -> None:
    """Raise UserError if the config of a run folder names code of others that the user has not trusted.

    config: plain content of the config.yaml, with current names.  trust: trusted packages, in addition to those of the
    setting.  typed: targets that the user has typed in this command.
    """
    trusted = {*trusted_packages(), *checked_names(trust, trust)}
    foreign = [t for t in foreign_targets(config) if t.package not in trusted and t not in typed]
    if not foreign or is_recorded(folder):
        return
    packages = ",".join(dict.fromkeys([*trusted, *(target.package for target in foreign)]))
    shown = ", ".join(f"{target.path} names {target.name}" for target in foreign[:3])
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    raise UserError(
        f"`trust` must name the packages whose code {folder / CONFIG} would run, but {shown}{more}; if you know who "
        f"wrote this folder and trust this code, add trust=[{packages}]."
    )


def record(folder: Path) -> None:
    """Record that this user has started the run in a folder, so that its config needs no other trust.

    Without a state folder that can be written, trust is asked for again.
    """
    file = _file(folder)
    try:
        with atomic_file(file, concurrent=True) as partial:
            partial.write_text(json.dumps({"folder": str(folder.resolve()), "sha256": _digest(folder)}) + "\n")
    except OSError as error:
        logger.debug("the run is not recorded in %s: %s", file, error)


def is_recorded(folder: Path) -> bool:
    """Return whether this user has started the run in a folder, and its config has not been changed since."""
    with suppress(OSError, ValueError):
        content = json.loads(_file(folder).read_text())
        return isinstance(content, dict) and content.get("sha256") == _digest(folder)
    return False


def _file(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return user_state_path("diffusion_lab") / "runs" / f"{name}.json"


def _digest(folder: Path) -> str:
    """Return a digest of the files that define a run.  Raises OSError if the folder has no config."""
    overrides = folder / OVERRIDES_FILE
    parts = [read_regular(file, LARGEST) for file in (folder / CONFIG, overrides) if file.exists()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
