"""Images addressed by their seeds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab.generation.seeded_images import SeededImages, generate_with_frames
from diffusion_lab.networks import Labels
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral
from support.small_runs import small_module


def images(**settings: Any) -> SeededImages:
    module = small_module(Labels(3, 0.2) if settings.pop("classes", False) else None)
    for parameter in module.ema.network.parameters():  # the last layer of an untrained network is 0
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return SeededImages(module, **{"batch_size": 8} | settings)


def generate(source: SeededImages, seeds: range) -> Tensor:
    return torch.cat([source.generate(batch) for batch in source.batches(seeds)])


def test_seeds_are_split_at_the_boundaries_of_batches() -> None:
    assert images(batch_size=8).batches(range(5, 20)) == [range(5, 8), range(8, 16), range(16, 20)]
    assert images(batch_size=8).batches(range(8, 16)) == [range(8, 16)]
    assert images(batch_size=50).batches(range(3, 4)) == [range(3, 4)]


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_an_image_is_bitwise_the_same_whichever_images_are_requested_with_it(sampler: str) -> None:
    source = images()
    if sampler == "ancestral":
        source.sampler = Ancestral(source.module.process, num_steps=4)
    expected = generate(source, range(30))
    assert expected.shape == (30, 1, 8, 8)
    for seed in (0, 7, 8, 29):
        assert torch.equal(source.generate(range(seed, seed + 1))[0], expected[seed])
    assert torch.equal(generate(source, range(11, 20)), expected[11:20])
    assert len({image.numpy().tobytes() for image in expected}) == 30


def test_images_are_those_that_the_module_generates_from_their_seeds() -> None:
    source = images(batch_size=8)
    expected = to_uint8(source.module.sample(range(8)))
    assert torch.equal(source.generate(range(2, 5)), expected[2:5])


def test_the_batch_size_changes_few_pixels_by_few_levels() -> None:
    by_size = [generate(images(batch_size=size), range(64)).int() for size in (7, 50, 64)]
    for other in by_size[1:]:
        difference = (other - by_size[0]).abs()
        assert int(difference.max()) <= 2
        assert float((difference > 0).double().mean()) < 0.05


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_keeps_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    source = images(batch_size=8)
    expected = generate(images(batch_size=8), range(16)).int()
    sample, sizes = source.module.sample, []

    def limited(seeds: range, *arguments: Any, **settings: Any) -> Tensor:
        sizes.append(len(seeds))
        if len(seeds) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(seeds, *arguments, **settings)

    monkeypatch.setattr(source.module, "sample", limited)
    halved = generate(source, range(16)).int()
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert int((halved - expected).abs().max()) <= 1
    assert source.protocol()["batch_size"] == 2


def test_an_image_that_does_not_fit_into_memory_raises_out_of_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    source = images(batch_size=2)

    def fail(*arguments: Any, **settings: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(source.module, "sample", fail)
    with pytest.raises(torch.OutOfMemoryError):
        source.generate(range(2))


def test_finished_batches_are_read_from_the_cache_and_damaged_ones_are_generated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images(folder=tmp_path)
    expected = generate(source, range(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"seeds_{k:09}.npy" for k in (0, 8, 16)]
    truncated, wrong_shape = tmp_path / "seeds_000000008.npy", tmp_path / "seeds_000000016.npy"
    truncated.write_bytes(truncated.read_bytes()[:100])
    np.save(wrong_shape, np.zeros((8, 3, 8, 8), np.uint8))
    resumed, count = images(folder=tmp_path), 0
    assert [resumed.is_cached(range(k, k + 1)) for k in (3, 8, 19)] == [True, False, False]
    sample = resumed.module.sample

    def counting(*arguments: Any, **settings: Any) -> Tensor:
        nonlocal count
        count += 1
        return sample(*arguments, **settings)

    monkeypatch.setattr(resumed.module, "sample", counting)
    assert torch.equal(generate(resumed, range(20)), expected)
    assert count == 2


def test_labels_are_all_classes_in_turn_or_one_class_or_random() -> None:
    source = images(classes=True)
    in_turn = source.generate(range(6))
    assert source.protocol()["label"] == "seed modulo 3"
    one = images(classes=True, label=2)
    assert torch.equal(one.generate(range(6))[2], in_turn[2])
    assert not torch.equal(one.generate(range(6))[0], in_turn[0])
    assert one.protocol()["label"] == 2
    several = images(classes=True, label=[2, 0])
    assert several.labels([0, 1, 2, 7]).tolist() == [2, 0, 2, 0]  # type: ignore[union-attr]
    assert several.protocol()["label"] == [2, 0]
    assert images(classes=True).protocol()["label"] == "seed modulo 3"
    labels = images(classes=True, label="random").labels(range(300))
    assert labels is not None
    assert torch.equal(labels[100:110], images(classes=True, label="random").labels(range(100, 110)))  # type: ignore[arg-type]
    assert torch.bincount(labels).tolist() == pytest.approx([100, 100, 100], abs=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": True, "label": 3}, r"`label` must be null, random, in 0\.\.2 or a list of .*, got 3"),
        ({"classes": True, "label": True}, r"`label` must be null, random, in 0\.\.2 or a list of .*, got True"),
        (
            {"classes": True, "label": "seven"},
            "`label` must be the number of a class, .*, got seven: .* no class names",
        ),
        ({"classes": True, "label": [0, 3]}, r"`label` must be null, random, in 0\.\.2 or a list .*, got \[0, 3\]"),
        ({"label": 0}, "`label` must be null for a network that was trained without classes, got 0"),
        ({"label": "random"}, "`label` must be null for a network that was trained without classes, got random"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"weights": "slow"}, "`weights` must be main or raw, got slow"),
    ],
)
def test_settings_out_of_range_are_refused_in_the_constructor(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images(**settings)


def test_the_protocol_contains_sampler_schedule_weights_and_label() -> None:
    module = small_module()
    protocol = SeededImages(module, sampler=DDIM(module.process, num_steps=3, eta=0.5), weights="raw").protocol()
    assert protocol["sampler"]["name"] == "DDIM"
    assert (protocol["sampler"]["num_steps"], protocol["sampler"]["eta"]) == (3, 0.5)
    assert protocol["schedule"] == {
        "name": "LinearSchedule", "num_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.4, "zero_terminal_snr": False,
    }  # fmt: skip
    assert protocol["weights"] == {"kind": "raw"}
    assert protocol["label"] is None


def test_the_identity_depends_on_weights_and_sampling_settings() -> None:
    identity = images().identity("32-true")
    assert images().identity("32-true") == identity
    others = [images().identity("bf16-mixed"), images(batch_size=4).identity("32-true")]
    shifted = images()
    next(shifted.module.ema.network.parameters()).data[0] += 1e-3
    others += [shifted.identity("32-true"), images(weights="raw").identity("32-true")]
    assert len({identity, *others}) == 5


def test_frames_are_intermediate_states_and_the_last_frame_is_the_image() -> None:
    source, steps = images(), list[int]()
    batches = source.batches(range(2, 12))
    pictures, frames = generate_with_frames(source, batches, 3, steps.append)
    assert torch.equal(pictures, generate(source, range(2, 12)))
    assert [tuple(frame.shape) for frame in frames] == [(10, 1, 8, 8)] * 3
    assert torch.equal(frames[-1], pictures)
    assert not torch.equal(frames[0], frames[1])
    assert sum(steps) == 4 * len(batches)
    assert generate_with_frames(source, batches, 0, steps.append)[1] == []


def test_the_noise_of_an_image_is_the_same_on_all_devices() -> None:
    """The CPU generates the noise, which is then moved to the device."""
    on_cpu, elsewhere = (ImageNoise([3, 4], (1, 8, 8), device) for device in ("cpu", "meta"))
    first = on_cpu.draw()
    assert elsewhere.draw().device.type == "meta"
    elsewhere.device = torch.device("cpu")
    assert torch.equal(elsewhere.draw(), on_cpu.draw())
    if torch.cuda.is_available():
        assert torch.equal(ImageNoise([3, 4], (1, 8, 8), "cuda").draw().cpu(), first)
