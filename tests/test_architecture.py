"""The cuts between the parts of the package, as the folder names promise them."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_lab

PACKAGE = Path(diffusion_lab.__file__).parent
MATHEMATICS = (
    "process",
    "objectives",
    "samplers",
    "networks",
    "ema",
    "power_ema",
    "snapshots",
    "denoiser",
    "noisy_classifier",
    "likelihood",
    "reconstruction",
    "optimizers",
    "step_guard",
)
DOORS = (
    *("acceleration", "config_check", "config_entry", "config_values", "guides"),
    *(
        "runs",
        "run_building",
        "run_evaluations",
        "run_folder",
        "run_images",
        "run_resume",
        "run_tables",
        "run_training",
    ),
    *("sweeps", "sweep_jobs", "slurm_jobs"),
)


def modules(prefix: str = "diffusion_lab") -> list[str]:
    found = pkgutil.walk_packages([str(PACKAGE)], "diffusion_lab.")
    return [module.name for module in found if module.name.startswith(prefix)]


def leaves_out(names: list[str], *libraries: str) -> bool:
    """Whether a fresh process that imports `names` has loaded none of `libraries`."""
    code = f"import sys, {', '.join(names)}; sys.exit(any(name in sys.modules for name in {libraries!r}))"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_mathematics_loads_without_lightning_hydra_or_torchvision() -> None:
    names = [name for part in MATHEMATICS for name in modules(f"diffusion_lab.{part}")]
    assert len(names) > 15
    assert leaves_out(names, "lightning", "hydra", "omegaconf", "torchmetrics", "torchvision")


def test_the_check_above_can_fail() -> None:
    assert not leaves_out(["diffusion_lab.process", "hydra"], "hydra")


def test_the_command_line_loads_without_torch() -> None:
    assert leaves_out([f"diffusion_lab.{door}" for door in DOORS], "torch", "lightning", "datasets")


def imports(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    names = set()
    for node in tree:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_the_doors_know_hydra(path: Path) -> None:
    knows = any(name.split(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    assert knows == (path.stem in DOORS)


LAYERS = (
    "process",
    "networks",
    "objectives",
    "denoiser",
    "noisy_classifier",
    "samplers",
    "likelihood",
    "training_module",
    "lightning_module",
    "classifier_module",
    "callbacks",
    "runs",
)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_imports_point_down_the_layers(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own not in LAYERS:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("diffusion_lab.")}
    above = LAYERS[LAYERS.index(own) + 1 :]
    assert not used & set(above)


def test_networks_and_the_average_import_no_sibling() -> None:
    for path in [*(PACKAGE / "networks").glob("*.py"), PACKAGE / "ema.py"]:
        siblings = {name for name in imports(path) if name.startswith("diffusion_lab.")}
        assert all(name.startswith("diffusion_lab.networks") for name in siblings), path


def test_source_files_stay_short_enough_to_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert all(length <= (400 if path.parent.name == "networks" else 300) for path, length in lengths.items()), lengths
