"""The library examples: the script runs, and the notebook has the same result."""

import importlib.util
import json
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "library.ipynb"
NUM_STEPS, NUM_SAMPLES = 2, 20


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("library_example", EXAMPLES / "library.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Path]:
    """Distance of the script and path of its image, after few steps."""
    path = tmp_path_factory.mktemp("examples") / "samples.png"
    return script.main(NUM_STEPS, NUM_SAMPLES, path), path


@pytest.fixture
def lightning_log_level() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.full
def test_the_script_trains_samples_and_measures(result: tuple[float, Path]) -> None:
    distance, path = result
    with Image.open(path) as picture:
        assert picture.size == (10 * 30 + 2, 2 * 30 + 2)  # two rows of ten images with 2 pixels between them
    assert 20 < distance < 300  # two steps teach little


@pytest.mark.full
def test_the_distance_of_the_script_is_small_for_real_images(script: ModuleType) -> None:
    images, labels = script.clothing_images()
    assert images.shape == (10_000, 1, 28, 28)
    assert labels.bincount().tolist() == [1000] * 10
    assert script.frechet_distance(images[2000:2300], images[:2000]) < 2


@pytest.mark.full
@pytest.mark.usefixtures("lightning_log_level")
def test_the_notebook_has_the_result_of_the_script(result: tuple[float, Path]) -> None:
    source = "\n".join("".join(cell["source"]) for cell in code_cells())
    for name, default, few in (("num_steps", 250, NUM_STEPS), ("num_samples", 300, NUM_SAMPLES)):
        assert source.count(f"{name} = {default}\n") == 1
        source = source.replace(f"{name} = {default}\n", f"{name} = {few}\n")
    names: dict[str, Any] = {}
    exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert names["distances"]["samples"] == pytest.approx(result[0], rel=1e-4)
    assert names["distances"]["other training images"] < 2


def test_the_notebook_stores_small_images_and_its_final_distance() -> None:
    outputs = [output["data"] for cell in code_cells() for output in cell["outputs"]]
    assert [cell["outputs"] for cell in code_cells()[1:] if len(cell["outputs"]) != 1] == []
    assert sum("image/png" in output for output in outputs) == 4
    assert NOTEBOOK.stat().st_size < 200_000
    assert "{'samples': 9.5," in "".join(outputs[-1]["text/plain"])


@pytest.mark.full
def test_the_script_reaches_the_distance_of_the_notebook(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(path=tmp_path / "samples.png") == pytest.approx(9.5, abs=1.5)  # other CPUs round differently


@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*")
def test_the_lines_of_the_readme_train_and_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (EXAMPLES.parent / "README.md").read_text().partition("\n## As a library\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ")]
    assert len(lines) <= 11
    source = textwrap.dedent("\n".join(lines))
    for large, small in (
        ("(1000, 3", "(8, 3"),
        ("max_steps=1000", "max_steps=1"),
        ("64, chan", "32, chan"),
        ("16)", "2)"),
    ):
        assert source.count(large) == 1
        source = source.replace(large, small)
    monkeypatch.chdir(tmp_path)  # Lightning writes its checkpoints to the current folder
    names: dict[str, Any] = {}
    exec(source, names)
    assert names["samples"].shape == (2, 3, 32, 32)
    assert names["samples"].abs().max() <= 1
