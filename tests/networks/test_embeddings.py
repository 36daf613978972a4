import math
from typing import Any

import pytest
import torch

from diffusion_lab.networks import Condition, Sinusoids
from diffusion_lab.networks.embeddings import TimeEmbedding


def test_time_becomes_sines_then_cosines_at_geometric_frequencies() -> None:
    time, channels = [0.0, 1.0, 250.0, 999.0, 3999.0], 12
    frequencies = [10_000 ** (-k / 5) for k in range(6)]  # Ho et al. (2020), code: from 1 to 1 / 10000, both included
    expected = [[f(t * w) for f in (math.sin, math.cos) for w in frequencies] for t in time]
    embedding = Sinusoids()(torch.tensor(time), channels)
    torch.testing.assert_close(embedding, torch.tensor(expected), rtol=0, atol=5e-4)


def test_time_is_embedded_in_float32_whatever_its_dtype() -> None:
    for dtype in (torch.float64, torch.int64):
        embedding = Sinusoids()(torch.tensor([3, 999], dtype=dtype), 8)
        assert embedding.dtype == torch.float32
        assert torch.equal(embedding, Sinusoids()(torch.tensor([3.0, 999.0]), 8))


def test_all_thousand_steps_are_told_apart() -> None:
    embedding = Sinusoids()(torch.arange(1000), 32)
    distances = torch.cdist(embedding, embedding) + torch.eye(1000)
    assert float(distances.min()) > 0.5


def test_embedding_has_the_channels_that_residual_blocks_expect() -> None:
    assert TimeEmbedding(8, 36)(torch.tensor([0.0, 3.0, 999.0])).shape == (3, 36)


def test_an_augmentation_is_added_to_the_sinusoids_by_a_linear_map() -> None:
    embed, time = TimeEmbedding(8, 36, num_augmentation_channels=3), torch.tensor([0.0, 3.0])
    numbers = torch.randn(2, 3)
    expected = embed.layers(Sinusoids()(time, 8) + numbers @ embed.augmentation.weight.mT)
    torch.testing.assert_close(embed(time, Condition(augmentation=numbers)), expected)
    assert torch.equal(embed(time, Condition(augmentation=torch.zeros(2, 3))), embed(time))


def test_the_noise_of_a_low_resolution_image_is_the_last_number() -> None:
    embed, time = TimeEmbedding(8, 36, num_augmentation_channels=3), torch.tensor([0.0, 3.0])
    numbers, noise = torch.randn(2, 2), torch.tensor([0.1, 0.4])
    both = Condition(augmentation=numbers, low_resolution_noise=noise)
    joined = Condition(augmentation=torch.cat([numbers, noise[:, None]], dim=1))
    assert torch.equal(embed(time, both), embed(time, joined))
    alone = Condition(augmentation=torch.cat([torch.zeros(2, 2), noise[:, None]], dim=1))
    assert torch.equal(embed(time, Condition(low_resolution_noise=noise)), embed(time, alone))


@pytest.mark.parametrize(("wanted", "given"), [(0, 3), (9, 3)])
def test_an_augmentation_of_another_length_is_refused(wanted: int, given: int) -> None:
    embed = TimeEmbedding(8, 36, num_augmentation_channels=wanted)
    message = f"must have num_augmentation_channels={wanted} values per image, got {given}"
    with pytest.raises(ValueError, match=message):
        embed(torch.tensor([0.0, 3.0]), Condition(augmentation=torch.zeros(2, given)))


def test_a_negative_length_of_the_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="num_augmentation_channels must be at least 0, got -1"):
        TimeEmbedding(8, 36, num_augmentation_channels=-1)


@pytest.mark.parametrize("channels", [2, 7])
def test_channels_that_cannot_be_halved_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels must be even and at least 4 to embed the time, got {channels}"):
        TimeEmbedding(channels, 36)


@pytest.mark.parametrize(("kind", "last"), [("ddpm", 63), ("adm", 64)])
def test_all_thousand_steps_are_embedded_as_the_papers_code_does(kind: str, last: int) -> None:
    # Ho et al. (2020) and Dhariwal & Nichol (2021), code, in float64.
    angles = torch.arange(1000).double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(64).double() / last)
    parts = [angles.sin(), angles.cos()] if kind == "ddpm" else [angles.cos(), angles.sin()]
    embedding = Sinusoids(kind)(torch.arange(1000), 128)  # type: ignore[arg-type]
    torch.testing.assert_close(embedding.double(), torch.cat(parts, dim=1), rtol=0, atol=1e-4)


def test_a_time_scale_tells_four_thousand_steps_as_a_thousand() -> None:
    told = Sinusoids("adm", time_scale=0.25)(torch.arange(0, 4000, 4), 32)
    torch.testing.assert_close(told, Sinusoids("adm")(torch.arange(1000), 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"kind": "edm"}, "kind must be ddpm or adm, got edm"), ({"time_scale": 0}, "time_scale must be above 0, got 0")],
)
def test_sinusoids_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sinusoids(**settings)
