from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.process import CosineSchedule, LinearSchedule, Uniform
from diffusion_lab.randomness import Draws


@dataclass
class GivenNumbers:
    numbers: Tensor

    def times(self) -> Tensor:
        return self.numbers


def test_uniform_times_are_all_steps_equally_often() -> None:
    t, _ = Uniform(LinearSchedule(25)).sample(GivenNumbers(torch.arange(1000).double() / 1000))
    times, counts = np.unique(t.numpy(), return_counts=True)
    assert t.dtype == torch.float64
    assert times.tolist() == [k / 25 for k in range(1, 26)]
    assert counts.tolist() == [40] * 25


def test_uniform_times_weigh_the_same() -> None:
    _, weight = Uniform(LinearSchedule(25)).sample(GivenNumbers(torch.tensor([0.0, 0.3, 0.999])))
    assert weight.dtype == torch.float32
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_times_of_a_training_step_are_steps_of_the_schedule() -> None:
    schedule = CosineSchedule(1000)
    t, _ = Uniform(schedule).sample(Draws(seed=3, step=5, positions=range(4096)))
    index = schedule.network_time(t)
    assert (float(index.min()), float(index.max())) == (0, 999)
    assert abs(float(index.mean()) - 499.5) < 15  # three standard errors: 1000 / sqrt(12 * 4096) = 4.5
