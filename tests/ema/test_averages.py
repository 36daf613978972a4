import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from diffusion_lab.ema.averages import EMA, ConstantDecay, Decay, HalfLifeDecay, PowerFunctionDecay, RampedDecay


def network(value: float = 0.0) -> nn.Sequential:
    """Return a network with all parameters equal to `value`, buffers of a normalization, and dropout."""
    layers = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    return set_parameters(layers, value)


def set_parameters(layers: nn.Sequential, value: float) -> nn.Sequential:
    for parameter in layers.parameters():
        nn.init.constant_(parameter, value)
    return layers


def average_of(decay: Decay, trajectory: list[float]) -> EMA:
    ema = EMA(network(trajectory[0]), {"main": decay})
    for value in trajectory[1:]:
        ema.update(network(value))
    return ema


def averages(ema: EMA, name: str = "main") -> list[float]:
    """Return all distinct values of the parameters of an average."""
    return sorted({value for parameter in ema.networks[name].parameters() for value in parameter.flatten().tolist()})


def weights_of_steps(decay: Decay, num_steps: int) -> torch.Tensor:
    """Return the weight of the initial weights and of each step in the average: [1 + num_steps], float64."""
    layer = nn.Linear(num_steps + 1, 1, bias=False, dtype=torch.float64)
    one_hot = torch.eye(num_steps + 1, dtype=torch.float64)
    layer.load_state_dict({"weight": one_hot[:1]})
    ema = EMA(layer, {"main": decay})
    for step in range(1, num_steps + 1):
        layer.load_state_dict({"weight": one_hot[step : step + 1]})
        ema.update(layer)
    return next(ema.network.parameters()).detach()[0]


def test_average_with_constant_decay_is_the_weighted_sum_of_the_trajectory() -> None:
    trajectory = [1.0, 4.0, -2.0, 0.5, 8.0]
    expected = 0.9**4 * 1.0 + 0.1 * (0.9**3 * 4.0 + 0.9**2 * -2.0 + 0.9 * 0.5 + 8.0)
    assert averages(average_of(ConstantDecay(0.9), trajectory)) == pytest.approx([expected], rel=1e-6)


def test_average_with_ramped_decay_uses_the_decay_of_each_update() -> None:
    first = 0.1 * 1.0 + 0.9 * 4.0  # decay 1 / 10
    second = 2 / 11 * first + 9 / 11 * -2.0
    third = 0.2 * second + 0.8 * 0.5  # 3 / 12 is above the largest decay
    assert averages(average_of(RampedDecay(0.2), [1.0, 4.0, -2.0, 0.5])) == pytest.approx([third], rel=1e-6)


def test_every_average_has_its_own_decay_and_sampling_uses_the_first() -> None:
    ema = EMA(network(1.0), {"slow": ConstantDecay(0.9), "fast": ConstantDecay(0.5), "ramp": RampedDecay()})
    for value in (4.0, -2.0):
        ema.update(network(value))
    assert averages(ema, "slow") == pytest.approx([0.81 * 1.0 + 0.09 * 4.0 + 0.1 * -2.0], rel=1e-6)
    assert averages(ema, "fast") == pytest.approx([0.25 * 1.0 + 0.25 * 4.0 + 0.5 * -2.0], rel=1e-6)
    assert averages(ema, "ramp") == pytest.approx([2 / 11 * 3.7 + 9 / 11 * -2.0], rel=1e-6)
    assert ema.network is ema.networks["slow"]
    assert ema.num_updates == 2


def test_an_update_is_one_pass_over_the_weights_for_each_average(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    lerp = torch._foreach_lerp_

    def counted(averages: list[torch.Tensor], parameters: list[torch.Tensor], weight: float) -> None:
        passes.append(len(averages))
        lerp(averages, parameters, weight)

    monkeypatch.setattr(torch, "_foreach_lerp_", counted)
    ema = EMA(network(1.0), {"slow": ConstantDecay(0.9), "fast": ConstantDecay(0.5)})
    ema.update(network(2.0))
    assert passes == [4, 4]


def test_average_starts_at_the_initial_weights_and_is_a_separate_network() -> None:
    trained = network(3.0)
    ema = EMA(trained, {"main": ConstantDecay(0.9)})
    set_parameters(trained, 7.0)
    assert averages(ema) == [3.0]
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert not any(module.training for module in ema.modules())


def test_buffers_are_copied_not_averaged() -> None:
    trained = network(1.0)
    ema = EMA(trained, {"main": ConstantDecay(0.9)})
    trained(torch.randn(7, 5))  # updates the statistics of the normalization
    ema.update(trained)
    for average, buffer in zip(ema.network.buffers(), trained.buffers(), strict=True):
        assert torch.equal(average, buffer)
    assert int(ema.network[1].num_batches_tracked) == 1  # type: ignore[index]


def test_the_trained_network_is_unchanged() -> None:
    trained = network(3.0)
    before = copy.deepcopy(trained.state_dict())
    EMA(network(1.0), {"main": ConstantDecay(0.9)}).update(trained)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert trained.training


def test_average_stays_in_evaluation_mode_when_its_parent_is_in_training_mode() -> None:
    parent = nn.ModuleDict({"network": network(1.0), "ema": EMA(network(1.0), {"main": ConstantDecay(0.9)})})
    parent.train()
    assert parent["network"].training
    assert not any(module.training for module in parent["ema"].modules())
    x = torch.randn(7, 5)
    average = parent["ema"].network
    assert torch.equal(average(x), average(x))  # type: ignore[operator]


def test_an_average_restored_from_its_state_dict_continues_identically() -> None:
    whole = average_of(RampedDecay(0.9), [1.0, 4.0, -2.0, 0.5])
    restored = EMA(network(-9.0), {"main": RampedDecay(0.9)})
    restored.load_state_dict(average_of(RampedDecay(0.9), [1.0, 4.0, -2.0]).state_dict())
    restored.update(network(0.5))
    assert restored.num_updates == 3
    assert averages(restored) == averages(whole)


def test_average_of_a_constant_network_is_that_network() -> None:
    assert averages(average_of(RampedDecay(), [3.0] * 6)) == [3.0]


def test_constant_decay_is_the_same_at_every_update() -> None:
    assert [ConstantDecay(0.99)(n) for n in (0, 1, 10**6)] == [0.99, 0.99, 0.99]


def test_ramped_decay_increases_from_a_tenth_to_max_decay() -> None:
    decays = [RampedDecay(0.999)(n) for n in (0, 8, 90, 8980, 8990, 10**6)]
    assert decays == pytest.approx([0.1, 0.5, 0.91, 8981 / 8990, 0.999, 0.999], rel=1e-12)


@pytest.mark.parametrize("rampup_ratio", [None, 0.05])
def test_the_weight_of_a_step_halves_after_half_life_images(rampup_ratio: float | None) -> None:
    weights = weights_of_steps(HalfLifeDecay(160, batch_size=8, rampup_ratio=rampup_ratio), 700)
    assert weights.sum().item() == pytest.approx(1)
    # 160 images are 20 steps. With rampup, the half-life reaches 160 images at image 160 / 0.05 = 3200, step 400.
    assert (weights[430:680] / weights[450:700]).tolist() == pytest.approx([0.5] * 250)
    if rampup_ratio is None:
        assert (weights[1:680] / weights[21:700]).tolist() == pytest.approx([0.5] * 679)
        assert weights[0].item() == pytest.approx(0.5**35)


def test_the_ramped_half_life_is_a_fraction_of_the_images_seen() -> None:
    decay = HalfLifeDecay(500_000, batch_size=512, rampup_ratio=0.05)
    decays = [decay(n) for n in (0, 1, 1000, 10**6)]
    assert decays == pytest.approx([0.0, 0.5**20, 0.5 ** (1 / 50), 0.5 ** (512 / 500_000)])
    assert weights_of_steps(decay, 5)[0] == 0


@pytest.mark.parametrize("relative_width", [0.05, 0.1, 0.25])
def test_weights_of_steps_are_the_closed_form_of_the_power_function(relative_width: float) -> None:
    decay = PowerFunctionDecay(relative_width)
    power = decay.exponent + 1
    i = torch.arange(1, 301, dtype=torch.float64)
    expected = torch.cat([torch.zeros(1, dtype=torch.float64), (i**power - (i - 1) ** power) / 300**power])
    torch.testing.assert_close(weights_of_steps(decay, 300), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("relative_width", [0.01, 0.05, 0.1, 0.288])
def test_the_relative_width_is_the_std_of_the_steps_as_a_fraction_of_training(relative_width: float) -> None:
    power = PowerFunctionDecay(relative_width).exponent + 1
    edges = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    weights, fraction = (edges**power).diff(), (edges[1:] + edges[:-1]) / 2
    std = ((fraction**2 * weights).sum() - (fraction * weights).sum() ** 2).sqrt()
    assert std.item() == pytest.approx(relative_width, rel=1e-6)


def test_exponents_are_those_of_the_paper() -> None:
    exponents = [PowerFunctionDecay(width).exponent for width in (0.05, 0.1)]
    assert exponents == pytest.approx([16.97, 6.94], abs=0.005)  # Karras et al. (2024), section 3.2


@pytest.mark.parametrize(
    ("decays", "message"),
    [
        ({}, r"ema.decays must have at least one average, got \{\}"),
        ({"main": 0.9}, r"ema.decays.main must be a Decay, got 0.9"),
        ({"raw": RampedDecay()}, r"keys of ema.decays must be identifiers other than raw .* got raw"),
        ({"main.fast": RampedDecay()}, r"must be identifiers .* got main.fast"),
        ({"keys": RampedDecay()}, r"must be identifiers .* attribute names of nn.ModuleDict, got keys"),
    ],
)
def test_averages_with_an_invalid_name_or_decay_are_rejected(decays: dict[str, Decay], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(network(), decays)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantDecay(1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: ConstantDecay(-0.1), r"decay must be in \[0, 1\), got -0.1"),
        (lambda: RampedDecay(1.5), r"max_decay must be in \[0, 1\), got 1.5"),
        (lambda: HalfLifeDecay(0, 64), r"half_life_images must be above 0, got 0"),
        (lambda: HalfLifeDecay(500, 0), r"batch_size must be above 0, got 0"),
        (lambda: HalfLifeDecay(500, 64, -1.0), r"rampup_ratio must be above 0, got -1.0"),
        (lambda: PowerFunctionDecay(0.0), r"relative_width must be in \(0, 0.288\], got 0.0"),
        (lambda: PowerFunctionDecay(0.29), r"relative_width must be in \(0, 0.288\], got 0.29"),
    ],
)
def test_decays_out_of_range_are_rejected(build: Callable[[], Decay], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_an_update_uses_the_network_that_it_receives_and_its_current_dtype() -> None:
    first, second, ema = network(1.0), network(3.0), EMA(network(0.0), {"ema": ConstantDecay(0.5)})
    for trained, expected in ((first, 0.5), (second, 1.75), (first, 1.375)):
        ema.update(trained)
        assert all(torch.equal(p, torch.full_like(p, expected)) for p in ema.network.parameters())
    ema.double().update(second.double())
    assert all(torch.equal(p, torch.full_like(p, 2.1875)) for p in ema.network.parameters())


def test_a_copy_of_an_average_is_updated_independently() -> None:
    trained = network(1.0)
    ema = EMA(trained, {"main": ConstantDecay(0.0)})
    ema.update(trained)
    other = copy.deepcopy(ema)
    set_parameters(trained, 5.0)
    other.update(trained)
    assert averages(other) == pytest.approx([5.0] * len(averages(other)))
    assert averages(ema) == pytest.approx([1.0] * len(averages(ema)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_of_a_network_in_half_precision_moves_at_every_update(dtype: torch.dtype) -> None:
    """In half precision, an update of 1e-4 of the distance is below the rounding error of most numbers."""
    torch.manual_seed(0)
    trained, ema = nn.Linear(50, 40), EMA(nn.Linear(50, 40), {"main": ConstantDecay(0.9999)})
    nn.ModuleList([trained, ema]).to(dtype)
    before, target = weights_of(ema.network), weights_of(trained).double()
    for _ in range(100):
        ema.update(trained)
    expected = before + (target - before) * (1 - 0.9999**100)
    assert before.dtype == torch.float32
    assert torch.allclose(weights_of(ema.network).double(), expected, rtol=0, atol=1e-6)
    half = before.to(dtype)
    assert (torch.lerp(half, target.to(dtype), 1e-4) != half).double().mean() < 0.5


def weights_of(layer: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])


def test_the_average_of_a_network_that_was_built_in_half_precision_is_float32() -> None:
    ema = EMA(network(1.0).to(torch.bfloat16), {"main": ConstantDecay(0.5)})
    assert {value.dtype for value in ema.network.parameters()} == {torch.float32}
    ema.load_state_dict({k: v.bfloat16() if v.is_floating_point() else v for k, v in ema.state_dict().items()})
    ema.update(network(2.0).to(torch.bfloat16))  # a checkpoint from before, with a bfloat16 average
    assert averages(ema) == [1.5]


def test_thousands_of_averages_are_refused_before_the_network_is_copied() -> None:
    decays = {f"d{number}": ConstantDecay(0.9) for number in range(101)}
    with pytest.raises(ValueError, match=r"ema\.decays must have at most 100 averages, got 101"):
        EMA(nn.Linear(2, 2), decays)
