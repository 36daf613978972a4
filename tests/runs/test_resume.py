"""Resuming a run: starting points and finished runs."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffusion_lab.paths import CONF
from diffusion_lab.runs.results import print_done
from diffusion_lab.runs.resume import StartingPoint, is_open_ended
from diffusion_lab.runs.settings.changes import changes_with_effect


@pytest.mark.parametrize(("distance", "result"), [({"fd_fashion_cnn_2k": 1.5}, 1.5), ({}, 0.25)])
def test_the_result_of_a_finished_run_is_its_distance_or_its_loss(
    distance: dict[str, float], result: float, tmp_path: Path
) -> None:
    content = {"steps": 8, "loss": 0.25, **distance, "images_per_second": 300.0, "minutes": 2.0}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    config = OmegaConf.create({"run_folder": str(tmp_path), "trainer": {"max_steps": 8}})
    start = StartingPoint(config, tmp_path / "last.ckpt", 8, continues=True)
    assert start.is_done
    assert print_done(tmp_path, 8, is_open_ended=True) == result


def test_the_interval_of_a_callback_of_another_package_must_not_change() -> None:
    saved = {("callbacks", name, "every_n_steps"): 100 for name in ("measure_distance", "sample_images", "my_callback")}
    found = changes_with_effect(saved, dict.fromkeys(saved, 200))
    assert found == ["callbacks.my_callback.every_n_steps (was 100, got 200)"]


@pytest.mark.parametrize("can_continue", [True, False])
def test_a_finished_run_names_fork_only_if_a_schedule_ends_with_it(
    can_continue: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_done(tmp_path, 60, is_open_ended=can_continue)
    printed = capsys.readouterr().out
    assert "trainer.max_steps above 60 to train further" in printed
    assert ("fork=true" in printed) == (not can_continue)


@pytest.mark.parametrize(("lr_schedule", "can_continue"), [("constant", True), ("cosine", False)])
def test_a_run_is_open_ended_unless_its_learning_rate_depends_on_the_number_of_steps(
    lr_schedule: str, can_continue: bool
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["run_folder=somewhere", f"lr_schedule={lr_schedule}"])
    config.trainer.max_steps = 60
    assert is_open_ended(config) == can_continue
    assert config.trainer.max_steps == 60
