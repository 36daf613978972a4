import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from diffusion_lab.ema import EMA, ConstantDecay, Decay, RampedDecay


def network(value: float = 0.0) -> nn.Sequential:
    """Parameters all equal to `value`, buffers (of the normalisation), and dropout."""
    layers = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    return set_parameters(layers, value)


def set_parameters(layers: nn.Sequential, value: float) -> nn.Sequential:
    for parameter in layers.parameters():
        nn.init.constant_(parameter, value)
    return layers


def follow(decay: Decay, trajectory: list[float]) -> EMA:
    ema = EMA(network(trajectory[0]), decay)
    for value in trajectory[1:]:
        ema.update(network(value))
    return ema


def averages(ema: EMA) -> list[float]:
    """All values that a parameter of the average has."""
    return sorted({value for parameter in ema.network.parameters() for value in parameter.flatten().tolist()})


def test_average_under_constant_decay_is_the_weighted_sum_of_the_trajectory() -> None:
    trajectory = [1.0, 4.0, -2.0, 0.5, 8.0]
    expected = 0.9**4 * 1.0 + 0.1 * (0.9**3 * 4.0 + 0.9**2 * -2.0 + 0.9 * 0.5 + 8.0)
    assert averages(follow(ConstantDecay(0.9), trajectory)) == pytest.approx([expected], rel=1e-6)


def test_average_under_ramped_decay_follows_its_own_rule_at_every_update() -> None:
    first = 0.1 * 1.0 + 0.9 * 4.0  # decay 1 / 10
    second = 2 / 11 * first + 9 / 11 * -2.0
    third = 0.2 * second + 0.8 * 0.5  # 3 / 12 is above the largest decay
    assert averages(follow(RampedDecay(0.2), [1.0, 4.0, -2.0, 0.5])) == pytest.approx([third], rel=1e-6)


def test_average_starts_at_the_first_weights_and_is_a_network_of_its_own() -> None:
    trained = network(3.0)
    ema = EMA(trained, ConstantDecay(0.9))
    set_parameters(trained, 7.0)
    assert averages(ema) == [3.0]
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert not any(module.training for module in ema.modules())


def test_buffers_are_copied_not_averaged() -> None:
    trained = network(1.0)
    ema = EMA(trained, ConstantDecay(0.9))
    trained(torch.randn(7, 5))  # moves the statistics of the normalisation
    ema.update(trained)
    for average, buffer in zip(ema.network.buffers(), trained.buffers(), strict=True):
        assert torch.equal(average, buffer)
    assert int(ema.network[1].num_batches_tracked) == 1  # type: ignore[index]


def test_the_trained_network_is_left_alone() -> None:
    trained = network(3.0)
    before = copy.deepcopy(trained.state_dict())
    EMA(network(1.0), ConstantDecay(0.9)).update(trained)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert trained.training


def test_average_stays_in_evaluation_mode_while_its_owner_trains() -> None:
    owner = nn.ModuleDict({"network": network(1.0), "ema": EMA(network(1.0), ConstantDecay(0.9))})
    owner.train()
    assert owner["network"].training
    assert not any(module.training for module in owner["ema"].modules())
    x = torch.randn(7, 5)
    average = owner["ema"].network
    assert torch.equal(average(x), average(x))  # type: ignore[operator]


def test_an_average_restored_from_its_state_goes_on_as_if_never_stopped() -> None:
    whole = follow(RampedDecay(0.9), [1.0, 4.0, -2.0, 0.5])
    restored = EMA(network(-9.0), RampedDecay(0.9))
    restored.load_state_dict(follow(RampedDecay(0.9), [1.0, 4.0, -2.0]).state_dict())
    restored.update(network(0.5))
    assert int(restored.num_updates) == 3
    assert averages(restored) == averages(whole)


def test_average_of_a_resting_network_is_that_network() -> None:
    assert averages(follow(RampedDecay(), [3.0] * 6)) == [3.0]


def test_constant_decay_is_the_same_at_every_update() -> None:
    assert [ConstantDecay(0.99)(n) for n in (0, 1, 10**6)] == [0.99, 0.99, 0.99]


def test_ramped_decay_grows_from_a_tenth_to_its_largest() -> None:
    decays = [RampedDecay(0.999)(n) for n in (0, 8, 90, 8980, 8990, 10**6)]
    assert decays == pytest.approx([0.1, 0.5, 0.91, 8981 / 8990, 0.999, 0.999], rel=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantDecay(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: ConstantDecay(-0.1), r"decay must be in \[0, 1\), got -0.1"),
        (lambda: RampedDecay(1.5), r"max_decay must be in \[0, 1\), got 1.5"),
    ],
)
def test_decays_that_never_move_or_diverge_are_refused(build: Callable[[], Decay], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
