"""The image that checks a sampler of another package before training and sampling."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.errors import UserError
from diffusion_lab.generation import cascade
from diffusion_lab.networks import Labels
from diffusion_lab.paths import CONF
from diffusion_lab.process import GaussianProcess
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.setup import sampling as sampling_setup
from diffusion_lab.runs.setup import training as training_setup
from diffusion_lab.runs.setup.sampler_check import require_samples
from diffusion_lab.samplers import (
    Clipping,
    FixedStepSampler,
    Sampler,
    StaticClipping,
    StepContext,
    TimeGrid,
    UniformTimes,
)
from diffusion_lab.training import DiffusionModule
from support.small_runs import FewImages, small_module


@dataclass(frozen=True)
class Foreign(FixedStepSampler):
    """A sampler of another package, whose methods return what two functions make of the right values."""

    process: GaussianProcess
    num_steps: int | None = 9
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)
    of_steps: Callable[[Tensor, Tensor], Any] = lambda times, table: (times, table)
    of_step: Callable[[Tensor, Tensor], Any] = lambda x_s, x_0: (x_s, x_0)

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.of_steps(t, torch.stack([*self.process.schedule.coefficients(s)], dim=1))
        return result

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        alpha_s, sigma_s = coefficients
        x_0 = context.estimate(x_t, t).x_0
        result: tuple[Tensor, Tensor] = self.of_step(alpha_s * x_0 + sigma_s * context.noise.draw(), x_0)
        return result


@dataclass(frozen=True)
class Whole(Sampler):
    """A sampler of another package that defines `sample`."""

    process: GaussianProcess
    result: Any
    num_steps: int | None = 9
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def sample(self, denoiser: Any, noise: Any, condition: Any = None, on_step: Any = None) -> Tensor:
        result: Tensor = self.result
        return result


def with_sampler(kind: type[Sampler], **settings: Any) -> DiffusionModule:
    module = small_module(labels=Labels(3))
    module.sampler = kind(module.process, **settings)
    return module


def test_a_sampler_of_another_package_makes_two_steps_without_the_network() -> None:
    seen: list[tuple[int, ...]] = []
    module = with_sampler(Foreign, of_step=lambda x_s, x_0: seen.append(x_s.shape) or (x_s, x_0))  # type: ignore[func-returns-value]
    module.network.register_forward_pre_hook(lambda *call: pytest.fail("the network is called"))
    state = torch.random.get_rng_state()
    require_samples(module)
    assert seen == [(1, 1, 8, 8)] * 2
    assert torch.equal(torch.random.get_rng_state(), state)


STEP = "Foreign.step must return x of the next time and the estimate of x_0, two tensors of the shape [B, C, H, W] = "
STEPS = "Foreign.prepare_steps must return the times of the steps, a tensor of the shape [num_steps] = [9], and their"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"of_step": lambda x_s, x_0: (x_s[:, :, 1:], x_0)},
            f"{STEP}[1, 1, 8, 8], got a tuple of a tensor of the shape [1, 1, 7, 8] and a tensor of the shape "
            "[1, 1, 8, 8].",
        ),
        ({"of_step": lambda x_s, x_0: (x_s, x_0[0])}, f"{STEP}[1, 1, 8, 8], got a tuple of a tensor of"),
        ({"of_step": lambda x_s, x_0: x_s}, f"{STEP}[1, 1, 8, 8], got a tensor of the shape [1, 1, 8, 8]."),
        ({"of_step": lambda x_s, x_0: None}, f"{STEP}[1, 1, 8, 8], got None."),
        ({"of_steps": lambda times, table: table}, f"{STEPS} coefficients, a tensor of the shape [num_steps, num_co"),
        ({"of_steps": lambda times, table: (times[1:], table)}, STEPS),
        ({"of_steps": lambda times, table: (times, table[1:])}, STEPS),
        ({"of_steps": lambda times, table: (times, table.tolist())}, STEPS),
    ],
)
def test_a_method_that_returns_another_value_is_refused_with_the_value_that_it_must_return(
    settings: dict[str, Any], message: str
) -> None:
    module = with_sampler(Foreign, **settings)
    with pytest.raises(UserError, match=rf"^`sampler`: {__name__}\.{re.escape(message)}"):
        require_samples(module)
    with pytest.raises(ValueError, match=re.escape(message.replace("[1, 1, 8, 8]", "[2, 1, 8, 8]")[:90])):
        module.sample(2)  # as a library


def test_an_error_in_a_method_is_refused_with_its_line() -> None:
    module = with_sampler(Foreign, of_step=lambda x_s, x_0: x_s @ x_s.new_ones(3, 3))
    with pytest.raises(UserError, match=r"^`sampler`: Foreign cannot sample images, RuntimeError: ") as caught:
        require_samples(module)
    assert f"({__file__}:" in str(caught.value)


@pytest.mark.parametrize("result", [torch.zeros(1, 8, 8), None])
def test_a_sampler_without_steps_must_return_images(result: Any) -> None:
    message = rf"^`sampler`: {__name__}\.Whole\.sample must return images, .* \[B, C, H, W\] = \[1, 1, 8, 8\], got "
    with pytest.raises(UserError, match=message):
        require_samples(with_sampler(Whole, result=result))
    require_samples(with_sampler(Whole, result=torch.zeros(1, 1, 8, 8)))


def test_a_sampler_that_needs_more_than_two_steps_makes_all_its_steps() -> None:
    table: list[Tensor] = []
    module = with_sampler(Foreign, of_steps=lambda t, each: table.append(each) or (t[: len(t) * (len(t) > 2)], each))  # type: ignore[func-returns-value]
    require_samples(module)
    assert [len(each) for each in table] == [2, 9]


def test_the_sampler_of_a_callback_is_checked_in_the_same_way() -> None:
    module = small_module()

    class Measure(Callback):
        sampler = Foreign(module.process, of_step=lambda x_s, x_0: x_s)

    with pytest.raises(UserError, match=r"^`sampler` of Measure: .*\.Foreign\.step must return x of the next time"):
        require_samples(module, [Callback(), Measure()])


@dataclass(frozen=True)
class Cropped(Foreign):
    of_step: Callable[[Tensor, Tensor], Any] = lambda x_s, x_0: (x_s[:, :, 1:], x_0)


class Unread(FewImages):
    """A store of another package whose images must not be loaded."""

    def locate(self) -> None: ...

    def load(self, split: str = "train") -> Images:
        pytest.fail("the images are loaded")


def test_train_checks_the_sampler_before_it_loads_images() -> None:
    no_callbacks = [f"callbacks.{name}=null" for name in ("sample_images", "measure_distance")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["run_folder=somewhere", "model=unet_quick", *no_callbacks])
    config.sampler = {"_target_": f"{__name__}.Cropped", "process": "${process}"}
    config.data.store = {"_target_": f"{__name__}.Unread"}
    with pytest.raises(UserError, match=r"^`sampler`: .*\.Cropped\.step must return .* = \[1, 1, 28, 28\], got "):
        training_setup.build(config)


def test_sample_evaluate_and_edit_check_the_sampler_of_each_loaded_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module, target = with_sampler(Cropped), Target(Path(), Path())
    config = OmegaConf.create({"sampler": {}, "run": None})
    trained = OmegaConf.create({"sampler": {"_target_": "Cropped"}, "low_resolution": {}})
    for name, result in (("checked_config", trained), ("load_trained_config", trained), ("load_module", (module, 0))):
        monkeypatch.setattr(sampling_setup, name, lambda *arguments, result=result: result)
    with pytest.raises(UserError, match=r"^`sampler`: .*\.Cropped\.step must return"):
        sampling_setup.build_images(config, target, Any)
    monkeypatch.setattr(cascade, "CascadeImages", lambda *arguments: None)
    images: Any = None
    monkeypatch.setattr(sampling_setup, "load_weights", lambda *arguments: module)
    monkeypatch.setattr(sampling_setup, "instantiate_node", lambda *arguments: None)
    with pytest.raises(UserError, match=r"^`sampler`: .*\.Cropped\.step must return"):
        sampling_setup._upsampled_images(config, images, target, trained, 0.0, Any)
