"""Names of classes in the setting `label`, from the run folder or from the data set."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.data.classes import as_label, number_of, numbering
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs import class_names
from diffusion_lab.runs.setup.training import require_classes

NAMES = ("airplane", "automobile", "tench, Tinca tinca", "T-shirt/top", "Ankle_boot", "7")


def label_of(given: Any, folder: Path, config: DictConfig | None = None) -> Any:
    """Return the setting `label` of a run with six classes."""
    return as_label(given, 6, class_names.of_label(given, folder, config or OmegaConf.create()), default="null")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    class_names.save(NAMES, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (None, None),
        ("random", "random"),
        (3, 3),
        ("airplane", 0),
        ("Automobile", 1),
        ("tench", 2),
        ("tench, Tinca tinca", 2),
        ("ankle boot", 4),
        ("7", 5),
        ("2", 2),
        (["airplane"], 0),
        (["automobile", 5, "tench"], [1, 5, 2]),
        (OmegaConf.create(["automobile", 0]), [1, 0]),
    ],
    ids=str,
)
def test_a_name_is_the_number_of_its_class(given: Any, label: Any, run: Path) -> None:
    assert label_of(given, run) == label


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "automobil",
            r"`label` must be the name or the number of a class \(0 airplane, .*\), got automobil; .*automobile",
        ),
        (["airplane", "zebra"], r"\(0 airplane, 1 automobile, 2 tench, .* 5 7\), got zebra\.$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_names(given: Any, message: str, run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        label_of(given, run)


def test_a_long_list_of_classes_is_shortened() -> None:
    assert numbering([f"c{k}" for k in range(1000)]).endswith("8 c8, 9 c9, ..., 999 c999")
    assert numbering(NAMES[:2]) == "0 airplane, 1 automobile"
    with pytest.raises(ValueError, match=r"a class \(0 c0, .*, \.\.\., 999 c999\), got d"):
        number_of("d", [f"c{k}" for k in range(1000)])


def test_a_run_of_an_earlier_version_takes_the_names_from_its_data_set(tmp_path: Path) -> None:
    config = DictConfig({"data": {"store": {"_target_": "support.small_runs.FewImages"}}})
    assert label_of(["c", "a"], tmp_path, config) == [2, 0]
    shutil.rmtree(tmp_path)
    missing = DictConfig(
        {"data": {"store": {"_target_": "diffusion_lab.data.ImageStore", "hub_name": None, "path": "/no"}}}
    )
    with pytest.raises(ValueError, match=r"must be the number of a class, .* got c: the images have no class names"):
        label_of("c", tmp_path, missing)


@pytest.mark.parametrize(
    ("choice", "expectation"),
    [
        ("label", pytest.raises(UserError, match=r"conditioning=label must be .* 2 classes, got data.num_classes=1; ")),
        ("none", nullcontext()),
    ],
)
def test_conditioning_on_a_single_class_is_refused(
    choice: str, expectation: AbstractContextManager[Any], tmp_path: Path
) -> None:
    overrides = ["data=folder", f"data.path={tmp_path}", f"conditioning={choice}", "run_folder=somewhere"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=overrides)
    with expectation:
        require_classes(config)
