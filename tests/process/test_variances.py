import pytest
import torch
from torch import Tensor

from diffusion_lab.process import CosineSchedule, FixedLarge, FixedSmall, GaussianProcess, LinearSchedule, Variance

SCHEDULE = CosineSchedule(40)
PROCESS = GaussianProcess(SCHEDULE)


def times(*steps: int) -> Tensor:
    return torch.tensor(steps, dtype=torch.float64) / 40


def test_fixed_large_is_beta() -> None:
    variance = FixedLarge()(PROCESS, times(*range(1, 40)), times(*range(2, 41)))
    torch.testing.assert_close(variance, SCHEDULE.betas[1:], rtol=1e-9, atol=0)


def test_fixed_small_is_beta_tilde() -> None:
    variance = FixedSmall()(PROCESS, times(*range(1, 40)), times(*range(2, 41)))
    left = 1 - SCHEDULE.alpha_bar
    torch.testing.assert_close(variance, left[:-1] / left[1:] * SCHEDULE.betas[1:], rtol=1e-9, atol=0)


def test_variances_of_a_longer_leap_count_all_steps_between() -> None:
    leap = SCHEDULE.alpha_bar[29] / SCHEDULE.alpha_bar[9]  # from step 30 to step 10
    left = (1 - SCHEDULE.alpha_bar[9]) / (1 - SCHEDULE.alpha_bar[29])
    assert float(FixedLarge()(PROCESS, times(10), times(30))) == pytest.approx(float(1 - leap), rel=1e-9)
    assert float(FixedSmall()(PROCESS, times(10), times(30))) == pytest.approx(float(left * (1 - leap)), rel=1e-9)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=str)
@pytest.mark.parametrize("process", [PROCESS, GaussianProcess(LinearSchedule(40, 0.0, 0.98))], ids=str)
def test_the_last_step_adds_no_noise(variance: Variance, process: GaussianProcess) -> None:
    last = variance(process, times(0, 0, 0, 8), times(1, 17, 40, 9))
    assert last.dtype == torch.float64
    assert last[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(last[3]) > 0
