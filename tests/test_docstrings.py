"""Each public name has a docstring, and the examples in the docstrings are correct."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

PACKAGES = (
    "process",
    "networks",
    "objectives",
    "samplers",
    "inverse_problems",
    "guidance",
    "ema",
    "metrics",
    "training",
)

MODULES = (*PACKAGES, "randomness", "denoiser", "pixels", "runs.load")

WITHOUT_EXAMPLE = {
    "Interfaces": ("ClassifierNetwork", "Network", "Noise", "TrainedModule"),
    "Bases of operators and posterior samplers": (
        *("ConditionalDenoiser", "ConditionalPosterior", "LinearOperator", "PosteriorSampler", "SeparableOperator"),
        "SpectralOperator",
    ),
    "Values that other classes build": ("Interpolated", "Preconditioning", "StepContext", "GivenNoise", "Blocks"),
    "Shown by the base class Variance": ("FixedLarge", "FixedSmall", "LearnedDiagonal", "LearnedRange"),
    "Shown by ClassifierFreeGuidance and Guidance": ("Autoguidance", "ClassifierGuidance", "Guidable"),
    "Need other packages, weights or a service": ("CMMD", "FromDiffusers", "InceptionScore", "WandbRun"),
    "Shown by PSNR": ("Consistency", "Diversity", "EditMetric", "FeatureDistance", "LPIPS", "RMSE", "SSIM"),
    "Write files": ("MetricsFile", "TensorBoardEvents"),
    "Used like FrechetDistance": ("ClassAccuracy", "MeanOverImages", "SpatialFrechetDistance"),
}

RUN_FOLDER = Path(__file__).with_name("earlier_runs") / "v0_3" / "base"


def modules(name: str) -> Iterator[ModuleType]:
    root = importlib.import_module(f"diffusion_lab.{name}")
    yield root
    for module in pkgutil.walk_packages(getattr(root, "__path__", []), f"{root.__name__}."):
        yield importlib.import_module(module.name)


def run_examples(module: ModuleType, **names: Any) -> tuple[int, int, str]:
    """Run the examples of a module and return the numbers of all and of failed examples, and the report."""
    report, runner = list[str](), doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(module, globs={"torch": torch, **names}):
        runner.run(example, out=report.append)
    return runner.tries, runner.failures, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_correct(name: str) -> None:
    results = [run_examples(module, run_folder=RUN_FOLDER) for module in modules(name)]
    assert sum(num_examples for num_examples, _, _ in results) > 1
    assert "".join(report for _, _, report in results) == ""


def test_the_check_of_the_examples_can_fail() -> None:
    module = ModuleType("module", ">>> 1 + 1\n3\n>>> 1 + 1\n2\n")
    num_examples, num_failed, report = run_examples(module)
    assert (num_examples, num_failed) == (2, 1)
    assert "Expected:\n    3\nGot:\n    2" in report


@pytest.mark.parametrize("package", PACKAGES)
def test_each_public_class_has_an_example(package: str) -> None:
    module = importlib.import_module(f"diffusion_lab.{package}")
    public = {name: getattr(module, name) for name in module.__all__}
    documented = {name: value for name, value in public.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert [name for name, value in documented.items() if not vars(value).get("__doc__", value.__doc__)] == []
    concrete = {name for name, value in documented.items() if inspect.isclass(value) and not inspect.isabstract(value)}
    exempt = {name for names in WITHOUT_EXAMPLE.values() for name in names}
    assert {name for name in concrete if ">>>" not in str(documented[name].__doc__)} - exempt == set()
