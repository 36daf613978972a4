"""The console command, the exports of `diffusion_lab`, and a wheel in an environment without the repository."""

import ast
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import diffusion_lab
from diffusion_lab.commands.console import COMMANDS, TYPED, module_name, typed_name
from diffusion_lab.config import program
from diffusion_lab.config.program import PROGRAM_VARIABLE, command_line, interpreter_arguments
from support.commands import TINY, table

ROOT = Path(__file__).parents[1]
COMMAND_FOLDER = Path(diffusion_lab.__file__).with_name("commands")
TWO_RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a new process.  environment: additional environment variables."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **environment}, text=True, capture_output=True
    )


def modules_with(function: str) -> set[str]:
    """Names of the modules in commands/ that define a function."""
    return {
        path.stem
        for path in COMMAND_FOLDER.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    }


def test_every_command_module_and_script_is_a_console_command() -> None:
    scripts = {path.stem for path in (ROOT / "src").glob("*.py")}
    assert scripts == {*COMMANDS, "train_fashion_cnn"} == modules_with("main") - {"console"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_module_runs_with_python_m_as_lightning_starts_other_ranks(name: str) -> None:
    assert (COMMAND_FOLDER / f"{name}.py").read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')


def test_the_help_lists_each_command_on_one_line_and_loads_neither_torch_nor_hydra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['diffusion-lab', '--help']; from diffusion_lab.commands.console import main; main(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'hydra', 'omegaconf')))"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2] == "usage: diffusion-lab COMMAND [OVERRIDES]"
    assert "  train             Train one diffusion model, or several models in a sweep." in lines
    assert [module_name(line.split()[0]) for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert max(map(len, lines)) <= 120


def test_messages_and_the_console_have_the_same_names_of_commands() -> None:
    assert program.TYPED == TYPED
    assert [module_name(typed_name(name)) for name in COMMANDS] == list(COMMANDS)
    assert module_name("import-weights") == module_name("import") == "import_weights"


def test_an_unknown_command_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    done = python("-m", "diffusion_lab", "trian", "data=cifar10", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the command must be one of train, train-classifier, prepare, sample, ")
    assert done.stderr.endswith(", got trian; perhaps you mean train.\n")


def test_the_help_of_a_command_contains_the_command_line_that_was_used(tmp_path: Path) -> None:
    done = python("-m", "diffusion_lab", "inspect-data", "--help", cwd=tmp_path)
    assert "\n  python -m diffusion_lab inspect-data data=cifar10\n" in done.stdout


def test_messages_contain_the_command_line_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    assert command_line("train_classifier") == "python src/train_classifier.py"
    monkeypatch.setenv(PROGRAM_VARIABLE, "diffusion-lab")
    assert command_line("train_classifier") == "diffusion-lab train-classifier"


def test_the_console_command_imports_from_the_current_folder_as_python_m_does(tmp_path: Path) -> None:
    (tmp_path / "my_project.py").write_text("NAME = 'found'\n")
    code = (
        "import sys; sys.path.pop(0); sys.argv = ['diffusion-lab', '--version']; "
        "from diffusion_lab.commands.console import main; main(); import my_project; print(my_project.NAME)"
    )
    assert python("-c", code, cwd=tmp_path).stdout.split() == [diffusion_lab.__version__, "found"]


def test_other_processes_start_with_the_script_or_the_module_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["src/train.py", "seed=1"])
    assert interpreter_arguments() == (str(Path("src/train.py").resolve()),)
    monkeypatch.setattr(main, "__spec__", importlib.import_module("diffusion_lab.commands.train").__spec__)
    assert interpreter_arguments() == ("-m", "diffusion_lab.commands.train")


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("diffusion-lab tr", [typed_name(command) for command in COMMANDS]),  # the shell selects the matches
        ("diffusion-lab show-schedule schedule=v", ["schedule=ve", "schedule=vp"]),
        ("diffusion-lab train schedule=cosine optimizer.l", ["optimizer.lr="]),
        pytest.param("diffusion-lab trian schedule=v", [], marks=pytest.mark.full),
    ],
)
def test_the_shell_completes_commands_settings_and_choices(line: str, completions: list[str], tmp_path: Path) -> None:
    done = python("-m", "diffusion_lab", "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line)
    assert (done.stdout.split(), done.stderr) == (completions, "")


def test_the_shell_completion_is_installed_for_the_console_command() -> None:
    code = "import sys; sys.argv[0] = '/usr/bin/diffusion-lab'; from diffusion_lab.commands.console import main; main()"
    for arguments in (["train", "-sc", "install=bash"], ["-sc", "install=bash"]):
        assert python("-c", code, *arguments).stdout.endswith("-F hydra_bash_completion diffusion-lab\n")


def test_importing_the_package_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys, diffusion_lab; dir(diffusion_lab); sys.exit('torch' in sys.modules)"
    assert python("-c", code, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", diffusion_lab._PACKAGES)
def test_the_package_exports_all_public_names_of_a_folder(name: str) -> None:
    module = getattr(diffusion_lab, name)
    assert all(getattr(diffusion_lab, exported) is getattr(module, exported) for exported in module.__all__)
    assert {exported for exported, package in diffusion_lab._exports().items() if package == name} == {*module.__all__}


def test_no_two_folders_export_the_same_name_and_no_name_is_that_of_a_module() -> None:
    packages = [getattr(diffusion_lab, name).__all__ for name in diffusion_lab._PACKAGES]
    names = [name for exported in (*packages, *diffusion_lab._MODULES.values()) for name in exported]
    modules = {path.stem for path in COMMAND_FOLDER.parent.iterdir()}
    assert len(names) == len(set(names) - modules) > 180
    starred: dict[str, Any] = {}
    exec("from diffusion_lab import *", starred)
    assert {*starred} - {"__builtins__"} == {*names, "__version__"}
    assert {*dir(diffusion_lab)} >= {*names, *diffusion_lab._PACKAGES}


def test_every_folder_with_public_names_is_exported() -> None:
    folders = {
        path.parent.name for path in COMMAND_FOLDER.parent.glob("*/__init__.py") if "__all__" in path.read_text()
    }
    exported = {*diffusion_lab._PACKAGES, *diffusion_lab._MODULES}
    assert folders - exported == {"config", "distributed", "edits"}  # tasks of the command edit, by their own folder


def test_type_checkers_see_the_exported_names() -> None:
    (block,) = (node for node in ast.parse(Path(diffusion_lab.__file__).read_text()).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen: dict[str, set[str]] = {}
    for node in imports:
        seen.setdefault(str(node.module).removeprefix("diffusion_lab."), set()).update(a.name for a in node.names)
    stars = {package: {"*"} for package in diffusion_lab._PACKAGES}
    assert seen == stars | {name: {*exported} for name, exported in diffusion_lab._MODULES.items()}


def test_a_name_that_is_not_exported_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'GausianProcess'; perhaps you mean Gauss"):
        _ = diffusion_lab.GausianProcess  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from a copy of the repository, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "repository"
    copy.mkdir()
    for name in ("src", "conf", "tests", "docs", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "earlier_runs")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    build = ("pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(copy))
    done = python("-m", *build)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(copy)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs in a new environment with this wheel; libraries come from the running environment."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(environment)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = ("install", "--quiet", "--no-deps", "--no-index", str(wheel))
    done = python("-m", "pip", "--python", str(environment / "bin" / "python"), *install)
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def run(program: Path, *arguments: str, cwd: Path) -> str:
    """Run an installed program outside of the repository, check that it succeeds, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *arguments], cwd=cwd, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.full
def test_a_wheel_contains_the_package_its_configs_and_its_data_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = Path(diffusion_lab.__file__).parent
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(package.parent).as_posix() for path in files}
    expected |= {f"diffusion_lab/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected |= {f"hydra_plugins/{path.name}" for path in (ROOT / "src" / "hydra_plugins").glob("*.py")}
    assert names == expected
    assert {"diffusion_lab/py.typed", "diffusion_lab/features/fashion_cnn.pt", "diffusion_lab/conf/train.yaml"} < names


@pytest.mark.full
def test_an_installed_package_trains_samples_evaluates_and_sweeps_in_the_current_folder(
    installed: Path, tmp_path: Path
) -> None:
    program, interpreter = installed / "diffusion-lab", installed / "python"
    output = run(program, "train", "experiment=quickstart", "trainer.max_steps=20", "num_samples=100", cwd=tmp_path)
    assert "\n  diffusion-lab sample run=" in output
    (folder,) = (tmp_path / "logs" / "train").iterdir()
    assert json.loads((folder / "summary.json").read_text())["steps"] == 20

    settings = (f"run={folder}", "sampler.num_steps=5")
    run(program, "sample", *settings, "num_images=4", "hydra.run.dir=sampled", cwd=tmp_path)
    assert len(list(tmp_path.glob("sampled/images/*.png"))) == 4
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "diffusion_lab")
    ranks = ("trainer=ddp", "trainer.accelerator=cpu")
    for name, start in (("one", [str(program)]), ("two", [str(interpreter), *torchrun])):
        arguments = (*start[1:], "evaluate", *settings, "num_samples=100", f"hydra.run.dir={name}")
        run(Path(start[0]), *arguments, *(ranks if name == "two" else ()), cwd=tmp_path)
    (one,), (two,) = (json.loads((tmp_path / name / "metrics.json").read_text())["numbers"] for name in ("one", "two"))
    assert math.isclose(one["value"], two["value"], rel_tol=1e-5)

    sweep = ("-m", *TINY, "seed=1,2", "hydra/launcher=local_parallel", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    run(program, "train", *sweep, cwd=tmp_path)
    assert [(row["seed"], row["state"], row["step"]) for row in table(tmp_path / "sweep" / "sweep.csv")] == [
        ("1", "finished", "2"), ("2", "finished", "2"),
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "sampled", "one", "two", "sweep"}


@pytest.mark.full
@pytest.mark.parametrize("start", [["diffusion-lab"], ["python", "-m", "diffusion_lab"]])
def test_lightning_starts_the_other_ranks_of_an_installed_command(
    start: list[str], installed: Path, tmp_path: Path
) -> None:
    run(installed / start[0], *start[1:], "train", *TINY, *TWO_RANKS, cwd=tmp_path)
    (folder,) = (tmp_path / "logs" / "train").iterdir()  # both ranks use one folder
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    run(installed / start[0], *start[1:], "train", "resume=last", "trainer.max_steps=4", cwd=tmp_path)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4
