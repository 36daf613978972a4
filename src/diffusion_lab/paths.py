"""Paths of the package, of its configs and of the logs, the cache folder, and the installation of extras."""

import os
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

IS_CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether the package is used from a checkout of the repository. Wheels contain conf/ in the package folder."""

CONF = PACKAGE.parents[1] / "conf" if IS_CHECKOUT else PACKAGE / "conf"

ROOT = PACKAGE.parents[1] if IS_CHECKOUT else Path.cwd()
"""Folder that contains logs/ by default: the repository, or the current folder if a wheel installed the package."""

LOGS_VARIABLE = "DIFFUSION_LAB_LOGS"
"""Environment variable with the folder of the logs. The setting `logs` sets it, so that child processes inherit it."""


def logs_folder() -> Path:
    """Return the folder of the logs of all commands: DIFFUSION_LAB_LOGS if it is set, else logs/ in ROOT."""
    folder = os.environ.get(LOGS_VARIABLE)
    return expanduser(folder).absolute() if folder else ROOT / "logs"


def expanduser(path: str | os.PathLike[str]) -> Path:
    """Return a path with its ~ replaced by the home folder, or unchanged if the home folder is unknown."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError


def install_command(extra: str) -> str:
    """Return the command that installs the packages of a group of optional dependencies in pyproject.toml."""
    return f"pip install -e '.[{extra}]'" if IS_CHECKOUT else f"pip install 'diffusion-lab-framework[{extra}]'"


NODE_CACHE = "DIFFUSION_LAB_NODE_CACHE"
"""Environment variable with a folder on the disk of a node, to which decoded image sets are copied from the cache."""


def default_cache_folder() -> Path:
    """Return DIFFUSION_LAB_CACHE if it is set, else the folder diffusion_lab in XDG_CACHE_HOME or ~/.cache.

    For a user without a home folder, ~ is a temporary folder.
    """
    if folder := os.environ.get("DIFFUSION_LAB_CACHE"):
        return expanduser(folder)
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = expanduser(folder)
    return (_temporary_home() / ".cache" if str(cache) == "~/.cache" else cache) / "diffusion_lab"


def provide_home() -> str | None:
    """Set the variables HOME, USER and XDG_CACHE_HOME that this process lacks, for example in a container.

    Torch, Matplotlib, W&B and the Hugging Face hub need a home folder and a user name too. Without a passwd entry and
    HOME, the home folder is a temporary folder; if no file can be created in it, only the caches are in a temporary
    folder. Returns a note for the user if a folder was replaced.
    """
    if not hasattr(os, "getuid"):
        return None
    home = expanduser("~")
    has_home = home.is_absolute()
    if not has_home:
        os.environ["HOME"] = str(home := _temporary_home())
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")) and not _has_passwd_entry():
        os.environ["USER"] = str(os.getuid())  # read by getpass.getuser
    if not has_home:
        return f"this user has no home folder; caches are in {home}, unless HOME=FOLDER selects another folder."
    if os.environ.get("XDG_CACHE_HOME") or os.environ.get("DIFFUSION_LAB_CACHE") or _is_writable(home / ".cache"):
        return None
    # A cache in ~/.cache that cannot be written may contain weights from the Hugging Face hub, so it is still read.
    name = "DIFFUSION_LAB_CACHE" if (home / ".cache").is_dir() else "XDG_CACHE_HOME"
    os.environ[name] = str(_temporary_home() / ".cache")
    os.environ.setdefault("MPLCONFIGDIR", str(_temporary_home() / "matplotlib"))
    return f"{home}/.cache is not writable; the cache is in {os.environ[name]}, unless {name}=FOLDER selects another."


def _has_passwd_entry() -> bool:
    import pwd  # only on POSIX systems

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _is_writable(folder: Path) -> bool:
    """Return whether files can be created in a folder, or whether the folder can be created."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _temporary_home() -> Path:
    """Return a folder of this user among the temporary files, which later commands use too."""
    folder = Path(tempfile.gettempdir()) / f"diffusion_lab_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # created by another user
        return Path(tempfile.mkdtemp(prefix="diffusion_lab_"))
    return folder
