"""Classes of other packages: what lacks a required part is refused when it is built, with what it must define."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffusion_lab.contracts import require_instance
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.images import Images
from diffusion_lab.ema.averages import Decay
from diffusion_lab.errors import UserError
from diffusion_lab.metrics import MeanOverImages, Metric
from diffusion_lab.networks import DiT, HalfUNet, Labels, Network, UNet
from diffusion_lab.objectives import Denoising, Hybrid, Variational
from diffusion_lab.paths import CONF
from diffusion_lab.process import (
    CosineSchedule,
    Epsilon,
    GaussianProcess,
    LearnedRange,
    NoiseSchedule,
    TableSchedule,
    UnitTimeSchedule,
    V,
    Variance,
)
from diffusion_lab.runs.load import build_untrained_module, resolve
from diffusion_lab.runs.setup.callbacks import build_callbacks
from diffusion_lab.samplers import DDIM, Clipping, FixedStepSampler, NoClipping, Sampler, TimeGrid, UniformTimes
from diffusion_lab.training import DiffusionModule
from support.small_runs import FewImages, small_module


class Convolution(nn.Module):
    """A network of another package, which takes images of 8 x 8 pixels."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x_t: Tensor, time: Tensor, condition: Any) -> Tensor:
        output: Tensor = self.layer(x_t)
        return output


SHAPE = {"in_channels": 1, "out_channels": 1, "resolution": 8}


class ImageAlone(Convolution):
    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = self.layer(image)
        return output


class NoForward(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)


class Cropping(Convolution):
    def forward(self, x_t: Tensor, time: Tensor, condition: Any) -> Tensor:
        return x_t[..., 1:]


class NoAlgorithm(Sampler):
    pass


class NoTable(TableSchedule):
    pass


class NoCurve(UnitTimeSchedule):
    pass


class NoSchedule(NoiseSchedule):
    pass


class Empty:
    """A class without methods, whose config a user writes."""


class NoSuper(Convolution):
    def __init__(self) -> None:
        self.layer = nn.Conv2d(1, 1, 3, padding=1)


@dataclass(frozen=True)
class NotASampler:
    process: GaussianProcess


EXAMPLE = (
    "class MyNetwork(Network) sets in_channels, out_channels, resolution and defines forward(x_t, time, condition)"
)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Convolution(), f"got Convolution, which has no in_channels, no out_channels and no resolution; {EXAMPLE}"),
        (Convolution(**SHAPE | {"resolution": 0}), "whose resolution must be a whole number of at least 1, not 0"),
        (Convolution(**SHAPE, labels=None), "whose labels must be Labels (Labels() without classes), not None"),
        (NoForward(**SHAPE), f"which defines no forward; {EXAMPLE}"),
        (ImageAlone(**SHAPE), f"whose forward takes (image); {EXAMPLE}"),
        (Convolution, "got Convolution, which is a class and not an object"),
        (None, "got NoneType, which is no torch.nn.Module"),
        (lambda: None, "got <lambda>, which is no torch.nn.Module"),
        (
            HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1,)),
            "got HalfUNet, which has no out_channels",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_network_that_cannot_be_trained_is_refused_in_the_constructor(network: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        DiffusionModule(network, CosineSchedule())
    assert "`network` must implement diffusion_lab.networks.Network" in str(error.value)


def test_a_network_needs_its_shape_and_forward_alone() -> None:
    network = Convolution(**SHAPE)
    module = DiffusionModule(network, CosineSchedule(20))  # type: ignore[arg-type]
    assert torch.isfinite(module.training_step(torch.zeros(4, 1, 8, 8) - 1, 0))
    assert module.sample(2).shape == (2, 1, 8, 8)
    assert module.labels == Labels()


def test_an_output_of_another_shape_is_refused_in_the_first_step() -> None:
    module = DiffusionModule(Cropping(**SHAPE), CosineSchedule())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must return a tensor of the shape \[4, 1, 8, 8\].* got \[4, 1, 8, 7\]"):
        module.training_step(torch.zeros(4, 1, 8, 8) - 1, 0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoAlgorithm, r"NoAlgorithm must define sample\(denoiser, noise, condition, on_step\) \(return images \[B"),
        (
            NoTable,
            r"NoTable must define unscaled_betas\(\) \(return the variances .*; diffusion_lab.LinearSchedule is an",
        ),
        (
            NoCurve,
            r"NoCurve must define curve\(t\) \(return alpha_t and sigma_t .*; diffusion_lab.RectifiedFlowSchedule",
        ),
        (NoSchedule, r"must define at_log_snr, coefficients, .*; a base with less to define is .*TableSchedule"),
    ],
)
def test_a_class_without_a_required_method_names_it_with_its_result_and_an_example(
    kind: Callable[[], object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        kind()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"process": Empty()},
            r"`process` must be a diffusion_lab.GaussianProcess, got an object of the class Empty; bu",
        ),
        (
            {"sampler": NotASampler(GaussianProcess(CosineSchedule()))},
            r"`sampler` must be a .*Sampler that defines sample",
        ),
        ({"objective": Variational}, "got the class Variational instead of an object"),
        (
            {"prediction": "v"},
            "`prediction` must be a diffusion_lab.Prediction that defines .*, got 'v'; .*Epsilon is an",
        ),
        ({"times": Empty()}, r"`times` must be a diffusion_lab.TimeDistribution that defines sample\(draws\)"),
        ({"objective": Empty()}, "`objective` must be a diffusion_lab.Objective that defines"),
        (
            {"optimizer": torch.optim.Adam},
            r"`optimizer` must be .*; build it with OptimizerFactory\(optimizer_class, lr\)",
        ),
        ({"ema": 0.999}, r"`ema` must be a Decay, .* or a function from a network to its EMA, got 0.999\."),
        ({"ema": lambda network: network}, "`ema` must be .* or a function .*, got an object of the class function"),
        (
            {"lr_schedule": torch.optim.lr_scheduler.CosineAnnealingLR},
            r"`lr_schedule` must be .* got the class CosineAnnealingLR .*; wrap it as TorchLRSchedule\(CosineAnn",
        ),
        ({"lr_schedule": 0.1}, r"`lr_schedule` must be a function from the step to a factor .*, got 0.1\."),
        ({"objective": Denoising(Epsilon())}, r"have the prediction of the module \(V\(\)\), .* with Epsilon\(\)"),
        (
            {"objective": Hybrid(Denoising(Epsilon()), Variational(Epsilon(), LearnedRange()))},
            r"have the prediction of the module \(V\(\)\), .* with Epsilon\(\)",
        ),
    ],
)
def test_a_part_of_a_module_must_derive_from_its_base_class(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionModule(small_module().network, **({"process": CosineSchedule(), "prediction": V()} | arguments))


@pytest.mark.parametrize(
    "build",
    [lambda: UNet(1, 1, resolution=16, labels=10), lambda: DiT(1, 1, resolution=8, labels=10)],  # type: ignore
)
def test_classes_of_a_network_must_be_labels(build: Callable[[], object]) -> None:
    message = r"`labels` must be Labels, such as Labels\(10, dropout=0.1\), or None, got 10"
    with pytest.raises(ValueError, match=message):
        build()


def test_a_process_refuses_what_is_no_schedule() -> None:
    with pytest.raises(
        ValueError, match=r"`schedule` must be a diffusion_lab\.NoiseSchedule .*, got 1000; a base with"
    ):
        GaussianProcess(1000)  # type: ignore[arg-type]


def test_a_sampler_of_a_user_that_derives_from_the_base_is_accepted() -> None:
    @dataclass(frozen=True)
    class Mine(DDIM):
        pass

    require_instance(Mine(GaussianProcess(CosineSchedule())), FixedStepSampler, "sampler")


class NoFields(FixedStepSampler):
    """A sampler with an ordinary constructor."""

    def __init__(self, process: GaussianProcess, num_steps: int | None = 5) -> None:
        self.process, self.num_steps, self.time_grid, self.clipping = process, num_steps, UniformTimes(), NoClipping()

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return t, t[:, None]

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: Any) -> tuple[Tensor, Tensor]:
        return x_t, x_t


class NoFieldsOfItsOwn(DDIM):
    def __init__(self, process: GaussianProcess, strength: float = 1.0) -> None:
        super().__init__(process)


class Cosine(UnitTimeSchedule):
    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(t * np.pi / 2), torch.sin(t * np.pi / 2)


class Even(TimeGrid):
    def __call__(self, schedule: NoiseSchedule, num_steps: int | None) -> tuple[float, ...]:
        return (1.0, 0.5)


class Half(Clipping):
    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0 / 2


class Large(Variance):
    def log_variance(self, process: GaussianProcess, s: Tensor, t: Tensor, **settings: Any) -> Tensor:
        return t


class Spread(Metric):
    def __init__(self, features: Any) -> None:
        pass

    def measure(self, samples: Any, reference: Any) -> dict[str, float]:
        return {"spread": 1.0}


class Linear(Decay):
    def __call__(self, num_updates: int) -> float:
        return 0.5


class Darkness:
    """A quantity of an image."""

    name, num_terms = "darkness", 1


@pytest.mark.parametrize(
    ("build", "base"),
    [
        (lambda: NoFields(GaussianProcess(CosineSchedule())), "Sampler"),
        (lambda: NoFieldsOfItsOwn(GaussianProcess(CosineSchedule())), "Sampler"),
        (Cosine, "NoiseSchedule"),
        (Even, "TimeGrid"),
        (Half, "Clipping"),
        (Large, "Variance"),
        (lambda: Spread(None), "Metric"),
        (Linear, "Decay"),
        (lambda: MeanOverImages(Darkness()), None),  # type: ignore[arg-type]
    ],
    ids=["sampler", "derived sampler", "schedule", "grid", "clipping", "variance", "metric", "decay", "quantity"],
)
def test_a_class_whose_settings_are_recorded_must_be_a_dataclass(build: Callable[[], object], base: str | None) -> None:
    required = f" to be a diffusion_lab.{base}" if base else ""
    message = rf"(\w+) must be a dataclass{required}; write `@dataclass\(frozen=True\)` above `class \1`"
    with pytest.raises(TypeError, match=message):
        build()


def test_a_class_whose_settings_are_recorded_must_be_a_frozen_dataclass() -> None:
    @dataclass
    class Fast(Cosine):
        power: float = 1.0

    class Faster(Fast):
        pass

    message = (
        r"^Fast must be a frozen dataclass to be a diffusion_lab.NoiseSchedule \(because values that are computed from "
        r"its fields are cached\); write `@dataclass\(frozen=True\)` above `class Fast`\.$"
    )
    for kind in (Fast, Faster):
        with pytest.raises(TypeError, match=message):
            kind()


def test_a_class_that_adds_no_setting_to_a_dataclass_is_accepted() -> None:
    class Traced(DDIM):
        def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: Any) -> tuple[Tensor, Tensor]:
            return super().step(x_t, t, coefficients, context)

    module, images = small_module(), []
    for sampler in (DDIM(module.process, num_steps=9), Traced(module.process, num_steps=9)):
        images.append(module.sample(2, sampler=sampler, num_steps=3))
    assert torch.equal(*images)


def build(key: str, target: str) -> None:
    """Build module and callbacks of a run whose config names the class `target` under `key`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["run_folder=somewhere", "model=unet_quick"])
    for name in config.callbacks:
        config.callbacks[name] = None
    OmegaConf.update(config, key, {"_target_": f"test_contracts.{target}"}, merge=False, force_add=True)
    config = resolve(config)
    build_untrained_module(config)
    build_callbacks(config)


@pytest.mark.parametrize(
    ("key", "target", "message"),
    [
        ("model", "Empty", "`model` must implement diffusion_lab.networks.Network, got Empty, which is no torch"),
        ("model", "NoSuper", r"model: __init__ of test_contracts.NoSuper must begin with super\(\).__init__\(\)\."),
        ("schedule", "Empty", "`schedule` must be a diffusion_lab.NoiseSchedule that defines"),
        ("schedule", "NoCurve", r"schedule: NoCurve must define curve\(t\)"),
        ("sampler", "NoFields", "sampler: NoFields must be a dataclass to be a diffusion_lab.Sampler; write"),
        ("sampler", "Empty", "`sampler` must be a diffusion_lab.Sampler that defines sample"),
        ("callbacks.mine", "Empty", "`callbacks.mine` must be a lightning.Callback, got an object of the class Empty"),
    ],
)
def test_a_class_that_a_config_names_is_checked_in_the_same_way(key: str, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(key, target)


class NoLoad:
    def splits(self) -> list[str]:
        return ["train"]


class Lists(FewImages):
    def load(self, split: str = "train") -> Any:
        return [1, 2]


def test_a_data_set_must_have_the_methods_of_a_store_and_return_images() -> None:
    with pytest.raises(
        ValueError, match=r"`store` must be a diffusion_lab\.ImageStore, got .* NoLoad, which has no locate"
    ):
        ImageDataModule(NoLoad(), batch_size=4, seed=0)  # type: ignore[arg-type]
    for kind in (FewImages, NoLoad):
        with pytest.raises(ValueError, match=f"ImageStore, got the class {kind.__name__} instead of an object; class"):
            ImageDataModule(kind, batch_size=4, seed=0)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"`load` of Lists must return diffusion_lab.Images\(.*, got .* class list for"
    ):
        _ = ImageDataModule(Lists(), batch_size=4, seed=0).train_images
    pixels = np.zeros((3, 1, 8, 8), np.uint8)
    for given, label, message in (
        (pixels.astype(np.float32), np.zeros(3, np.int64), r"`pixels` must be a uint8 .*, got float32 \[3, 1, 8, 8\]"),
        (pixels[:, 0], np.zeros(3, np.int64), r"`pixels` must be .*\[N, C, H, W\], got uint8 \[3, 8, 8\]"),
        (pixels, np.zeros(3), r"`label` must be a int64 .*, got float64 \[3\]"),
        (pixels, np.zeros(2, np.int64), "`label` must have one label per image, 3, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Images(given, label)
    assert Images(pixels, np.array([1, 2, 0], np.uint8)).label.tolist() == [1, 2, 0]


def test_uint8_images_of_an_image_batch_train_the_same_weights_as_the_data_module() -> None:
    """The data module converts images after the transfer, a hook that another loop does not call."""
    losses = []
    for convert in (False, True):
        module, data = small_module(), ImageDataModule(FewImages(), batch_size=8, seed=3)
        data.trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu")
        batch = next(iter(data.train_dataloader()))
        assert batch.x_0.dtype == torch.uint8
        losses.append(module.training_step(data.on_after_batch_transfer(batch, 0) if convert else batch, 0))
    assert torch.equal(*losses)
    batch.x_0 = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images must be \[B, 1, 8, 8\] for this network, got \[2, 1, 9, 9\]"):
        module.training_step(batch, 0)


def test_a_plain_trainer_takes_uint8_tensors_alone() -> None:
    module = small_module()
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8)
    trainer = Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(module, DataLoader(images, batch_size=8))  # type: ignore[arg-type]
    assert trainer.global_step == 2
    assert isinstance(module.network, Network)
