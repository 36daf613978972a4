"""The order of imports, the libraries that each folder may load, and the sizes of files, functions and constructors."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusion_lab

PACKAGE = Path(diffusion_lab.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLAT = {  # modules directly under the package; everything else is in a folder
    *("__init__", "__main__", "checkpoint_files", "contracts", "denoiser", "errors", "fingerprints"),
    *("latents", "low_resolution", "masking", "paths", "pixels", "randomness"),
}

# A folder or flat module imports only from lines above its own, and from its own folder.
ORDER = (
    ("errors", "paths", "contracts", "files"),
    ("fingerprints", "checkpoint_files", "randomness"),
    ("pixels", "process", "networks"),
    ("ema", "objectives", "denoiser", "low_resolution", "masking"),
    ("guidance",),
    ("samplers",),
    ("inverse_problems",),
    ("edits",),
    ("distributed",),
    ("config", "reporting", "latents"),
    ("data", "features"),
    ("metrics",),
    ("training",),
    ("generation",),
    ("evaluation",),
    ("callbacks",),
    ("runs", "interop"),
    ("sweeps",),
    ("commands",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}

MATHEMATICS = (
    "process",
    "objectives",
    "samplers",
    "inverse_problems",
    "edits",
    "guidance",
    "networks",
    "ema",
    "denoiser",
    "masking",
)
"""Folders that import torch alone."""

KNOW_HYDRA = ("config", "runs", "sweeps", "commands")

START_UP = ("commands.entry", "config", "runs.load", "runs.resume", "runs.train", "sweeps.plan", "sweeps.slurm")
"""Modules that every command loads before it has checked its arguments."""


def modules(prefix: str) -> list[str]:
    found = pkgutil.walk_packages([str(PACKAGE)], "diffusion_lab.")
    return [module.name for module in found if f"{module.name}.".startswith(f"diffusion_lab.{prefix}.")]


def loads_none_of(names: list[str], *libraries: str) -> bool:
    """Whether a new process that imports `names` has loaded none of `libraries`."""
    code = f"import sys, {', '.join(names)}; sys.exit(any(name in sys.modules for name in {libraries!r}))"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, at any depth, and whether it does so when it is loaded itself."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node in tree.body) for alias in node.names)


def part_of(module: str) -> str:
    """The folder or flat module below diffusion_lab that an imported name belongs to."""
    return module.split(".")[1]


def test_the_mathematics_loads_without_lightning_hydra_or_torchvision() -> None:
    names = [name for part in MATHEMATICS for name in modules(part)]
    assert len(names) > 40
    assert loads_none_of(names, "lightning", "hydra", "omegaconf", "torchmetrics", "torchvision")


def test_the_check_above_can_fail() -> None:
    assert not loads_none_of(["diffusion_lab.errors", "hydra"], "hydra")


def test_a_command_starts_without_torch() -> None:
    assert loads_none_of([f"diffusion_lab.{name}" for name in START_UP], "torch", "lightning", "datasets")


def test_only_the_listed_modules_lie_directly_under_the_package() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == FLAT
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(LEVEL) - FLAT


@pytest.mark.parametrize("part", sorted(LEVEL))
def test_imports_point_down(part: str) -> None:
    files = [PACKAGE / f"{part}.py"] if part in FLAT else sorted((PACKAGE / part).rglob("*.py"))
    names = [name for path in files for name, _ in imported(path) if name.startswith("diffusion_lab.")]
    used = {part_of(name) for name in names} - {part, "__version__"}
    assert {name for name in used if LEVEL[name] >= LEVEL[part]} == set()


def test_no_modules_import_each_other() -> None:
    graph = {name: {f for f, at_load in imported(path) if at_load} for path in FILES for name in [dotted(path)]}
    names = set(graph)
    edges = {
        name: {target for used in uses for target in (used, used.rpartition(".")[0]) if target in names} - {name}
        for name, uses in graph.items()
    }
    assert circles(edges) == []


def dotted(path: Path) -> str:
    return ".".join(("diffusion_lab", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that remain when those without imports among the remaining ones are removed again and again."""
    left = {name: set(uses) for name, uses in edges.items() if not is_package(name)}
    while ready := [name for name, uses in left.items() if not uses & set(left)]:
        for name in ready:
            del left[name]
    return sorted(left)


def is_package(name: str) -> bool:
    """Packages re-export their modules, so a module may import names from its own package's siblings through it."""
    return (PACKAGE.parent / name.replace(".", "/")).is_dir()


def test_the_check_for_circles_can_fail() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("part", sorted(LEVEL))
def test_hydra_and_omegaconf_appear_in_four_folders_alone(part: str) -> None:
    files = [PACKAGE / f"{part}.py"] if part in FLAT else sorted((PACKAGE / part).rglob("*.py"))
    libraries = {name.split(".")[0] for path in files for name, _ in imported(path)}
    assert bool(libraries & {"hydra", "omegaconf"}) == (part in KNOW_HYDRA)


def test_networks_and_averages_import_no_other_folder() -> None:
    for part, also in (("networks", {"contracts"}), ("ema", {"checkpoint_files", "contracts"})):
        used = {
            part_of(n) for path in (PACKAGE / part).glob("*.py") for n, _ in imported(path) if "diffusion_lab." in n
        }
        assert used <= {part} | also


def test_every_target_in_conf_is_exported_by_a_package_or_flat_module() -> None:
    conf = PACKAGE.parents[1] / "conf"
    lines = [line for path in conf.rglob("*.yaml") for line in path.read_text().splitlines() if "_target_:" in line]
    targets = {line.partition("_target_:")[2].split("#")[0].strip() for line in lines}
    ours = {target for target in targets if target.startswith("diffusion_lab.")}
    assert len(ours) > 80
    assert {target for target in ours if target.count(".") != 2} == set()


def test_files_are_short_enough_to_read() -> None:
    lengths = {dotted(path): len(path.read_text().splitlines()) for path in FILES}
    assert {n: k for n, k in lengths.items() if k > (400 if n.startswith("diffusion_lab.networks") else 300)} == {}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{dotted(path)}.{node.name}", node


def test_functions_have_at_most_sixty_lines() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_constructors_have_at_most_twelve_arguments_and_networks_fourteen() -> None:
    counts = {
        name: len(node.args.args) + len(node.args.kwonlyargs) - 1
        for name, node in functions()
        if node.name == "__init__"
    }
    limits = {name: 14 if name.startswith("diffusion_lab.networks") else 12 for name in counts}
    assert {name: count for name, count in counts.items() if count > limits[name]} == {}
