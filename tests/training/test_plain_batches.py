"""Training with a plain `lightning.Trainer` and any data loader of tensors."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.networks import Blocks, Condition, HalfUNet, Labels
from diffusion_lab.objectives import Denoising
from diffusion_lab.pixels import from_uint8
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    Epsilon,
    GaussianProcess,
    LinearSchedule,
    Stratified,
    Uniform,
    V,
)
from diffusion_lab.randomness import Draws
from diffusion_lab.samplers import DDIM
from diffusion_lab.training import ClassifierModule, DiffusionModule, OptimizerFactory
from support.processes import forked_processes
from support.small_runs import FewImages, fit, small_module, weights

IMAGES = FewImages().load()
PIXELS, LABELS = IMAGES.gather(torch.arange(24)), IMAGES.label[:24]  # uint8 [24, 1, 8, 8], int64 [24] in 0..2


def loader(*tensors: Tensor, batch_size: int = 6) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def given(batches: Sequence[Any]) -> DataLoader[Any]:
    """Return a loader of the given batches."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def train(module: LightningModule, batches: DataLoader[Any], max_steps: int = 4, **settings: Any) -> Trainer:
    ckpt_path = settings.pop("ckpt_path", None)
    options: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "max_steps": max_steps, "log_every_n_steps": 1,
    }  # fmt: skip
    trainer = Trainer(**(options | settings))
    trainer.fit(module, batches, ckpt_path=ckpt_path)
    return trainer


def trained(batches: DataLoader[Any], module: DiffusionModule | None = None, **settings: Any) -> Tensor:
    """Return the weights after training."""
    module = small_module() if module is None else module
    train(module, batches, **settings)
    return weights(module.network)


@cache
def expected_weights(labels: Labels | None = None) -> Tensor:
    """Return the weights after training on (images, labels) from a data loader."""
    return trained(loader(PIXELS, LABELS), small_module(labels))


def test_a_plain_batch_is_trained_like_the_image_batch_with_the_same_positions() -> None:
    batches = [
        ImageBatch(from_uint8(PIXELS[k : k + 6]), LABELS[k : k + 6], Draws(0, k // 6, range(6), 6))
        for k in range(0, 24, 6)
    ]
    expected = trained(given(batches), small_module(Labels(3, 0.2), dropout=0.1))
    assert torch.equal(trained(loader(PIXELS, LABELS), small_module(Labels(3, 0.2), dropout=0.1)), expected)


def test_uint8_images_and_float_images_train_the_same_weights() -> None:
    expected = expected_weights()
    assert torch.equal(trained(loader(from_uint8(PIXELS))), expected)
    assert torch.equal(trained(loader(from_uint8(PIXELS).double())), expected)
    assert not torch.equal(expected, weights(small_module().network))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda images, labels: (images, labels),
        lambda images, labels: [images, labels.to(torch.uint8)],
        lambda images, labels: {"image": images, "label": labels},
        lambda images, labels: {"pixel_values": images, "labels": labels, "index": labels},
        lambda images, labels: (images, Condition(labels)),
        lambda images, labels: {"images": images, "condition": Condition(labels)},
    ],
)
def test_images_and_labels_can_be_a_tuple_or_a_dict(arrange: Callable[[Tensor, Tensor], Any]) -> None:
    expected = expected_weights(Labels(3))
    batches = [arrange(PIXELS[k : k + 6], LABELS[k : k + 6]) for k in range(0, 24, 6)]
    assert torch.equal(trained(given(batches), small_module(Labels(3))), expected)


@pytest.mark.parametrize("arrange", [lambda images: images, lambda images: (images,), lambda images: {"image": images}])
def test_images_need_no_labels_and_labels_of_an_unconditional_network_have_no_effect(
    arrange: Callable[[Tensor], Any],
) -> None:
    batches = [arrange(batch) for batch in torch.split(PIXELS, 6)]
    assert torch.equal(trained(given(batches)), expected_weights())


def test_a_network_is_conditioned_on_all_parts_of_a_condition() -> None:
    def module() -> DiffusionModule:
        return small_module(condition_channels=1)

    with pytest.raises(ValueError, match="`image` must be"):
        train(module(), given([PIXELS[:6]]))
    small = from_uint8(PIXELS[:6])[:, :, ::2, ::2]
    by_condition = [
        trained(given([(PIXELS[:6], Condition(image=low))] * 4), module()) for low in (small, small, -small)
    ]
    assert torch.equal(by_condition[0], by_condition[1])
    assert not torch.equal(by_condition[0], by_condition[2])


UNUSABLE: dict[str, Any] = {
    r"images must be \[B, 1, 8, 8\] .*got \[6, 8, 8\]; add the channels with images\.unsqueeze\(1\)": PIXELS[:6, 0],
    r"images must be \[B, 1, 8, 8\] .*\[6, 8, 8, 1\]; move the channels with .*\(0, 3, 1, 2\)": PIXELS[
        :6, 0, :, :, None
    ],
    r"images must be \[B, 1, 8, 8\] for this network, got \[6, 1, 4, 4\]\.": PIXELS[:6, :, :4, :4],
    r"images must be uint8 or float in \[-1, 1\], got torch\.int64": PIXELS[:6].long(),
    r"float images must be in \[-1, 1\], got values from \d+ to 255; pass uint8 images, or scale": PIXELS[:6].float(),
    r"float images must be in \[-1, 1\], got NaN": torch.full((6, 1, 8, 8), torch.nan),
    r"float images must be in \[-1, 1\], got values from -1\.5 to -1\.5": torch.full((6, 1, 8, 8), -1.5),
    r"batch must be images, \(images, labels\) or a dict of them, got str": "images",
    r"batch must be images, \(images, labels\) or a dict of them, got \(Tensor, Tensor, Tensor\)": [PIXELS[:6]] * 3,
    r"dict must have one of the keys image, .* one of the keys label, .*, got x, y": {"x": PIXELS[:6], "y": LABELS[:6]},
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_a_batch_that_the_network_cannot_use_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_module().training_step(UNUSABLE[message], 0)


UNUSABLE_LABELS: dict[str, Any] = {
    r"must be \(images, labels\) for this network, which is conditioned on 3 classes, got no labels": PIXELS[:6],
    r"labels must be integers \[6\], one class per image, got torch\.int64 \[6, 3\]": (
        PIXELS[:6], torch.zeros(6, 3, dtype=torch.int64)
    ),
    r"labels must be integers \[6\], one class per image, got torch\.float32 \[6\]": (PIXELS[:6], torch.zeros(6)),
    r"labels must be in 0\.\.2, got labels from 0 to 3": (PIXELS[:6], torch.tensor([0, 1, 2, 3, 0, 0])),
}  # fmt: skip


@pytest.mark.parametrize("message", UNUSABLE_LABELS)
def test_labels_that_the_network_cannot_use_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_module(Labels(3)).training_step(UNUSABLE_LABELS[message], 0)


def test_values_are_read_only_in_the_first_batch() -> None:
    module = small_module()
    train(module, given([from_uint8(PIXELS[:6])] + [torch.full((6, 1, 8, 8), 2.0)] * 3))
    with pytest.raises(ValueError, match=r"in \[-1, 1\], got values from 2 to 2"):
        train(small_module(), given([torch.full((6, 1, 8, 8), 2.0)]))


def test_images_in_0_to_1_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    train(small_module(), loader(from_uint8(PIXELS)))
    assert "black is -1" not in caplog.text
    train(small_module(), loader(PIXELS / 255))
    assert caplog.text.count("black is -1 and white is 1; if the images are in [0, 1], pass 2 * images - 1") == 1
    assert [record.levelno for record in caplog.records if "black" in record.message] == [logging.WARNING]


def test_the_random_numbers_depend_on_the_seed_of_the_module_alone() -> None:
    def with_seed(seed: int, global_seed: int) -> Tensor:
        template = small_module()
        module = DiffusionModule(
            template.network, template.process, optimizer=template.optimizer, sampler=template.sampler, seed=seed
        )
        torch.manual_seed(global_seed)
        return trained(loader(PIXELS), module)

    assert torch.equal(with_seed(5, 0), with_seed(5, 1))
    assert not torch.equal(with_seed(5, 0), with_seed(6, 0))
    with pytest.raises(ValueError, match=r"seed must be a whole number in 0\.\.2\^63 - 1, got -1"):
        with_seed(-1, 0)


class RecordedTimes(Uniform):
    """Uniform times that record the random numbers of each batch."""

    batches: ClassVar[list[Draws]]

    def sample(self, draws: Any) -> tuple[Tensor, Tensor]:
        self.batches.append(draws)
        return super().sample(draws)


@pytest.fixture
def recorded() -> DiffusionModule:
    module = small_module()
    RecordedTimes.batches = []
    module.times = RecordedTimes(module.process.schedule)
    return module


def test_every_step_has_new_random_numbers_in_every_epoch(recorded: DiffusionModule) -> None:
    train(recorded, loader(PIXELS), max_steps=12)  # three epochs
    assert len({float(time) for draws in RecordedTimes.batches for time in draws.times()}) == 12 * 6


def test_a_step_of_accumulated_batches_equals_the_step_of_their_union() -> None:
    def with_batches(size: int, accumulate: int) -> Tensor:
        module = small_module()
        module.times = Stratified(module.process.schedule)  # its times depend on the size of the global batch
        batches = loader(PIXELS, batch_size=size)
        return trained(batches, module, accumulate_grad_batches=accumulate, precision="64-true")

    expected = with_batches(12, 1)
    for size, accumulate in ((6, 2), (4, 3)):
        torch.testing.assert_close(with_batches(size, accumulate), expected, rtol=0, atol=1e-9)


def test_the_images_of_a_step_have_different_positions_if_the_last_batch_is_smaller(recorded: DiffusionModule) -> None:
    train(recorded, loader(PIXELS[:10], batch_size=4), max_steps=4, accumulate_grad_batches=2)
    positions = [(draws.step, draws.positions) for draws in RecordedTimes.batches]
    epoch = [(0, [0, 1, 2, 3]), (0, [4, 5, 6, 7]), (1, [0, 1])]
    assert positions == [*epoch, *((step + 2, of_batch) for step, of_batch in epoch)]


def test_a_run_that_is_resumed_after_an_epoch_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    epochs: dict[str, Any] = {"max_steps": -1, "max_epochs": 4}
    expected = trained(loader(PIXELS), **epochs)
    train(small_module(), loader(PIXELS), max_steps=-1, max_epochs=2).save_checkpoint(tmp_path / "second.ckpt")
    assert torch.equal(trained(loader(PIXELS), ckpt_path=tmp_path / "second.ckpt", **epochs), expected)


@pytest.mark.parametrize("train_module", [lambda module: train(module, loader(PIXELS)), lambda module: fit(module, 4)])
def test_a_checkpoint_can_be_loaded_without_a_trainer(
    train_module: Callable[[DiffusionModule], Trainer], tmp_path: Path
) -> None:
    module, other = small_module(), small_module()
    train_module(module).save_checkpoint(tmp_path / "last.ckpt")
    loaded = DiffusionModule.load_from_checkpoint(
        tmp_path / "last.ckpt", network=other.network, process=other.process, sampler=other.sampler
    )
    assert torch.equal(loaded.sample(range(2)), module.sample(range(2)))


def test_a_loop_without_a_trainer_trains_with_the_same_random_numbers() -> None:
    expected = expected_weights()
    module = small_module()
    optimizer = module.optimizer(module.network)
    for step, batch in enumerate(loader(PIXELS)):
        module.training_step(batch, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(module.network), expected, rtol=0, atol=1e-7)


def test_the_defaults_are_those_of_ddpm_and_train() -> None:
    module = DiffusionModule(small_module().network, GaussianProcess(CosineSchedule()))
    assert module.prediction == Epsilon()
    assert module.objective == Denoising(Epsilon())
    assert module.times == Uniform(CosineSchedule())
    assert module.sampler == DDIM(module.process, num_steps=50)
    assert "torch.optim.adam.Adam" in module.optimizer.settings
    assert "lr=0.0002" in module.optimizer.settings
    assert [decay(10**9) for decay in module.ema.decays.values()] == [0.9999]
    before = weights(module.network)
    train(module, loader(PIXELS))
    assert (weights(module.network) - before).abs().max().item() == pytest.approx(4 * 2e-4, rel=0.1)  # Adam: 4 lr
    assert module.ema.num_updates == 4


def test_defaults_follow_the_given_parts() -> None:
    network = small_module().network
    assert DiffusionModule(network, GaussianProcess(LinearSchedule(20, 1e-3, 0.4))).sampler.num_steps == 20
    assert DiffusionModule(network, GaussianProcess(EDMSchedule())).sampler.num_steps == 50
    assert DiffusionModule(network, GaussianProcess(CosineSchedule()), prediction=V()).objective == Denoising(V())


def test_the_progress_bar_shows_the_loss() -> None:
    module = small_module()
    trainer = train(module, loader(PIXELS))
    assert trainer.progress_bar_metrics["loss"] == float(trainer.callback_metrics["loss"])


def test_a_classifier_trains_on_images_and_labels() -> None:
    network = HalfUNet(
        1, 3, resolution=8, channels=8, channel_multipliers=(1,), num_blocks=1, attention_resolutions=(),
        blocks=Blocks(num_groups=4),
    )  # fmt: skip
    process = GaussianProcess(LinearSchedule(20, 1e-3, 0.4))
    module = ClassifierModule(
        network, process, times=Uniform(process.schedule), optimizer=OptimizerFactory(torch.optim.AdamW, lr=1e-2)
    )
    bright = (PIXELS // 4 + (LABELS * 90).to(torch.uint8).view(-1, 1, 1, 1)).clamp(max=255)
    train(module, loader(bright, LABELS, batch_size=24), max_steps=60)
    predicted = module.classifier.logits(from_uint8(bright), torch.full((24,), 1 / 20, dtype=torch.float64)).argmax(1)
    assert (predicted == LABELS).float().mean().item() > 0.9
    with pytest.raises(ValueError, match="conditioned on 3 classes, got no labels"):
        module.training_step(PIXELS[:6], 0)


class InOrder(Sampler[int]):
    """The images of this rank in the order of DistributedSampler without shuffling, which Lightning's sampler does."""

    def __iter__(self) -> Iterator[int]:
        ranks = Ranks.current()
        return iter(range(ranks.rank, len(PIXELS), ranks.world_size))


def _train_on_ranks(folder: Path, num_ranks: int) -> None:
    torch.set_num_threads(1)
    batches = DataLoader(TensorDataset(PIXELS, LABELS), batch_size=6 // num_ranks, sampler=InOrder())
    module = small_module(Labels(3, dropout=0.2))
    module.times = Stratified(module.process.schedule)
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": num_ranks} if num_ranks > 1 else {}
    train(
        module, batches, max_steps=6, precision="64-true", use_distributed_sampler=False,
        callbacks=[SaveLast(str(folder), every_n_steps=6)], enable_checkpointing=True, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_ranks_train_the_weights_of_a_single_rank_with_their_joint_batches(tmp_path: Path) -> None:
    states = []
    for num_ranks in (1, 2):
        folder = tmp_path / str(num_ranks)
        process = forked_processes().Process(target=_train_on_ranks, args=(folder, num_ranks))
        process.start()
        process.join()
        assert process.exitcode == 0
        states.append(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-9)


def test_a_unet_of_another_package_needs_only_the_attributes_of_a_network() -> None:
    class TwoLayers(torch.nn.Module):
        in_channels, out_channels, resolution, labels = 1, 1, 8, Labels()

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1))

        def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
            output: Tensor = self.layers(x_t)
            return output

    module = DiffusionModule(TwoLayers(), GaussianProcess(CosineSchedule()))  # type: ignore[arg-type]
    train(module, loader(PIXELS))
    assert module.sample(range(2)).shape == (2, 1, 8, 8)
