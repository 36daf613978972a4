"""Inception with random weights, for tests that cannot download the real weights."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as original


def random_inception(path: Path) -> Path:
    """Write random weights, identical in every call, that give different features for different images."""
    with mock.patch.object(original, "load_state_dict_from_url"), mock.patch.object(nn.Module, "load_state_dict"):
        network: Any = original.FeatureExtractorInceptionV3("random", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    network.fc.weight.data.mul_(10)  # 1 would give uniform class probabilities, 100 one-hot
    network.fc.bias.data.normal_(generator=generator)  # nonzero, so that tests notice if it is not omitted
    torch.save(network.state_dict(), path)
    return path
