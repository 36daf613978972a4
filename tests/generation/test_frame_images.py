"""Frames of sequences that a network generates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.edits import FrameSequence, Interpolate, Invert, Morph, Sweep, Walk
from diffusion_lab.ema.averages import RAW
from diffusion_lab.errors import UserError
from diffusion_lab.evaluation.frame_evaluator import measure_smoothness
from diffusion_lab.generation.edit_sources import EditSources
from diffusion_lab.generation.edited_images import EditedImages
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.metrics import Smoothness
from diffusion_lab.networks import Condition, Labels, Network
from diffusion_lab.samplers import DDIM, Ancestral
from support.every_sampler import Case, every_sampler
from support.fake_features import StandIn
from support.small_runs import FewImages, small_module


def seeded(num_classes: int = 3, dropout: float = 0.2, batch_size: int = 4, **settings: Any) -> SeededImages:
    """Return the images of an untrained network with random weights."""
    module = small_module(Labels(num_classes, dropout) if num_classes else None)
    with torch.no_grad():
        for parameter in module.ema.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        if num_classes:
            table: Any = module.ema.network.label_embedding
            nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(2))
    given: dict[str, Any] = {"batch_size": batch_size, "sampler": DDIM(module.process, num_steps=4)} | settings
    return SeededImages(module, **given)


def sources(size: int = 2) -> EditSources:
    images = FewImages().load("train").select(torch.arange(size))
    return EditSources(images, "train", has_labels=True)


def generate(images: FrameImages) -> Tensor:
    return torch.cat([images.generate(batch) for batch in images.batches(range(images.num_images))])


def levels(first: Tensor, second: Tensor) -> int:
    """Return the largest difference in gray levels."""
    return int((first.int() - second.int()).abs().max())


def test_the_frame_after_the_last_of_a_walk_is_its_first_to_the_bit() -> None:
    images = FrameImages(seeded(), Walk(num_frames=10, seeds=[5, 1, 3]), seed=2)
    assert torch.equal(images.noise(10), images.noise(0))
    assert images.classes(10) == images.classes(0)
    assert not torch.equal(images.noise(9), images.noise(0))


@every_sampler
def test_the_first_stop_is_a_sample_with_every_sampler_and_the_last_with_samplers_without_noise(case: Case) -> None:
    source = seeded()
    source.sampler = case.build(source.module.process, num_steps=3)
    samples = torch.cat([source.generate(range(k, k + 1)) for k in (3, 7)])
    frames = generate(FrameImages(source, Interpolate(num_frames=2, seeds=[3, 7])))
    assert levels(frames[0], samples[0]) <= 1
    if case.num_draws(3) == 1:  # the steps of other samplers add the noise of the first stop
        assert levels(frames[1], samples[1]) <= 1
    assert levels(frames[0], frames[1]) > 20


def test_frames_do_not_depend_on_the_batch() -> None:
    by_size = [
        generate(FrameImages(seeded(batch_size=size), Interpolate(num_frames=6, seeds=[3, 7]))) for size in (4, 5, 8)
    ]
    assert max(levels(other, by_size[0]) for other in by_size) <= 1


def test_frames_of_a_stochastic_sampler_change_gradually_because_their_steps_add_the_same_noise() -> None:
    source = seeded(num_classes=0)
    source.sampler = Ancestral(source.module.process, num_steps=10)
    frames = generate(FrameImages(source, Interpolate(num_frames=17))).double()
    neighbors = (frames[1:] - frames[:-1]).square().mean().sqrt()
    # with independent noise in the steps, neighbors would differ as much as the ends
    assert float(neighbors) < 0.2 * float((frames[0] - frames[-1]).square().mean().sqrt())


def test_finished_batches_are_reused_and_give_the_same_bytes(tmp_path: Path) -> None:
    complete = FrameImages(seeded(folder=tmp_path), Walk(num_frames=10, seeds=[0, 1]))
    frames = generate(complete)
    (tmp_path / "seeds_000000004.npy").unlink()
    resumed = FrameImages(seeded(folder=tmp_path), Walk(num_frames=10, seeds=[0, 1]))
    assert [resumed.is_cached(batch) for batch in resumed.batches(range(10))] == [True, False, True]
    assert torch.equal(generate(resumed), frames)


def test_a_morph_has_one_noise_and_mixes_neighboring_classes() -> None:
    images = FrameImages(seeded(label=[2, 0, 1]), Morph(num_frames=5), seed=6)
    assert [images.classes(k) for k in range(5)] == [{2: 1}, {2: 0.5, 0: 0.5}, {0: 1}, {0: 0.5, 1: 0.5}, {1: 1}]
    assert all(torch.equal(images.noise(k), images.noise(0)) for k in range(5))
    frames = generate(images)
    for frame, label in ((0, 2), (2, 0), (4, 1)):
        assert levels(frames[frame], seeded(label=label).generate(range(6, 7))[0]) <= 1
    assert levels(frames[1], frames[0]) > 1


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_weights_of_one_class_give_the_images_of_this_class_with_and_without_guidance(guidance_scale: float) -> None:
    source = seeded(guidance=Guidance(Strength(guidance_scale)))
    module = source.module
    denoiser = source.guidance(module.denoiser(), module.labels)
    x_t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, label = torch.full((3,), 0.5, dtype=torch.float64), torch.tensor([2, 0, 1])
    expected = denoiser(x_t, t, Condition(label)).x_0
    weights = nn.functional.one_hot(label, 4).float()
    assert torch.allclose(denoiser(x_t, t, Condition(weights)).x_0, expected, atol=1e-6)
    mixed = denoiser(x_t, t, Condition(torch.full((3, 4), 0.25))).x_0
    assert not torch.allclose(mixed, expected, atol=1e-3)


def test_each_frame_of_a_sweep_is_the_sample_with_its_guidance_scale() -> None:
    frames = generate(FrameImages(seeded(label=1), Sweep(num_frames=3, guidance_scales=[1, 5]), seed=4))
    for frame, scale in enumerate((1, 3, 5)):
        expected = seeded(label=1, guidance=Guidance(Strength(scale)), batch_size=1).generate(range(4, 5))[0]
        assert torch.equal(frames[frame], expected)


def test_a_sweep_with_a_guide_includes_the_scale_without_guidance() -> None:
    guide = seeded().module.denoiser(RAW)
    with_guide = seeded(label=1, guidance=Guidance(Strength(2.0), guide=guide))
    frames = generate(FrameImages(with_guide, Sweep(num_frames=2, guidance_scales=[1, 3]), seed=4))
    for frame, guidance in enumerate((Guidance(), Guidance(Strength(3.0), guide=guide))):
        expected = seeded(label=1, guidance=guidance, batch_size=1).generate(range(4, 5))[0]
        assert torch.equal(frames[frame], expected)


def test_interpolation_between_images_starts_and_ends_with_their_reconstructions() -> None:
    source = seeded()
    source.sampler = DDIM(source.module.process, num_steps=20)
    frames = generate(FrameImages(source, Interpolate(num_frames=3), sources=sources()))
    reconstructed = EditedImages(source, sources(), Invert()).generate(range(2))
    assert levels(frames[[0, 2]], reconstructed) <= 1
    assert levels(frames[1], frames[0]) > 10


def test_smoothness_is_the_mean_distance_of_neighbors_and_the_ratio_of_the_largest_to_it() -> None:
    frames = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    frames[1:] = 10
    metric = Smoothness(StandIn())
    open_path, closed = metric.distances(frames, is_closed=False), metric.distances(frames, is_closed=True)
    jump = float(open_path[0])
    assert jump > 0
    assert open_path.tolist() == [jump, 0, 0, 0]
    assert closed.tolist() == [jump, 0, 0, 0, jump]
    images = FrameImages(seeded(), Walk(num_frames=9, seeds=[0, 1, 2]))
    mean, ratio = measure_smoothness(images, metric, "32-true")
    expected = metric.distances(generate(images), is_closed=True)
    assert mean.value == pytest.approx(float(expected.mean()))
    assert ratio.value == pytest.approx(float(expected.max() / expected.mean()))
    assert mean.fingerprint["task"] == {"name": "Walk", "num_frames": 9, "seeds": [0, 1, 2]}


class Plain(Network):
    """A network with classes that accepts no mixtures of them."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = self.out_channels = 1
        self.resolution, self.labels = 8, Labels(3, 0.1)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.label is not None
        return x_t * self.scale[condition.label].view(-1, 1, 1, 1)


def plain(**settings: Any) -> SeededImages:
    return SeededImages(small_module(network=Plain()), batch_size=4, **settings)


Build = Callable[[], FrameImages]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FrameImages(seeded(num_classes=0), Morph()), "trained with conditioning=label.* for task=morph"),
        (lambda: FrameImages(seeded(label=1), Morph()), "`label` must be a list of at least two classes .*, got 1"),
        (lambda: FrameImages(seeded(label="random"), Morph()), "`label` must be a list of .* classes .*, got random"),
        (lambda: FrameImages(seeded(), Walk(num_frames=5)), "task.num_frames must be at least 8 .*, got 5"),
        (lambda: FrameImages(plain(), Walk()), "accepts mixtures of classes.*, got Plain; label=CLASS"),
        (lambda: FrameImages(plain(label=[0, 1]), Morph()), r"accepts mixtures of classes.*, got Plain\.$"),
        (lambda: FrameImages(seeded(dropout=0.0), Sweep()), "conditioning.dropout above 0.* for task=sweep"),
        (lambda: FrameImages(seeded(num_classes=0), Sweep()), "conditioning=label.* for task=sweep"),
        (lambda: FrameImages(seeded(), Morph(), sources=sources()), "`images` must not be given for task=morph"),
        (lambda: FrameImages(seeded(), Walk(), sources=sources(1)), "at least two source images .*, got 1"),
        (lambda: with_ancestral(Interpolate()), "`sampler` must be ddim with .*eta=0 .*, got Ancestral"),
    ],
)
def test_sequences_that_do_not_fit_the_network_are_refused_by_one_sentence(build: Build, message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def with_ancestral(sequence: FrameSequence) -> FrameImages:
    source = seeded()
    source.sampler = Ancestral(source.module.process, num_steps=4)
    return FrameImages(source, sequence, sources=sources())


def test_one_class_for_all_frames_needs_no_mixtures() -> None:
    assert FrameImages(plain(label=2), Walk()).classes(3) == {2: 1}
