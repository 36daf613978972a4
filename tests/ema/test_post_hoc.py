"""Profiles of power-function averages and their combinations."""

import numpy as np
import pytest
import torch

from diffusion_lab.ema import post_hoc
from diffusion_lab.ema.post_hoc import Profile, combination

SAVED = [Profile(width, step) for step in range(8, 401, 8) for width in (0.05, 0.1)]


def matrix_of(profiles: list[Profile], num_steps: int) -> torch.Tensor:
    steps = torch.arange(1, num_steps + 1, dtype=torch.float64)
    return torch.stack([profile.weights(steps) for profile in profiles])


def test_a_profile_is_the_closed_form_and_ends_at_its_step() -> None:
    profile = Profile(0.1, 20)
    power = profile.exponent + 1
    expected = [(i**power - (i - 1) ** power) / 20**power for i in range(1, 21)] + [0.0] * 5
    assert matrix_of([profile], 25)[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert sum(expected) == pytest.approx(1)


def test_a_combination_is_the_least_squares_solution_whose_coefficients_sum_to_1() -> None:
    saved, target = SAVED[::9], Profile(0.2, SAVED[::9][-1].step)
    found = combination(saved, target)
    columns, goal = matrix_of(saved, target.step).T.numpy(), matrix_of([target], target.step)[0].numpy()
    # The same problem solved with a Lagrange multiplier.
    size = len(saved)
    system = np.block([[columns.T @ columns, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
    expected = np.linalg.solve(system, np.append(columns.T @ goal, 1.0))[:size]
    assert found.coefficients == pytest.approx(expected, rel=1e-6)
    assert sum(found.coefficients) == pytest.approx(1, abs=1e-12)
    residual = np.linalg.norm(columns @ expected - goal) / np.linalg.norm(goal)
    assert found.residual == pytest.approx(residual, rel=1e-6)
    assert residual > 1e-3  # otherwise the previous line would compare rounding errors


@pytest.mark.parametrize("steps_at_once", [1, 37])
def test_a_combination_does_not_depend_on_the_block_size(steps_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = combination(SAVED[-20:], Profile(0.07, 400))
    monkeypatch.setattr(post_hoc, "STEPS_AT_ONCE", steps_at_once)
    found = combination(SAVED[-20:], Profile(0.07, 400))
    assert found.coefficients == pytest.approx(expected.coefficients, rel=1e-6, abs=1e-9)


def test_a_saved_average_is_its_own_combination() -> None:
    found = combination(SAVED, Profile(0.05, 400))
    assert found.coefficients == pytest.approx([0.0] * 98 + [1.0, 0.0], abs=1e-9)
    assert found.residual < 1e-12
    assert combination([Profile(0.1, 9)], Profile(0.1, 9)).coefficients == (1.0,)


def test_fifty_snapshots_approximate_widths_from_a_third_of_the_smaller_to_twice_the_larger() -> None:
    residuals = [combination(SAVED, Profile(width, 400)).residual for width in (0.017, 0.03, 0.07, 0.13, 0.2)]
    assert all(residual < bound for residual, bound in zip(residuals, (0.03, 0.01, 1e-3, 1e-3, 0.01), strict=True))
    assert combination(SAVED, Profile(0.005, 400)).residual > 0.2
    assert combination(SAVED, Profile(0.288, 400)).residual > 0.1


@pytest.mark.parametrize("step", [399, 401])
def test_averages_that_do_not_end_at_the_target_step_are_rejected(step: int) -> None:
    with pytest.raises(ValueError, match=rf"`averages` must end at step {step}, got \[400\]"):
        combination(SAVED, Profile(0.1, step))
