from collections.abc import Callable

import pytest

from diffusion_lab.training import ConstantWithWarmup, CosineWithWarmup, LRSchedule


def factors(schedule: LRSchedule, num_steps: int) -> list[float]:
    return [schedule(step) for step in range(num_steps)]


def test_a_schedule_without_warm_up_is_constant() -> None:
    assert factors(ConstantWithWarmup(), 4) == [1.0] * 4


def test_warm_up_grows_linearly_to_the_full_learning_rate() -> None:
    assert factors(ConstantWithWarmup(num_warmup_steps=4), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_falls_from_the_full_learning_rate_to_0_and_stays_there() -> None:
    expected = [1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0.0, 0.0]
    assert factors(CosineWithWarmup(0, 6), 8) == pytest.approx(expected, abs=1e-7)


def test_the_cosine_starts_when_the_warm_up_ends() -> None:
    expected = [0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0, 0]
    assert factors(CosineWithWarmup(2, 6), 8) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantWithWarmup(-1), "num_warmup_steps must be at least 0, got -1"),
        (lambda: CosineWithWarmup(-1, 4), "num_warmup_steps must be at least 0, got -1"),
        (lambda: CosineWithWarmup(4, 4), r"num_decay_steps must be greater than num_warmup_steps \(4\), .*, got 4"),
        (lambda: CosineWithWarmup(0, 0), r"num_decay_steps must be greater than num_warmup_steps \(0\), .*, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
