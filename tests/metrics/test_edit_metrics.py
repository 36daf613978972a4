"""Metrics of the results of an edit, against their formulas and known images."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_lab.edits import Denoise, SuperResolution
from diffusion_lab.evaluation.edit_evaluator import EditEvaluator
from diffusion_lab.features import FashionCNN
from diffusion_lab.generation import EditedImages, EditSources, SeededImages
from diffusion_lab.inverse_problems import AreaDownsampling, IdentityOperator, Measurement
from diffusion_lab.metrics import LPIPS, PSNR, RMSE, SSIM, Consistency, Diversity, FeatureDistance
from diffusion_lab.metrics.perceptual_distance import ALEXNET
from diffusion_lab.pixels import from_uint8
from support.small_runs import FewImages, small_module


def pixels(num_images: int, side: int = 16, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(40, 200, (num_images, channels, side, side), dtype=torch.uint8, generator=generator)


def test_psnr_and_rmse_of_a_constant_difference() -> None:
    source = pixels(1)
    results = torch.cat([source + 10, source - 20])
    assert RMSE().measure(results, source, None) == pytest.approx(15)
    expected = 20 * (math.log10(255 / 10) + math.log10(255 / 20)) / 2
    assert PSNR().measure(results, source, None) == pytest.approx(expected)


def test_the_psnr_of_equal_images_is_that_of_a_single_differing_level() -> None:
    source = pixels(1)
    other = source.clone()
    other[0, 0, 3, 5] += 1
    assert PSNR().measure(source, source, None) == pytest.approx(PSNR().measure(other, source, None))
    assert math.isfinite(PSNR().measure(source, source, None))


def test_ssim_is_1_for_equal_images_and_follows_its_formula_for_constant_images() -> None:
    source = pixels(1)
    assert SSIM().measure(source, source, None) == pytest.approx(1)
    black, gray = torch.full((1, 1, 16, 16), 20, dtype=torch.uint8), torch.full((1, 1, 16, 16), 80, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2  # without variance, only the luminance term differs from 1
    expected = (2 * 20 * 80 + c1) / (20**2 + 80**2 + c1)
    assert SSIM().measure(gray, black, None) == pytest.approx(expected, abs=1e-4)


def test_consistency_is_the_std_of_the_noise_for_the_source_and_0_without_noise() -> None:
    source = pixels(1, side=64)
    images = from_uint8(source)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = Measurement.of(IdentityOperator((1, 64, 64)), images, 0.1, noise)
    assert Consistency().measure(source, source, noisy) == pytest.approx(0.1 * 127.5, rel=0.03)
    exact = Measurement.of(AreaDownsampling((1, 64, 64), factor=4), images)
    assert Consistency().measure(source, source, exact) == pytest.approx(0, abs=1e-3)
    assert Consistency().measure(source + 7, source, exact) == pytest.approx(7, rel=1e-4)


def test_diversity_is_the_mean_difference_between_pairs() -> None:
    results = torch.stack([torch.full((1, 4, 4), level, dtype=torch.uint8) for level in (10, 20, 40)])
    assert Diversity().measure(results, results[:1], None) == pytest.approx((10 + 30 + 20) / 3)


def test_the_feature_distance_replaces_lpips_without_its_weights_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metric = LPIPS(FashionCNN())
    other = metric.for_images((1, 32, 32))
    assert isinstance(other, FeatureDistance)
    assert f"lpips requires the weights {tmp_path}/hub/checkpoints/{ALEXNET}, so {other.kind} is" in caplog.text
    assert other.full_name(64, "test") == "feature_distance_fashion_cnn_test_64"
    assert other.protocol()["features"]["name"] == "fashion_cnn"
    source = pixels(1, side=28)
    assert other.measure(source, source, None) == 0
    features = metric.features(torch.cat([source, 255 - source]))["pooled"].double()
    assert other.measure(255 - source, source, None) == pytest.approx(float((features[0] - features[1]).norm()))


@pytest.mark.full
def test_lpips_is_measured_with_weights_of_alexnet_and_is_0_for_equal_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metric = LPIPS(FashionCNN())
    metric.file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), metric.file)
    assert metric.for_images((1, 64, 64)) is metric
    assert isinstance(metric.for_images((1, 28, 28)), FeatureDistance)
    source = pixels(1, side=64)
    assert metric.measure(source, source, None) == pytest.approx(0, abs=1e-6)
    assert metric.measure(255 - source, source, None) > 1e-3
    assert metric.full_name(64, "test") == "lpips_test_64"
    assert len(metric.protocol()["features"]["weights_sha256"]) == 64


def results(num_results: int = 2, task: Denoise | SuperResolution | None = None, batch_size: int = 3) -> EditedImages:
    sources = EditSources(FewImages().load().select(torch.arange(3)), "train", True)
    seeded = SeededImages(small_module().eval(), batch_size=batch_size)
    return EditedImages(seeded, sources, task or Denoise(), num_results=num_results)


def test_an_evaluation_averages_over_sources_and_also_measures_the_mean_of_their_results() -> None:
    images = results()
    evaluator = EditEvaluator(images, "32-true")
    numbers = {number.name: number for number in evaluator.measure(evaluator.chosen([RMSE(), Diversity()]))}
    assert list(numbers) == ["rmse_train_6", "diversity_train_6", "rmse_of_mean_train_3"]
    errors, means = [], []
    for k in range(3):
        found, source = images.results(k).double(), images.sources.pixels([k]).double()
        errors.append((found - source).square().mean(dim=(1, 2, 3)).sqrt().mean())
        means.append((found.mean(0).round() - source).square().mean().sqrt())
    assert numbers["rmse_train_6"].value == pytest.approx(float(torch.stack(errors).mean()))
    assert numbers["rmse_of_mean_train_3"].value == pytest.approx(float(torch.stack(means).mean()))
    assert numbers["rmse_of_mean_train_3"].fingerprint["metric"] == {"name": "RMSE", "of_mean": True}
    assert numbers["rmse_train_6"].fingerprint["task"]["noise"] == 0.2
    assert numbers["diversity_train_6"].higher_is_better is None


def test_metrics_that_cannot_be_computed_are_refused_before_sampling() -> None:
    with pytest.raises(ValueError, match="num_results must be at least 2 for metrics=diversity, got 1"):
        EditEvaluator(results(1), "32-true").chosen([Diversity()])
    with pytest.raises(ValueError, match="must not contain ssim for images smaller than its window"):
        EditEvaluator(results(), "32-true").chosen([SSIM()])
