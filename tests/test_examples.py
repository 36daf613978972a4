"""The examples of the library run, and the notebook takes the same steps as the script."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("library_example", EXAMPLES / "library.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_trains_samples_and_measures(script: ModuleType, tmp_path: Path) -> None:
    distance = script.main(num_steps=2, num_samples=20, path=tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (10 * 30 + 2, 2 * 30 + 2)  # two rows of ten images with 2 pixels between them
    assert 20 < distance < 300  # two steps teach little; a trained model has about 10


def test_the_distance_of_the_script_is_small_for_real_images(script: ModuleType) -> None:
    images, labels = script.clothing_images()
    assert images.shape == (10_000, 1, 28, 28)
    assert labels.bincount().tolist() == [1000] * 10
    assert script.frechet_distance(images[2000:2300], images[:2000]) < 2


@pytest.mark.full
def test_the_script_reaches_its_distance(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(path=tmp_path / "samples.png") < 15  # 11.1 when this test was written
