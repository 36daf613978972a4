"""Initial weights from another network: which tensors are taken, and the rows of classes with the same name."""

import re

import pytest
import torch

from diffusion_lab.networks import Labels, UNet
from diffusion_lab.training.initial_weights import Classes, Fit, network_weights, take
from support.networks import small_unet
from support.small_runs import small_module


def unet(seed: int, channels: int = 1, labels: Labels | None = None, *, out_channels: int | None = None) -> UNet:
    torch.manual_seed(seed)
    return small_unet(channels, labels, out_channels=out_channels)


@pytest.mark.parametrize("learned_variance", [False, True])
def test_all_tensors_of_the_same_shape_are_taken_and_the_others_are_named(learned_variance: bool) -> None:
    source, network = unet(1), unet(2, out_channels=2) if learned_variance else unet(2, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fit = take(network, source.state_dict())
    others = ["conv_out.weight", "conv_out.bias"]
    assert fit.made_anew == (others if learned_variance else ["conv_in.weight", *others])
    assert sorted(fit.taken + fit.made_anew) == sorted(before)
    for name, tensor in network.state_dict().items():
        expected = before[name] if name in fit.made_anew else source.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_rows_of_a_class_table_are_taken_by_the_names_of_the_classes() -> None:
    source, network = unet(1, labels=Labels(3, dropout=0.1)), unet(2, labels=Labels(2, dropout=0.1))
    before = network.state_dict()["label_embedding.weight"].clone()
    theirs = Classes({"cat": 0, "dog": 1, "cow": 2}, null=3)
    fit = take(network, source.state_dict(), Classes({"owl": 0, "dog": 1}, null=2), theirs)
    name, table = "label_embedding.weight", network.state_dict()["label_embedding.weight"]
    assert fit.rows == {name: ["dog", "(the null label)"]}
    assert fit.made_anew == [name]
    assert torch.equal(table[1:], source.state_dict()[name][[1, 3]])
    assert torch.equal(table[0], before[0])
    assert name in take(network, network.state_dict(), theirs, theirs).taken  # a table of the same classes


def test_a_table_of_other_classes_of_the_same_number_is_made_anew() -> None:
    source, network = unet(1, labels=Labels(2)), unet(2, labels=Labels(2))
    before = network.state_dict()["label_embedding.weight"].clone()
    fit = take(network, source.state_dict(), Classes({"owl": 0, "bat": 1}), Classes({"cat": 0, "dog": 1}))
    assert fit.rows == {"label_embedding.weight": []}
    assert torch.equal(network.state_dict()["label_embedding.weight"], before)


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = unet(1).state_dict()
    weights["conv_in.bias"][0] = torch.nan
    with pytest.raises(ValueError, match=r"the weights of `init` must be finite, got conv_in.bias with"):
        take(unet(2), weights)


def test_weights_that_a_network_does_not_have_are_listed() -> None:
    assert take(unet(2), {"other.weight": torch.zeros(3)}) == Fit([], [*unet(2).state_dict()], ["other.weight"])


def test_the_first_average_is_taken_unless_other_weights_are_named() -> None:
    module = small_module()
    state = module.state_dict() | {"ema.networks.main.conv_in.bias": torch.ones(8)}
    assert [network_weights(state, name)[1] for name in (None, "main", "raw")] == ["main", "main", "raw"]
    assert torch.equal(network_weights(state, None)[0]["conv_in.bias"], torch.ones(8))
    assert torch.equal(network_weights(state, "raw")[0]["conv_in.bias"], module.network.state_dict()["conv_in.bias"])
    without = {name: value for name, value in state.items() if name.startswith("network.")}
    assert network_weights(without, None)[1] == "raw"
    with pytest.raises(ValueError, match=re.escape("`init_weights` must be main or raw, got narrow.")):
        network_weights(state, "narrow")
