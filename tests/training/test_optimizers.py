"""Optimizers that are built from any class of torch.optim, and their parameter groups."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lab.networks import DiT, HalfUNet, Labels, PixelTransformer, UNet
from diffusion_lab.training import Muon, OptimizerFactory
from diffusion_lab.training.muon import orthogonalized


class Weight(nn.Module):
    """A network with a single parameter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value))


class FusedOnCPU(torch.optim.Adam):
    """Adam without a fused kernel for other devices."""

    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups
        if group["fused"] and group["params"][0].device.type != "cpu":
            raise RuntimeError("no fused kernel")
        return super().step(closure)


class WithoutClosure(torch.optim.SGD):
    """SGD that does not compute the loss."""

    def step(self, closure: Any = None) -> Any:
        return super().step()


def step(factory: OptimizerFactory, weight: float, gradient: float) -> float:
    network = Weight(weight)
    network.weight.grad = torch.full((3,), gradient)
    factory(network).step()
    return float(network.weight[0].detach())


def small_unet() -> UNet:
    return UNet(
        1,
        1,
        resolution=8,
        channels=32,
        channel_multipliers=(1,),
        num_blocks=1,
        attention_resolutions=(8,),
        labels=Labels(3),
    )


@pytest.mark.parametrize("fused", [True, False])
def test_the_first_step_of_adam_has_the_size_of_the_learning_rate_for_any_gradient(fused: bool) -> None:
    for gradient in (1e-3, 5.0):
        factory = OptimizerFactory(torch.optim.Adam, lr=0.01, fused=fused)
        assert step(factory, 1.0, gradient) == pytest.approx(0.99, abs=1e-6)


def test_arguments_reach_the_class() -> None:
    factory = OptimizerFactory(torch.optim.AdamW, lr=0.01, betas=[0.5, 0.8], eps=1e-5, weight_decay=0.5)
    assert step(factory, 3.0, 0.0) == pytest.approx(3 * (1 - 0.01 * 0.5), rel=1e-6)
    (group,) = factory(Weight(1.0)).param_groups
    assert (group["betas"], group["eps"]) == ((0.5, 0.8), 1e-5)


def test_a_fused_kernel_is_used_only_on_a_device_that_has_one() -> None:
    assert OptimizerFactory(torch.optim.Adam, lr=0.1, fused=True)(Weight(1.0)).param_groups[0]["fused"]
    without_kernel = OptimizerFactory(FusedOnCPU, lr=0.1, fused=True)
    assert without_kernel(Weight(1.0)).param_groups[0]["fused"]
    assert not without_kernel(Weight(1.0).to("meta")).param_groups[0]["fused"]


def test_weight_decay_can_leave_out_norms_biases_and_embeddings() -> None:
    network = small_unet()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, others = OptimizerFactory(
        torch.optim.AdamW, lr=0.1, weight_decay=0.3, decay_matrices_only=True
    )(network).param_groups  # fmt: skip
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {names[id(p)] for p in decayed["params"]} == {
        name for name, p in network.named_parameters() if p.ndim > 1 and name != "label_embedding.weight"
    }
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerFactory(torch.optim.Adam, lr=0.0), "lr must be above 0, got 0.0"),
        (lambda: OptimizerFactory(torch.optim.Adam, lr=float("nan")), "lr must be above 0, got nan"),
        (lambda: OptimizerFactory(torch.optim.Adam, lr=1.0, betas=[0.9]), r"betas must be two numbers in \[0, 1\)"),
        (lambda: OptimizerFactory(torch.optim.SGD, lr=1.0, momentum=1.5), r"momentum must be in \[0, 1\), got 1.5"),
        (lambda: OptimizerFactory(torch.optim.LBFGS, lr=1.0), "step needs no closure .*, got LBFGS"),
        (lambda: OptimizerFactory(torch.optim.SparseAdam, lr=1.0), "SparseAdam .* does not support dense gradients"),
        (lambda: OptimizerFactory(WithoutClosure, lr=1.0), r"its step\(closure\) must call the closure"),
        (lambda: OptimizerFactory(torch.optim.SGD, lr=1.0, nesterov=True), "SGD .* Nesterov momentum requires"),
        (lambda: OptimizerFactory(torch.optim.SGD, lr=1.0, beta=1), "SGD .* unexpected keyword argument 'beta'"),
        (lambda: OptimizerFactory(Muon, lr=1.0, adjust_lr_fn="none"), "adjust_lr_fn must be one of original, match"),
    ],
)
def test_settings_that_cannot_train_are_rejected(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_settings_are_equal_for_equal_arguments_only() -> None:
    settings = {
        OptimizerFactory(torch.optim.Adam, lr=lr, betas=betas).settings
        for lr in (0.1, 0.2)
        for betas in ([0.9, 0.99], (0.9, 0.99))
    }
    assert len(settings) == 2


NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "unet": (small_unet, {"conv_in", "conv_out"}),
    "half_unet": (
        lambda: HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1, 1), attention_resolutions=(4,)),
        {"conv_in", "pool.out"},
    ),
    "dit": (lambda: DiT(1, 1, resolution=8, channels=32, depth=1, num_heads=2), {"patches", "head.out"}),
    "pixel_transformer": (
        lambda: PixelTransformer(1, 1, resolution=8, patch_size=2, channels=32, depth=1, num_heads=2, bottleneck=16),
        set(),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_muon_takes_hidden_matrices_and_kernels_only(name: str) -> None:
    build, first_and_last = NETWORKS[name]
    network = build()
    matrices, others = Muon.parameter_groups(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    hidden, rest = ({names[id(p)] for p in group["params"]} for group in (matrices, others))
    assert hidden | rest == {*names.values()}
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert {f"{layer}.weight" for layer in first_and_last} <= rest
    assert not any("emb" in name for name in hidden)
    assert len(hidden) > 3


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (12, 5, 3, 3), (5, 12, 3, 3), (7, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_update_equals_that_of_torch_on_matrices_and_flattened_kernels(
    shape: tuple[int, ...], adjust_lr_fn: str, nesterov: bool
) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "nesterov": nesterov}
    ours = nn.Parameter(random(*shape))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    muon = Muon([ours], adjust_lr_fn=adjust_lr_fn, **settings)
    reference = torch.optim.Muon([theirs], adjust_lr_fn=adjust_lr_fn, **settings)
    for seed in range(1, 4):
        ours.grad = random(*shape, seed=seed)
        theirs.grad = ours.grad.flatten(1).clone()
        muon.step()
        reference.step()  # type: ignore[no-untyped-call]
    assert torch.equal(ours.detach().flatten(1), theirs.detach())


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_orthogonalization_in_bfloat16_is_close_to_float64(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    low, high = orthogonalized(matrix).double(), orthogonalized(matrix, dtype=torch.float64)
    assert float((low - high).norm() / high.norm()) < 3e-2
    singular_values = torch.linalg.svdvals(high)
    assert 0.6 < float(singular_values.min()) <= float(singular_values.max()) < 1.3


def test_other_parameters_are_updated_by_adamw() -> None:
    network, other = small_unet(), small_unet()
    other.load_state_dict(network.state_dict())
    muon = OptimizerFactory(Muon, lr=0.01, weight_decay=0.1, fused=True)(network)
    adamw = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for seed in range(3):
        for one, two in zip(network.parameters(), other.parameters(), strict=True):
            one.grad = random(*one.shape, seed=seed)
            two.grad = one.grad.clone()
        muon.step()
        adamw.step()
    hidden = {id(p) for p in Muon.parameter_groups(network)[0]["params"]}
    equal = [torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True)]
    assert equal == [id(p) not in hidden for p in network.parameters()]


def test_muon_continues_from_its_state_to_the_bit() -> None:
    network = small_unet()

    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            for parameter in network.parameters():
                parameter.grad = random(*parameter.shape, seed=seed)
            optimizer.step()

    factory = OptimizerFactory(Muon, lr=0.01, weight_decay=0.1, fused=True)
    optimizer = factory(network)
    steps(network, optimizer, range(2))
    resumed = small_unet()
    resumed.load_state_dict(network.state_dict())
    other = factory(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(network, optimizer, range(2, 4))
    steps(resumed, other, range(2, 4))
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), resumed.parameters(), strict=True))
