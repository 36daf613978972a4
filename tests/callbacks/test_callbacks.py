"""Files and metrics that callbacks produce."""

import csv
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.callbacks.progress import Progress
from diffusion_lab.callbacks.sample_images import SampleImages
from diffusion_lab.callbacks.throughput import Throughput
from diffusion_lab.data.images import Images
from diffusion_lab.features import Features
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import FrechetDistance, frechet_distance
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.networks import Labels
from diffusion_lab.pixels import to_uint8
from diffusion_lab.samplers import DDIM
from support.fake_features import Brightness
from support.small_runs import FewImages, fit, small_module, weights


class MeanAndStd(Features):
    """Two features: mean and standard deviation of the pixels."""

    name = "mean_and_std"
    num_features = 2
    channels = (1,)
    resize = "none"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        flat = pixels.float().flatten(1)
        return {"pooled": torch.stack([flat.mean(1), flat.std(1)], dim=1)}


def measure(folder: Path, **settings: int | list[int]) -> MeasureDistance:
    sampler = DDIM(small_module().process, num_steps=3)
    metric = FrechetDistance(MeanAndStd())
    return MeasureDistance(metric, str(folder), sampler=sampler, num_samples=30, batch_size=7, **settings)  # type: ignore[arg-type]


def test_grids_and_animations_are_saved_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    sample_images = SampleImages(str(tmp_path), every_n_steps=2, num_images=6, num_columns=3, num_frames=4)
    fit(small_module(Labels(3, 0.2)), 5, callbacks=[sample_images])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step_000000{step}.{kind}" for step in (2, 4, 5) for kind in ("png", "webp")]
    with Image.open(tmp_path / "step_0000005.png") as grid:
        size = grid.size
    assert size == (3 * (56 + 2) + 2, 2 * (56 + 2) + 2)  # images of 8 x 8 pixels are shown at 7 times their size
    with Image.open(tmp_path / "step_0000005.webp") as animation:
        assert 1 < animation.n_frames <= 4  # type: ignore[attr-defined]  # equal frames are merged


def test_the_grid_shows_the_images_of_their_seeds(tmp_path: Path) -> None:
    module = small_module()
    fit(module, 3, callbacks=[SampleImages(str(tmp_path), every_n_steps=9, num_images=2, num_columns=2)])
    with Image.open(tmp_path / "step_0000003.png") as grid:
        shown = torch.tensor(list(grid.convert("L").tobytes()))
    first = shown.view(60, 118)[2:58:7, 2:58:7]
    assert torch.equal(first.to(torch.uint8), to_uint8(module.sample([0]))[0, 0])


def test_distances_are_measured_at_the_given_steps_and_the_best_checkpoint_is_saved(tmp_path: Path) -> None:
    distances = measure(tmp_path / "checkpoints", every_n_steps=4, also_at=[1])
    module = small_module()
    fit(module, 9, callbacks=[distances], logger=CSVLogger(tmp_path, name="", version=""))
    assert [step for step, _ in distances.history] == [1, 4, 8]
    assert distances.at_end is not None
    assert distances.at_end[0] == 9
    best_step = min(distances.history, key=lambda entry: entry[1])[0]
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["global_step"] == best_step
    assert "fd_mean_and_std_30" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_a_run_shorter_than_the_interval_measures_at_the_steps_in_also_at_and_once_after_training(
    tmp_path: Path,
) -> None:
    distances, last = measure(tmp_path, every_n_steps=100, also_at=[2]), SaveLast(str(tmp_path), every_n_steps=100)
    fit(small_module(), 5, callbacks=[distances, last])
    assert [step for step, _ in distances.history] == [2]
    assert distances.at_end is not None
    assert distances.at_end[0] == 5
    for name in ("last.ckpt", "best.ckpt"):
        states = torch.load(tmp_path / name, weights_only=True)["callbacks"]
        assert [step for step, _ in states["MeasureDistance"]["history"]] == [2], name


@pytest.mark.parametrize("settings", [{"fast_dev_run": 3}, {"detect_anomaly": True}])
def test_a_test_run_measures_and_samples_nothing_at_its_end(tmp_path: Path, settings: dict[str, Any]) -> None:
    distances, images = measure(tmp_path, every_n_steps=100), SampleImages(str(tmp_path), every_n_steps=100)
    fit(small_module(), 3, callbacks=[distances, images], **settings)
    assert distances.at_end is None
    assert not list(tmp_path.iterdir())


def test_the_measured_distance_is_that_of_the_samples_with_seeds_0_to_n(tmp_path: Path) -> None:
    distances = measure(tmp_path, every_n_steps=5)
    module = small_module()
    fit(module, 5, callbacks=[distances])
    samples = to_uint8(module.sample(range(30), sampler=distances.sampler))
    sets = [FeatureSet.of(MeanAndStd()(p)["pooled"]) for p in (samples, FewImages().load().gather(torch.arange(50)))]
    assert distances.history[0][1] == pytest.approx(float(frechet_distance(*sets)), rel=1e-3)


def test_metrics_without_samples_and_too_few_samples_are_refused(tmp_path: Path) -> None:
    sampler, metric = DDIM(small_module().process, num_steps=3), FrechetDistance(MeanAndStd())
    mean: Any = MeanOverImages(Brightness(), "train")
    for first, num_samples, message in (
        (mean, 30, "the first choice in `metrics` must measure generated images, .* got brightness; try"),
        (metric, 1, r"num_samples must be at least 2 for fid .features=\w+., got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MeasureDistance(first, str(tmp_path), sampler=sampler, num_samples=num_samples, every_n_steps=1)


def test_a_measurement_logs_its_duration_and_has_a_fingerprint(tmp_path: Path) -> None:
    distances = measure(tmp_path, every_n_steps=2)
    fit(
        small_module(),
        4,
        callbacks=[distances],
        logger=CSVLogger(tmp_path, name="", version=""),
        precision="bf16-mixed",
    )
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measuring_seconds"]]
    assert sum(float(row["measuring_seconds"]) for row in rows) == pytest.approx(distances.seconds, rel=0.01)
    assert 0 < float(rows[-1]["measuring_share"]) < 1
    (number,) = distances.numbers
    assert number.name == "fd_mean_and_std_30_train"
    fingerprint = number.fingerprint
    assert (fingerprint["num_samples"], fingerprint["batch_size"], fingerprint["precision"]) == (30, 7, "bf16-mixed")
    assert fingerprint["weights"] == {
        "kind": "ema",
        "name": "main",
        "decay": {"name": "RampedDecay", "max_decay": 0.99},
    }
    assert fingerprint["reference"]["fingerprint"] == FewImages().load().fingerprint
    assert fingerprint["sampler"]["num_steps"] == 3


def test_a_measurement_does_not_change_the_randomness_of_training(tmp_path: Path) -> None:
    measured, plain = small_module(), small_module()
    fit(measured, 4, callbacks=[measure(tmp_path, every_n_steps=1)])
    fit(plain, 4)
    assert torch.equal(weights(measured.network), weights(plain.network))


def test_throughput_logs_images_per_second_and_the_fraction_of_time_spent_waiting_for_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gather = Images.gather

    def slow_gather(self: Images, index: Any) -> Tensor:
        time.sleep(0.05)
        return gather(self, index)

    monkeypatch.setattr(Images, "gather", slow_gather)
    throughput = Throughput(num_steps=3)
    trainer = fit(small_module(), 6, callbacks=[throughput], accumulate_grad_batches=2)
    training, waiting = sum(throughput._training), sum(throughput._waiting)
    assert waiting == pytest.approx(3 * 0.05, abs=0.05)
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert numbers["images_per_second"] == pytest.approx(6 * 3 / (training + waiting), rel=1e-4)
    assert numbers["data_wait"] == pytest.approx(waiting / (training + waiting), rel=1e-4)


def test_the_throughput_excludes_the_first_batch() -> None:
    throughput = Throughput()
    fit(small_module(), 5, callbacks=[throughput])
    assert len(throughput._training) == 4


class Clock(Callback):
    """A clock on which every optimizer step takes the same time.  first: duration of the first step."""

    def __init__(self, seconds_per_step: float, first: float | None = None) -> None:
        self.seconds, self.seconds_per_step, self.first = 0.0, seconds_per_step, first or seconds_per_step

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        self.seconds += self.seconds_per_step if trainer.global_step else self.first


@pytest.mark.parametrize(("seconds_per_step", "announced"), [(1800, True), (60, False)])
def test_a_run_of_hours_logs_its_duration_once_and_how_to_shorten_it(
    seconds_per_step: int, announced: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, progress = Clock(seconds_per_step), Progress()
    monkeypatch.setattr("diffusion_lab.callbacks.progress.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    fit(small_module(), 6, callbacks=[clock, progress], enable_progress_bar=True)
    assert caplog.text.count("1.5 hours left for 3 steps; trainer.max_steps=... makes the run shorter.") == announced


def test_the_duration_is_announced_after_the_third_step_and_leaves_the_first_step_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, steps = Clock(seconds_per_step=3600, first=90_000), list[int]()

    def record(progress: Progress, trainer: Trainer, seconds_left: float) -> None:
        steps.append(trainer.global_step)
        assert seconds_left == 3 * 3600

    monkeypatch.setattr("diffusion_lab.callbacks.progress.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    monkeypatch.setattr(Progress, "_announce_duration", record)
    fit(small_module(), 6, callbacks=[clock, Progress()], enable_progress_bar=True, accumulate_grad_batches=2)
    assert steps == [3]


def test_progress_prints_step_loss_and_speed_as_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit(small_module(), 3, callbacks=[Progress(), Throughput()], enable_progress_bar=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("step 3/3  epoch 0.7  loss ")
    assert re.search(r" [\d,]+ images/s  \d+\.\d% waiting for data  0:00:00 left$", last)
