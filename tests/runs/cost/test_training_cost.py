"""Estimated cost of a run: operations, time and memory. The printed line is tested in test_training_cost_line.py."""

import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.callbacks import MeasureDistance, SampleImages
from diffusion_lab.callbacks.every import Every
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.features import FashionCNN
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.metrics.frechet import FrechetDistance
from diffusion_lab.networks import Blocks, Condition, Labels, UNet
from diffusion_lab.runs.cost.operations import Rates, count_operations, measure_rates
from diffusion_lab.runs.cost.training import Cost, estimate, measuring_seconds
from diffusion_lab.samplers import Heun
from support.small_runs import FewImages, small_module


def inputs(batch_size: int) -> tuple[Tensor, Tensor, Condition]:
    return torch.randn(batch_size, 1, 8, 8), torch.zeros(batch_size), Condition()


def data(batch_size: int = 12) -> ImageDataModule:
    return ImageDataModule(FewImages(), batch_size=batch_size, seed=3)


def cpu_trainer(**settings: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **settings)


def test_counted_operations_equal_those_of_a_forward_pass() -> None:
    network = small_module().network
    with FlopCounterMode(display=False) as counter:
        network(*inputs(6))
    operations = count_operations(network, inputs(2), batch_size=6)
    assert operations.flops == counter.get_total_flops() > 0
    assert operations.count > 50


def test_stored_activations_are_those_that_the_backward_pass_needs() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 3))
    operations = count_operations(network, (torch.zeros(2, 5),), batch_size=11)
    assert operations.stored == 4 * 11 * (5 + 7)  # the inputs of both layers; the sigmoid stores its output
    assert operations.flops == 2 * 11 * (5 * 7 + 7 * 3)


def test_counting_changes_neither_the_network_nor_the_random_state() -> None:
    network = small_module().network.eval()
    arguments, weights = inputs(2), [parameter.clone() for parameter in network.parameters()]
    state = torch.get_rng_state()
    count_operations(network, arguments, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), weights, strict=True))


def test_the_time_grows_with_operations_and_falls_with_the_rates() -> None:
    trainer = cpu_trainer(max_steps=5)
    slow, fast = Rates(1e9, 1e9), Rates(1e10, 1e10)
    one = estimate(small_module(), data(), trainer, slow)
    other = estimate(small_module(), data(), trainer, fast)
    doubled = estimate(small_module(), data(24), trainer, slow)
    assert 5 < one.seconds_per_step / other.seconds_per_step <= 10
    assert 1.8 < doubled.seconds_per_step / one.seconds_per_step < 2
    assert one.seconds_per_image == pytest.approx(doubled.seconds_per_image, rel=0.1)


def test_accumulated_batches_take_the_same_time_and_less_memory() -> None:
    rates = Rates(1e9, 1e9)
    whole = estimate(small_module(), data(), cpu_trainer(max_steps=5), rates)
    parts = estimate(small_module(), data(), cpu_trainer(max_steps=5, accumulate_grad_batches=4), rates)
    assert parts.seconds_per_step == pytest.approx(whole.seconds_per_step, rel=0.2)
    assert parts.memory < whole.memory


def test_checkpointing_takes_more_time_and_less_memory() -> None:
    costs = []
    for checkpointing in (False, True):
        blocks = Blocks(num_groups=4, checkpointing=checkpointing)
        network = UNet(
            1, 1, resolution=8, channels=8, channel_multipliers=(1,), attention_resolutions=(), blocks=blocks
        )
        costs.append(estimate(small_module(network=network), data(120), cpu_trainer(max_steps=5), Rates(1e9, 1e9)))
    plain, recomputed = costs
    assert recomputed.seconds_per_step / plain.seconds_per_step == pytest.approx(4 / 3, rel=0.05)
    assert recomputed.memory < plain.memory


@pytest.mark.full
def test_the_estimate_is_close_to_the_cpu_time_of_a_step() -> None:
    """CPU time on one thread, since the tests share their cores."""
    network = UNet(1, 1, resolution=28, channels=32, channel_multipliers=(1, 2, 2), attention_resolutions=(7,))
    network_inputs = (torch.randn(16, 1, 28, 28), torch.zeros(16), Condition())
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        operations = count_operations(network, network_inputs, batch_size=16)
        measure_rates.cache_clear()  # an earlier test may have measured them with more threads
        rates, seconds = measure_rates(torch.device("cpu"), "32-true"), []
        for _ in range(5):
            started = time.process_time()
            network(*network_inputs).square().mean().backward()
            seconds.append(time.process_time() - started)
    finally:
        torch.set_num_threads(num_threads)
    estimated = 3 * (operations.flops / rates.flops + operations.traffic / (0.45 * rates.bandwidth))
    assert 0.5 < estimated / statistics.median(seconds) < 2


def test_measurements_cost_the_evaluations_of_their_sampler_for_each_image(tmp_path: Path) -> None:
    module = small_module(Labels(3, 0.2))
    sampler, guidance = Heun(module.process, num_steps=3), Guidance(Strength(2.0))
    distances = MeasureDistance(
        FrechetDistance(FashionCNN()), str(tmp_path), sampler=sampler, num_samples=30, every_n_steps=4, also_at=[1],
        guidance=guidance,
    )  # fmt: skip
    images = SampleImages(str(tmp_path), every_n_steps=9, num_images=10)  # the module's sampler has 4 steps
    trainer = cpu_trainer(max_steps=9, callbacks=[distances, images])
    seconds = measuring_seconds(Cost(1, 1.0, 1.0, seconds_per_image=0.5), trainer, module, first_step=0)
    assert seconds == 0.5 * (4 * 30 * 5 * 2 + 1 * 10 * 4)  # steps 1, 4, 8 and 9 with guidance; and step 9


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [(0, 9, [2, 4, 8, 9]), (4, 9, [8, 9]), (0, 8, [2, 4, 8]), (0, 3, [2, 3]), (0, 2, [2])],
)
def test_an_action_is_counted_at_its_steps_and_at_the_end(first: int, last: int, steps: list[int]) -> None:
    assert Every(4, also_at=[2, 4]).count(first, last) == len(steps)


def test_the_rates_of_this_cpu_are_positive_and_leave_the_threads_unchanged() -> None:
    num_threads = torch.get_num_threads()
    measure_rates.cache_clear()
    rates = measure_rates(torch.device("cpu"), "32-true")
    assert rates.flops > 1e8
    assert rates.bandwidth > 1e8
    assert torch.get_num_threads() == num_threads
    assert measure_rates(torch.device("cpu"), "32-true") is rates  # measured once


def test_a_gpu_computes_half_precision_while_it_starts_operations() -> None:
    trainer = cpu_trainer(max_steps=5)
    on_cpu = estimate(small_module(), data(), trainer, Rates(1e9, 1e9))
    gpu: Any = SimpleNamespace(
        accumulate_grad_batches=1, world_size=1, precision="bf16-mixed",
        strategy=SimpleNamespace(root_device=torch.device("cuda", 0)),
    )  # fmt: skip
    on_gpu = estimate(small_module(), data(), gpu, Rates(1e9, 1e9))
    assert 0.5 < on_gpu.seconds_per_step / on_cpu.seconds_per_step < 1
