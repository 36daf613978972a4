import json
from pathlib import Path

import pytest
from hydra.utils import get_object

from diffusion_lab.config.earlier_versions import (
    current_config,
    current_fingerprint,
    current_metric,
    current_overrides,
    current_target,
)
from support.commands import ROOT

V0_3 = ROOT / "tests" / "earlier_runs"
TARGETS = (V0_3 / "v0_3_targets.txt").read_text().split()


@pytest.mark.parametrize("target", [name for name in TARGETS if "LearningRateCourse" not in name])
def test_every_target_of_0_3_is_found_under_its_name_of_today(target: str) -> None:
    assert callable(get_object(current_target(target)))
    assert current_target(current_target(target)) == current_target(target)


def test_a_target_of_other_code_keeps_its_name() -> None:
    assert current_target("torch.optim.SGD") == "torch.optim.SGD"
    assert current_target("diffusion_lab.samplers.DDIM") == "diffusion_lab.samplers.DDIM"


@pytest.mark.parametrize(
    ("course", "schedule"),
    [
        (
            {"num_warmup_steps": 7, "num_decay_steps": None},
            {"_target_": "diffusion_lab.training.ConstantWithWarmup", "num_warmup_steps": 7},
        ),
        (
            {"num_warmup_steps": 0, "num_decay_steps": 9},
            {"_target_": "diffusion_lab.training.CosineWithWarmup", "num_warmup_steps": 0, "num_decay_steps": 9},
        ),
    ],
)
def test_a_course_of_the_learning_rate_becomes_a_schedule(course: dict[str, object], schedule: object) -> None:
    target = {"_target_": "diffusion_lab.optimizers.LearningRateCourse"}
    adam = {"_target_": "diffusion_lab.optimizers.Adam", "lr": 0.1}
    today = {
        "_target_": "torch.optim.Adam", "lr": 0.1, "decoupled_weight_decay": True, "decay_matrices_only": False,
    }  # fmt: skip
    current = current_config({"optimizer": adam | {"course": target | course}})
    assert current == {"optimizer": today, "lr_schedule": schedule}
    assert current_config(current) == current


def test_channels_of_low_resolution_images_are_channels_of_condition_images() -> None:
    model = {"_target_": "diffusion_lab.networks.UNet", "low_resolution_channels": 3, "num_augmentation_channels": 1}
    current = current_config({"model": model})
    assert current["model"] == {
        "_target_": "diffusion_lab.networks.UNet", "condition_channels": 3, "num_augmentation_channels": 1,
    }  # fmt: skip
    assert current_config(current) == current
    other = {"model": {"_target_": "mine.Network", "low_resolution_channels": 3}}
    assert current_config(other) == other  # a network of another package has its own names
    assert current_overrides(["model.low_resolution_channels=3"]) == ["model.condition_channels=3"]


def test_a_config_is_renamed_at_any_depth_and_in_lists() -> None:
    times = {"_target_": "diffusion_lab.process.LogNormalSigma", "mean": -1.2, "deviation": 1.2}
    plugins = [{"_target_": "diffusion_lab.layout.environment"}]
    current = current_config({"times": times, "trainer": {"plugins": plugins}})
    assert current["times"] == {"_target_": "diffusion_lab.process.LogNormalSigma", "mean": -1.2, "std": 1.2}
    assert current["trainer"]["plugins"] == [{"_target_": "diffusion_lab.distributed.cluster_environment"}]


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (["optimizer.course.num_warmup_steps=2"], ["lr_schedule.num_warmup_steps=2"]),
        (["optimizer.course.num_decay_steps=10"], ["lr_schedule=cosine", "lr_schedule.num_decay_steps=10"]),
        (["optimizer.course.num_decay_steps=null"], ["lr_schedule=constant"]),
        (["++times.deviation=0.5"], ["++times.std=0.5"]),
        (["schedule=warmup"], ["schedule=beta_warmup"]),
        (["schedule=linear,warmup"], ["schedule=linear,beta_warmup"]),
        (
            ["guard._target_=diffusion_lab.step_guard.StepGuard"],
            ["guard._target_=diffusion_lab.training.NonFiniteGuard"],
        ),
        (["~logger", "seed=3", "experiment=quickstart"], ["~logger", "seed=3", "experiment=quickstart"]),
    ],
)
def test_overrides_of_0_3_are_read(then: list[str], now: list[str]) -> None:
    assert current_overrides(then) == now
    assert current_overrides(now) == now


def fingerprint_of_0_3() -> dict[str, object]:
    record = json.loads(Path(V0_3, "v0_3", "evaluated", "metrics.json").read_text())
    fingerprint: dict[str, object] = record["numbers"][0]["fingerprint"]
    return fingerprint


def test_the_numbers_of_0_3_are_of_the_first_version_of_fingerprints() -> None:
    current = current_fingerprint(fingerprint_of_0_3())
    assert current["version"] == 1
    assert current["quantization"] == "rounded to 256 levels"
    assert not {"code", "quantisation"} & set(current)
    assert current_fingerprint(current) == current


def test_the_subset_size_of_a_kernel_distance_of_0_3_is_that_of_the_smaller_set() -> None:
    numbers = json.loads(Path(V0_3, "v0_3", "evaluated", "metrics.json").read_text())["numbers"]
    then = next(number["fingerprint"] for number in numbers if number["name"] == "kid_fashion_cnn_20_train")
    current = current_fingerprint(then)
    assert then["metric"]["subset_size"] == 1000
    assert current["metric"] == {"name": "KernelDistance", "num_subsets": 100, "subset_size": 20}
    assert current_fingerprint(current) == current


def test_the_numbers_of_0_2_differ_from_all_others() -> None:
    assert current_fingerprint(fingerprint_of_0_3() | {"code": "0.2.0"})["version"] == "0.2.0"


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ("kid_fashion_cnn_2k_train", "kd_fashion_cnn_2k_train"),
        ("kid_std_fashion_cnn_2k_train", "kd_std_fashion_cnn_2k_train"),
        ("is_std_fashion_cnn_2k", "cs_std_fashion_cnn_2k"),
        ("kid_std_inception_50k_train", "kid_std_inception_50k_train"),
        ("is_inception_50k", "is_inception_50k"),
        ("fd_fashion_cnn_2k_train", "fd_fashion_cnn_2k_train"),
        ("minutes", "minutes"),
    ],
)
def test_only_values_of_inception_features_keep_the_names_of_papers(then: str, now: str) -> None:
    assert current_metric(then) == current_metric(now) == now
