"""One pass of sampling and one of feature extraction for all metrics, on any number of ranks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.likelihood import VariationalBound
from diffusion_lab.evaluation.number import Number
from diffusion_lab.evaluation.reference import ImageReference
from diffusion_lab.evaluation.training_reference import TrainingReference
from diffusion_lab.fingerprints import FIELDS
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.metrics.density_coverage import DensityCoverage
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import FrechetDistance, SpatialFrechetDistance
from diffusion_lab.metrics.inception_score import InceptionScore
from diffusion_lab.metrics.kid import KernelDistance
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.metrics.memorization import Memorization
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.metrics.precision_recall import PrecisionRecall
from diffusion_lab.process import FixedSmall
from diffusion_lab.reporting.progress import Advance
from support.fake_features import Brightness, Spatial, StandIn
from support.ranks import run_on_ranks
from support.small_runs import FewImages, small_module

NUM_SAMPLES = 23


def evaluation(folder: Path, num_samples: int = NUM_SAMPLES, **settings: Any) -> Evaluator:
    module = small_module()
    for parameter in module.ema.network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    images = SeededImages(module, batch_size=settings.pop("batch_size", 5))
    reference = ImageReference(FewImages().load(), "train", folder)
    held_out = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    training = TrainingReference(reference, ImageReference(Images(held_out, torch.zeros(60).long()), "test", folder))
    return Evaluator(images, reference, num_samples, training=training, **settings)


def every_metric(features: StandIn) -> list[Metric]:
    return [
        FrechetDistance(features), KernelDistance(features, 10, 20), InceptionScore(features, 3),
        PrecisionRecall(features), DensityCoverage(features), SpatialFrechetDistance(features),
        Memorization(features),
    ]  # fmt: skip


def measure(folder: Path, batch_size: int) -> tuple[list[Number], dict[int, Tensor]]:
    """Return all numbers, and the images of this rank by their seeds."""
    images: dict[int, Tensor] = {}
    job = evaluation(folder, batch_size=batch_size)
    numbers = job.measure(every_metric(Spatial()), lambda seeds, pixels: images.update(zip(seeds, pixels, strict=True)))
    return [*numbers, job.mean(MeanOverImages(Brightness(), "train"), FewImages().load())], images


@pytest.mark.parametrize("num_ranks", [3, pytest.param(2, marks=pytest.mark.full)])
def test_numbers_and_images_are_the_same_on_1_rank_and_on_several(num_ranks: int, tmp_path: Path) -> None:
    batch_size = 10  # three batches, the last one padded
    results = {
        n: run_on_ranks(n, measure, tmp_path / str(n), tmp_path / f"cache{n}", batch_size) for n in (1, num_ranks)
    }
    ((expected_numbers, expected_images),) = results[1]
    assert sorted(expected_images) == list(range(NUM_SAMPLES))
    assert len(expected_numbers) == 20
    seeds = [seed for _, images in results[num_ranks] for seed in images]
    assert sorted(seeds) == list(range(NUM_SAMPLES))  # each seed on one rank
    for numbers, images in results[num_ranks]:
        assert all(torch.equal(image, expected_images[seed]) for seed, image in images.items())
        for expected, number in zip(expected_numbers, numbers, strict=True):
            assert number.name == expected.name
            assert number.value == pytest.approx(expected.value, rel=1e-9)
            assert number.fingerprint == expected.fingerprint


def test_numbers_are_computed_from_the_features_of_the_generated_images(tmp_path: Path) -> None:
    features, batches = StandIn(), list[Tensor]()
    numbers = evaluation(tmp_path).measure([FrechetDistance(features)], lambda seeds, pixels: batches.append(pixels))
    sets = [
        FeatureSet.of(features(p)["pooled"]) for p in (torch.cat(batches), FewImages().load().gather(torch.arange(50)))
    ]
    assert [number.name for number in numbers] == ["fd_stand_in_23_train"]
    assert numbers[0].value == pytest.approx(FrechetDistance(features).measure(*sets)["fd"], rel=1e-9)


def test_all_metrics_share_one_pass_of_feature_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, sizes = Spatial(), []
    extract = features.extract

    def counting(pixels: Tensor) -> dict[str, Tensor]:
        sizes.append(len(pixels))
        return extract(pixels)

    monkeypatch.setattr(features, "extract", counting)
    job = evaluation(tmp_path)
    job.measure(every_metric(features))
    assert sizes == [50, 60, 5, 5, 5, 5, 3]  # the reference, the held-out images, then the samples
    job.measure([FrechetDistance(features)])
    assert sizes[7:] == [5, 5, 5, 5, 3]  # the reference is not extracted again


def test_the_time_of_each_part_of_an_evaluation_is_recorded(tmp_path: Path) -> None:
    job = evaluation(tmp_path)
    job.measure(every_metric(Spatial()))
    assert set(job.seconds) == {"sampling", "features", "statistics"}
    assert all(seconds > 0 for seconds in job.seconds.values())
    job.mean(MeanOverImages(Brightness(), "train"), FewImages().load())
    assert job.seconds["means over images"] > 0


def test_a_standard_deviation_has_a_meaning_and_no_direction(tmp_path: Path) -> None:
    value, std = evaluation(tmp_path).measure([KernelDistance(StandIn(), 10, 20)])
    assert value.description == "kernel distance of the features; lower is better"
    assert std.description == "kernel distance of the features: standard deviation over random subsets"


def test_the_fingerprint_contains_all_settings_of_a_number(tmp_path: Path) -> None:
    job = evaluation(tmp_path, precision="32-true", seed=7)
    kid, score = KernelDistance(StandIn(), subset_size=20), InceptionScore(StandIn(), 3)
    found = {number.name: number.fingerprint for number in job.measure([kid, score])}
    fingerprint = found["kd_stand_in_23_train"]
    assert fingerprint["metric"] == {"name": "KernelDistance", "num_subsets": 100, "subset_size": 20}
    assert fingerprint["features"] == {
        "name": "stand_in", "weights_sha256": "0" * 64, "resize": "none", "output": "pooled",
    }  # fmt: skip
    assert fingerprint["reference"] == {
        "split": "train", "fingerprint": FewImages().load().fingerprint, "size": 50, "rows": 50,
    }  # fmt: skip
    expected = {"num_samples": 23, "seed": 7, "precision": "32-true", "batch_size": 5, "guidance_scale": 1.0}
    assert {key: fingerprint[key] for key in expected} == expected
    assert {"sampler", "schedule", "weights", "label", "quantization", "version"} <= set(fingerprint) <= set(FIELDS)
    assert found["cs_stand_in_23"]["reference"] is None
    assert found["cs_stand_in_23"]["features"]["output"] == "logits"


@pytest.mark.parametrize("seed", [0, 4])
def test_the_seed_is_that_of_the_first_image(seed: int, tmp_path: Path) -> None:
    generated: list[int] = []
    job = evaluation(tmp_path, seed=seed)
    job.measure([FrechetDistance(StandIn())], lambda seeds, pixels: generated.extend(seeds))
    assert generated == list(range(seed, seed + 23))


@pytest.mark.parametrize(
    ("num_samples", "metric", "message"),
    [
        (1, FrechetDistance, "num_samples must be at least 2 for fid (features=stand_in), got 1"),
        (19, InceptionScore, "num_samples must be at least 20 for is (features=stand_in), got 19"),
        (3, PrecisionRecall, "num_samples must be at least 4 for precision_recall (features=stand_in), got 3"),
    ],
)
def test_too_few_samples_are_refused_before_any_is_generated(
    num_samples: int, metric: type[Metric], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = evaluation(tmp_path, num_samples)
    monkeypatch.setattr(job.images, "generate", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        job.measure([metric(StandIn())])


def test_no_samples_or_a_negative_seed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        evaluation(tmp_path, 0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        evaluation(tmp_path, seed=-1)


def test_images_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    job = evaluation(tmp_path)
    assert isinstance(job.images, SeededImages)
    next(job.images.module.ema.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="images must be finite, got NaN or infinity"):
        job.measure([FrechetDistance(StandIn())])


def test_a_value_of_too_few_images_is_noted_once_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, metrics = evaluation(tmp_path, 24), [InceptionScore(StandIn(), 12), KernelDistance(StandIn())]
    job.require(metrics)
    job.require(metrics)
    assert caplog.text.count(" is (features=stand_in) for 24 images means little: each of the 12 splits has 2 ") == 1
    assert caplog.text.count("kid (features=stand_in) for 24 images means little: each subset has only 24 images") == 1


@pytest.mark.parametrize(
    ("metric", "num_images"),
    [
        (FrechetDistance(StandIn()), 59),  # 10,000 for 2,048 features, as the authors recommend
        (KernelDistance(StandIn()), 1001),  # with 1,000 images, each subset contains all of them
        (PrecisionRecall(StandIn(), 3), 60),
        (DensityCoverage(StandIn(), 5), 100),
        (InceptionScore(StandIn(), 10), 1000),
    ],
)
def test_each_metric_has_a_number_of_images_from_which_it_is_meaningful(metric: Metric, num_images: int) -> None:
    assert metric.caution(num_images) is None
    assert metric.caution(num_images - 1) is not None


def test_the_fingerprint_of_a_kernel_distance_contains_the_subset_size_that_was_used(tmp_path: Path) -> None:
    large, *_ = evaluation(tmp_path).measure([KernelDistance(StandIn(), 10, subset_size=1000)])
    equal, *_ = evaluation(tmp_path).measure([KernelDistance(StandIn(), 10, subset_size=NUM_SAMPLES)])
    assert large.fingerprint["metric"]["subset_size"] == NUM_SAMPLES
    assert (large.value, large.fingerprint) == (equal.value, equal.fingerprint)


def test_the_progress_of_a_mean_advances_within_a_batch_without_changing_the_mean(tmp_path: Path) -> None:
    advances: list[int] = []

    @contextmanager
    def display(description: str, total: int) -> Iterator[Advance]:
        yield advances.append

    module = small_module()  # 20 steps
    bound = VariationalBound(module.process, FixedSmall())
    data = FewImages().load()
    shown = evaluation(tmp_path, batch_size=10, display=display).mean(MeanOverImages(bound, "train", 10), data)
    assert sum(advances) == 10
    assert max(advances) == 1
    assert len(advances) == bound.num_evaluations + 1
    assert shown.value == evaluation(tmp_path, batch_size=10).mean(MeanOverImages(bound, "train", 10), data).value
