"""A single training step: image -> loss."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.networks import Condition
from diffusion_lab.objectives import Denoising, EDMWeighting, Variational
from diffusion_lab.process import (
    EDMDenoiser,
    EDMSchedule,
    Epsilon,
    GaussianProcess,
    JSDSchedule,
    LearnedRange,
    LogNormalSigma,
    NoiseSchedule,
    TimeDistribution,
    Uniform,
    VPSchedule,
)
from diffusion_lab.process.time_sampling import TimeDraws
from diffusion_lab.randomness import Draws
from diffusion_lab.training.base_module import VERSION_KEY
from diffusion_lab.training.diffusion_module import DiffusionModule
from support.small_runs import FewImages, fit, small_module


def batch(module_seed: int = 0, size: int = 6) -> ImageBatch:
    generator = torch.Generator().manual_seed(module_seed)
    x_0 = torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1
    return ImageBatch(x_0, torch.arange(size) % 3, Draws(5, 7, range(size), size))


def test_the_first_loss_of_a_network_with_output_0_is_the_power_of_the_noise() -> None:
    module, data = small_module(), batch()
    loss = module.training_step(data, 0)
    assert loss.item() == pytest.approx(data.draws.noise(data.x_0).square().mean().item(), rel=1e-6)


def test_the_network_is_conditioned_on_the_augmentation() -> None:
    module, data = small_module(), batch()
    received: list[Tensor | None] = []
    module.network.register_forward_pre_hook(lambda _, inputs: received.append(inputs[2].augmentation))
    module.training_step(data, 0)
    data.augmentation = torch.randn(6, 9)
    with pytest.raises(ValueError, match="num_augmentation_channels=0"):  # this network takes none
        module.training_step(data, 0)
    assert received == [None, data.augmentation]


def test_the_loss_matches_the_formulas_written_out() -> None:
    module, data = small_module(), batch()
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    t = (data.draws.times() * 20).floor() / 20 + 1 / 20
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-3, 0.4, 20, dtype=torch.float64), 0)
    index = (t * 20).round().long() - 1
    alpha = alpha_bar[index].sqrt().float()[:, None, None, None]
    sigma = (1 - alpha_bar[index]).sqrt().float()[:, None, None, None]
    noise = data.draws.noise(data.x_0)
    output = module.network(alpha * data.x_0 + sigma * noise, index.float(), Condition())
    expected = (output - noise).square().mean()
    assert module.training_step(data, 0).item() == pytest.approx(expected.item(), rel=1e-5)


@dataclass(frozen=True)
class RecordedTimes(TimeDistribution):
    """Uniform times that give image k the weight k and record their updates."""

    schedule: NoiseSchedule
    updates: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        t, weight = Uniform(self.schedule).sample(draws)
        return t, weight * torch.tensor(draws.positions)

    def update(self, draws: TimeDraws, t: Tensor, loss: Tensor) -> None:
        self.updates.append((t, loss.detach()))


def test_time_weights_apply_to_the_mean_loss_but_not_to_the_update_of_the_time_distribution() -> None:
    module, data = small_module(), batch()
    module.times = RecordedTimes(module.process.schedule)
    mean = module.training_step(data, 0)
    power = data.draws.noise(data.x_0).square().mean(dim=(1, 2, 3))  # the loss of a network with output 0
    assert mean.item() == pytest.approx((torch.arange(6) * power).mean().item(), rel=1e-6)
    [(t, losses)] = module.times.updates
    torch.testing.assert_close(losses, power)
    assert torch.equal(t, Uniform(module.process.schedule).sample(data.draws)[0])


def test_the_loss_of_a_preconditioned_network_matches_the_formulas_written_out() -> None:
    module, data = small_module(), batch()
    module.process, module.prediction = GaussianProcess(EDMSchedule()), EDMDenoiser(0.5)
    module.objective = Denoising(module.prediction, EDMWeighting(0.5))
    module.times = LogNormalSigma(module.process.schedule)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    sigma = module.times.sample(data.draws)[0].float().view(6, 1, 1, 1)
    x_t = data.x_0 + sigma * data.draws.noise(data.x_0)
    power = sigma**2 + 0.25
    output = module.network(x_t / power.sqrt(), sigma.flatten().log() / 4, Condition())
    denoised = 0.25 / power * x_t + 0.5 * sigma / power.sqrt() * output
    expected = (power / (0.5 * sigma) ** 2 * (denoised - data.x_0) ** 2).mean()  # Karras et al. (2022), eq. 2
    assert module.training_step(data, 0).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_prediction_that_does_not_fit_the_schedule_is_refused_before_training() -> None:
    module = small_module()
    with pytest.raises(ValueError, match="`prediction` must determine x_0 at the last step of JSDSchedule"):
        rebuilt(module, process=GaussianProcess(JSDSchedule(20)))


def test_an_objective_that_does_not_fit_the_network_is_refused_before_training() -> None:
    module = small_module()
    bound = Variational(Epsilon(), LearnedRange())
    with pytest.raises(ValueError, match=r"`out_channels` of the network must be 2 for a learned variance .* got 1"):
        rebuilt(module, objective=bound)
    with pytest.raises(ValueError, match=r"`schedule` must have discrete steps .* VPSchedule"):
        rebuilt(module, process=GaussianProcess(VPSchedule()), objective=bound)


def rebuilt(module: DiffusionModule, **changed: Any) -> DiffusionModule:
    parts: dict[str, Any] = {
        name: getattr(module, name)
        for name in ("network", "process", "prediction", "objective", "times", "optimizer", "sampler")
    }
    return DiffusionModule(**(parts | changed), ema=lambda network: module.ema)


def test_training_learns_a_single_image() -> None:
    module = small_module()
    fit(module, 40)
    data = batch()
    data.x_0 = FewImages().load().gather(torch.arange(6)).float() / 127.5 - 1
    assert module.training_step(data, 0).item() < 0.75  # 1.0 before


@pytest.mark.parametrize(("num_batches", "expected"), [(1, [False] * 3), (2, [False, True] * 2)])
def test_gradients_are_freed_before_the_next_forward_pass(num_batches: int, expected: list[bool]) -> None:
    module, has_gradients = small_module(), []
    parameters = list(module.network.parameters())
    module.network.register_forward_pre_hook(
        lambda *_: has_gradients.append(any(parameter.grad is not None for parameter in parameters))
    )
    fit(module, len(expected) // num_batches, accumulate_grad_batches=num_batches)
    assert has_gradients == expected


class RowLogger(Logger):
    """Stores logged metrics as rows."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class MeasureOnce(Callback):
    """Adds one metric to callback_metrics after the first step."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            trainer.callback_metrics["measured"] = torch.tensor(5.0)


def test_a_row_contains_only_the_metrics_of_its_step() -> None:
    logger = RowLogger()
    trainer = fit(small_module(), 5, logger=logger, log_every_n_steps=2, callbacks=[MeasureOnce()])
    assert [step for step, _ in logger.rows] == [2, 4, 5]
    assert all(set(numbers) == {"loss", "gradient_norm", "learning_rate"} for _, numbers in logger.rows)
    assert all(torch.is_tensor(value) for value in trainer.callback_metrics.values())  # for Lightning's monitors
    assert logger.rows[-1][1]["loss"] == float(trainer.callback_metrics["loss"])


def test_log_every_n_steps_0_disables_logging() -> None:
    logger = RowLogger()
    fit(small_module(), 3, logger=logger, log_every_n_steps=0)
    assert logger.rows == []


def test_the_last_row_is_logged_before_the_last_checkpoint(tmp_path: Path) -> None:
    logger, num_rows = RowLogger(), []
    module, save = small_module(), SaveLast(str(tmp_path), every_n_steps=100)
    module.on_save_checkpoint = lambda checkpoint: num_rows.append(len(logger.rows))  # type: ignore[method-assign]
    fit(module, 3, logger=logger, callbacks=[save])
    assert num_rows == [1]


def test_resuming_a_checkpoint_of_another_version_logs_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = fit(small_module(), 1)
    trainer.save_checkpoint(tmp_path / "current.ckpt")
    checkpoint = torch.load(tmp_path / "current.ckpt", weights_only=True)
    torch.save(checkpoint | {VERSION_KEY: "0.2.0"}, tmp_path / "older.ckpt")
    fit(small_module(), 2, ckpt_path=tmp_path / "current.ckpt")
    assert "version" not in caplog.text
    fit(small_module(), 2, ckpt_path=tmp_path / "older.ckpt")
    assert "written by version 0.2.0" in caplog.text
