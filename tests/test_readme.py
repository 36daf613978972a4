"""README.md and docs/: the order of the commands, that each can be composed, and that all links lead to a place."""

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from diffusion_lab.commands.console import COMMANDS, module_name
from diffusion_lab.commands.import_weights import with_source
from diffusion_lab.commands.show_schedule import split_schedules
from diffusion_lab.config.command_line import as_hydra_arguments
from diffusion_lab.config.library_classes import with_plus
from diffusion_lab.paths import CONF
from support.commands import run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NAMES = (
    *("training", "sweeps", "sampling", "editing", "evaluation", "resuming", "guidance"),
    *("weights", "fine_tuning", "data", "cluster", "own_code", "library", "architecture"),
)
GUIDES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in NAMES)]
"""The pages that explain how something is done, in the order in which README.md links to them."""
PROGRAMS = r"(?:python|diffusion-lab|torchrun|srun|make|pip|\.|bash|sbatch)"


@pytest.fixture(autouse=True)
def hydra_in_conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def commands(page: Path) -> list[str]:
    """Return the commands in the code blocks of a page, with their continuation lines, in order."""
    text = re.sub(r" *\\\n +", " ", page.read_text())
    return re.findall(rf"^    ({PROGRAMS} .*)$", text, re.MULTILINE)


def overrides(command: str) -> tuple[str, list[str]] | None:
    """Return the name and the words of a command that Hydra configures; None for other programs."""
    words = shlex.split(command, comments=True)
    scripts = [k for k, word in enumerate(words) if re.fullmatch(r"(\S*/)?src/\w+\.py", word)]
    if scripts:
        return Path(words[scripts[0]]).stem, words[scripts[0] + 1 :]
    name = module_name(words[1]) if words[0] == "diffusion-lab" else ""
    return (name, words[2:]) if name in COMMANDS else None


def composable(name: str, words: list[str]) -> list[str]:
    """Return the words as overrides of one run: the first values of a sweep, without flags and new config folders."""
    if name == "show_schedule":
        words = split_schedules(words)
    if name == "import_weights":
        words = with_source(words)
    arguments = as_hydra_arguments(name, words)
    is_sweep = "-m" in arguments
    kept = [word for word in arguments if not re.match(r"-|hydra", word) and "(" not in word]
    if is_sweep:
        kept = [word if re.search(r"=[\[\"'{]", word) else word.partition(",")[0] for word in kept]
    return with_plus(name, kept)


def all_commands() -> list[tuple[str, str]]:
    found = [(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page)]
    return [(page, command) for page, command in found if overrides(command) is not None]


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_a_command_in_the_documentation_can_be_composed(page: str, command: str) -> None:
    parsed = overrides(command)
    assert parsed is not None
    name, words = parsed
    if name in ("sweep", "train_fashion_cnn") or "--help" in words or "--config-dir" in words or "..." in words:
        return
    hydra.compose(name, overrides=composable(name, words))


def test_the_environment_is_activated_before_the_first_command_that_needs_it() -> None:
    words = [command.split()[0] for command in commands(PAGES[0])]
    assert words.index(".") < words.index("python")
    assert words.index("make") < words.index(".")


def test_every_script_is_in_the_table_of_commands() -> None:
    text = PAGES[0].read_text()
    assert all(f"| `src/{name}.py` |" in text for name in COMMANDS)


def links(page: Path) -> list[str]:
    """Return the targets of the links and images of a page, without those of other sites."""
    text = re.sub(r"^    .*$|`[^`]*`", "", page.read_text(), flags=re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_lists_every_page_and_the_readme_links_to_every_guide_in_order() -> None:
    assert sorted(links(DOCS / "README.md")) == sorted(
        ["../README.md", *(page.name for page in DOCS.glob("*.md") if page.name != "README.md")]
    )
    linked = [link for link in links(GUIDES[0]) if link.endswith(".md") and link != "docs/README.md"]
    assert [ROOT / link for link in linked if ROOT / link in GUIDES] == GUIDES[1:]
    assert len(linked) == len(set(linked))


def test_the_readme_stays_a_front_page() -> None:
    assert GUIDES[0].stat().st_size < 25_000


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_a_page_starts_with_its_readers(page: Path) -> None:
    assert page.read_text().split("\n\n")[1].startswith("This page is for ")


def test_the_config_files_of_own_code_can_be_composed(tmp_path: Path) -> None:
    page = (DOCS / "own_code.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", page, re.MULTILINE)]
    names = {"# Convolutional": "model/my_net", "# @package": "experiment/mine", "# Noise": "schedule/my_schedule"}
    files = {name: block for block in blocks for start, name in names.items() if block.strip().startswith(start)}
    assert files.keys() == set(names.values())
    files["callbacks/my_callback"] = "my_callback: {_target_: my_project.MyCallback}"
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(content.strip() + "\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", "schedule=my_schedule"]
    config = hydra.compose("train", overrides=words)
    assert (config.model.width, config.schedule.power, config.trainer.max_steps) == (64, 2.0, 1000)
    assert config.data.batch_size == 64  # of the quick start
    assert "my_callback" in config.callbacks


NOT_HERE = (
    r"(?<!num_)images=|trainer=(gpu|ddp)|launcher=slurm|push=|'label=red cars'|'numbers=logs/evaluate/\*'|"
    r"data=cifar10(?! data\.path)|experiment=(?!quickstart)|--config-dir|--nproc|import_weights\.py|verify\.py run="
)
"""Commands that need a GPU, several ranks, Slurm, a download, an upload, another package, or images, weights or results
that no earlier command provides; only composed."""

FEW_STEPS = [
    "model=unet_quick", "model.channels=8", "trainer.max_steps=2", "data.batch_size=4", "num_samples=12",
    "callbacks.sample_images=null", "callbacks.measure_distance=null", "trainer.precision=32-true",
]  # fmt: skip
SMALLER = {
    "train": FEW_STEPS,
    "train_classifier": ["model.channels=8", "data=fashion_mini", *FEW_STEPS[2:4], "trainer.precision=32-true"],
    "sample": ["num_images=2", "sampler.num_steps=2"],
    "edit": ["task.num_frames=8", "sampler.num_steps=2"],
    "evaluate": ["num_samples=20", "sampler.num_steps=2", "num_pictures=0"],
}
"""Overrides that make a command of the guides fast. Those of settings that the command itself sets are left out."""


def runs_here() -> list[str]:
    found = [command for page in GUIDES for command in commands(page)]
    return [command for command in found if overrides(command) is not None and not re.search(NOT_HERE, command)]


def others(words: list[str], own: list[str]) -> list[str]:
    """Return the words of settings that `own` does not contain."""
    settings = {word.partition("=")[0] for word in own}
    return [word for word in words if word.partition("=")[0] not in settings]


def shortened(name: str, words: list[str]) -> list[str]:
    """Return the words of a command with smaller numbers of steps and images."""
    fewer = {
        "num_images": "2", "num_samples": "20", "trainer.max_steps": "4", "sampler.num_steps": "2",
        "lr_schedule.num_warmup_steps": "1", "cascade_steps": "2", "callbacks.save_last.keep_every_n_steps": "1",
        "metrics.nll.num_images": "2",
    }  # fmt: skip
    own = {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word}
    words = [f"{key}={fewer[key]}" if (key := word.partition("=")[0]) in fewer else word for word in words]
    for large, small in (("data=fashion_mnist", "data=fashion_mini"), ("step_0000300", "step_0000002")):
        words = [word.replace(large, small) for word in words]
    if "fork" in own:  # an earlier command has trained the run to 4 steps
        return [*(word for word in words if not word.startswith("trainer.max_steps=")), "trainer.max_steps=6"]
    if "resume" in own:
        return words
    extra = others(SMALLER.get(name, []), words)
    if "model" in own:  # its groups may not divide 8 channels
        extra.remove("model.channels=8")
    if "nll" in own.get("metrics", ""):
        extra.append("features=fashion_cnn")
        if "metrics.nll.num_images" not in own:
            extra.append("metrics.bound.num_images=2")
    return [*words, *extra]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs and files that the guides name."""
    folder = tmp_path_factory.mktemp("readme")
    train = folder / "logs" / "train"
    common = [*FEW_STEPS, "callbacks.save_last.keep_every_n_steps=1", "schedule.num_timesteps=8"]
    runs = {
        "RUN": ["conditioning=label", "ema=power"],
        "WEAKER": ["conditioning=label"],
        "BASE": ["conditioning=label", "data.resolution=14", "data.fit=resize", "model.patch_size=1"],
        "UPSAMPLER": ["conditioning=label", "low_resolution=area", "low_resolution.resolution=14"],
        "EXPORTED": ["conditioning=label", "model=unet_tiny", "model.channels=32"],
    }
    jobs = [("train.py", *others(common, own), *own, f"hydra.run.dir={train / name}") for name, own in runs.items()]
    classifier = [*SMALLER["train_classifier"], "schedule.num_timesteps=8"]
    jobs.append(("train_classifier.py", *classifier, f"hydra.run.dir={folder}/logs/train_classifier/RUN"))
    for name in ("A", "B"):
        place = f"hydra.run.dir={folder}/logs/evaluate/{name}"
        jobs.append(("evaluate.py", f"run={train / 'RUN'}", *SMALLER["evaluate"], place))
    for job in jobs:
        done = run(*job)
        assert done.returncode == 0, done.stderr
    copies = {"downloaded": train / "RUN", "CONDITIONAL": train / "WEAKER", "UNCONDITIONAL": train / "WEAKER"}
    copies |= {"logs/train/adm_256": train / "RUN", "CLASSIFIER": folder / "logs" / "train_classifier" / "RUN"}
    for name, original in copies.items():
        shutil.copytree(original, folder / name)
    shutil.copy(train / "RUN" / "checkpoints" / "last.ckpt", train / "RUN" / "checkpoints" / "best.ckpt")
    for name in ("statistics", "STATISTICS"):
        np.savez(folder / f"{name}.npz", mu=np.zeros(128), sigma=np.eye(128))
    for name in ("FOLDER/circle", "FOLDER/square", "PHOTOS", "EDGES"):
        (folder / name).mkdir(parents=True)
        for k in range(20):
            pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.mark.full
def test_the_commands_of_the_guides_run_in_their_order(stand_ins: Path) -> None:
    failed, environment = [], {"DIFFUSION_LAB_LOGS": str(stand_ins / "logs")}
    for number, command in enumerate(runs_here()):
        name, words = overrides(command) or ("", [])
        if "--help" in words or "data=cifar10" in words:  # CIFAR-10 is stored as parquet files
            continue
        if name == "sweep":
            words = ["status", str(next((stand_ins / "logs" / "train").glob("schedule_seed*")))]
        else:
            words = [word.replace("run=last", "run=logs/train/RUN") for word in shortened(name, words)]
        if name == "export":
            words = [word.replace("logs/train/RUN", "logs/train/EXPORTED") for word in words]
            words = [word.replace("output=FOLDER", f"output=others/{number}") for word in words]
        if name == "train" and "-m" not in words and not re.search(r"resume=|hydra\.run\.dir=", command):
            words.append(f"hydra.run.dir={stand_ins}/others/{number}")
        done = run(f"{name}.py", *words, cwd=stand_ins, **environment)
        if done.returncode:
            failed.append((command, done.stderr.splitlines()[-1:]))
    assert not failed, "\n".join(f"{command}: {error}" for command, error in failed)
