"""Every file under conf/ composes, fits the signatures of what it builds, and builds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.compilation import without_acceleration
from diffusion_lab.config.validation import argument_problems
from diffusion_lab.paths import CONF
from diffusion_lab.runs.load import resolve

CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name != "experiment"  # test_recipes.py
]
NEEDS = {  # what a choice cannot do without
    "schedule=custom": ["schedule.betas=[0.1,0.2,0.4]"],
    "data=folder": ["data.path=somewhere"],
    "data=class_folders": ["data.path=somewhere"],
    "low_resolution=area": ["low_resolution.resolution=14"],
    "low_resolution=noised": ["low_resolution.resolution=14"],
    "space=sd_latents": ["model=dit_s", "data.resolution=256"],
    # training measures the distance; the other metrics are of evaluation, and may stand beside it
    **{f"metrics={name}": [f"metrics=[fid,{name}]"] for name in ("bound", "nll", "flow", "reconstruction")},
}
NAMES_ELSEWHERE: dict[str, dict[str, str]] = OmegaConf.to_object(OmegaConf.load(CONF / "_names_elsewhere.yaml"))  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def hydra_here() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return resolve(compose("train", overrides=["run_folder=somewhere", *overrides]))


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_composes_and_fits_the_signatures(choice: str) -> None:
    config = composed(choice, *NEEDS.get(choice, []))
    config.trainer = without_acceleration(config.trainer)
    assert list(argument_problems(config, "")) == []


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_builds_its_mathematics(choice: str) -> None:
    config = composed(choice, "data.resolution=32", *NEEDS.get(choice, []))  # a side that every network can halve
    with torch.device("meta"):
        network = instantiate(config.model, _convert_="all")
    assert network.in_channels == (4 if choice == "space=sd_latents" else config.data.channels)
    for part in ("process", "prediction", "objective", "times", "sampler", "optimizer", "ema", "guard", "variance"):
        assert instantiate(config[part], _convert_="all") is not None


@pytest.mark.parametrize(
    ("overrides", "num_parameters"),
    [
        (["data=cifar10", "model=unet_cifar10"], 35_746_307),
        (["experiment=ddpm_cifar10"], 35_746_307),
        (["model=unet_tiny"], 1_623_169),
        # the label's table is the only difference: one row a class, and the null label's where labels are dropped
        (["model=unet_tiny", "conditioning=label"], 1_623_169 + 11 * 128),
        (["model=unet_tiny", "conditioning=label", "conditioning.dropout=0"], 1_623_169 + 10 * 128),
    ],
)
def test_networks_have_the_stated_number_of_parameters(overrides: list[str], num_parameters: int) -> None:
    with torch.device("meta"):
        network = instantiate(composed(*overrides).model, _convert_="all")
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


def test_the_data_brings_its_network_and_features_and_both_can_be_overridden() -> None:
    assert composed("data=cifar10").model.channels == 128
    assert composed("data=cifar10").features._target_.endswith("Inception")
    assert composed("data=fashion_mini").features._target_.endswith("FashionCNN")
    other = composed("data=cifar10", "model=unet_small", "features=fashion_cnn")
    assert other.model.channels == 64
    assert other.features._target_.endswith("FashionCNN")


def test_an_augmentation_brings_the_network_that_is_told_and_mirrors_alone() -> None:
    plain, augmented = composed("data=cifar10"), composed("data=cifar10", "augmentation=edm")
    assert plain.data.horizontal_flip
    assert plain.data.datamodule.augmentation is None
    assert not augmented.data.horizontal_flip
    assert augmented.model.num_augmentation_channels == 9
    assert instantiate(augmented.data.datamodule).augmentation.probability == 0.12


def test_a_schedule_brings_what_suits_it_and_all_can_be_overridden() -> None:
    config = composed("schedule=edm")
    brought = [config[key]._target_.rpartition(".")[2] for key in ("prediction", "times", "weighting", "time_grid")]
    assert brought == ["EDMDenoiser", "LogNormalSigma", "EDMWeighting", "KarrasTimes"]
    other = composed("schedule=edm", "prediction=v", "times=stratified", "weighting=none", "time_grid=log_snr")
    overridden = [other[key]._target_.rpartition(".")[2] for key in ("prediction", "times", "weighting", "time_grid")]
    assert overridden == ["V", "Stratified", "unweighted", "LogSNRTimes"]
    assert composed("schedule=jsd").prediction._target_.endswith(".V")


def test_power_averages_bring_the_callback_that_saves_them_fifty_times_a_run() -> None:
    assert composed("ema=power").callbacks.save_averages.every_n_steps == 1000 // 50
    assert composed("ema=power", "trainer.max_steps=30").callbacks.save_averages.every_n_steps == 1
    assert composed("ema=power", "trainer.max_steps=-1").callbacks.save_averages.every_n_steps == 5000
    assert "save_averages" not in composed("ema=several").callbacks


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("ema=")])
def test_the_average_that_is_sampled_is_main_whatever_the_rule(choice: str) -> None:
    ema = instantiate(composed(choice).ema, _convert_="all")(torch.nn.Linear(2, 2))
    assert ema.network is ema.networks["main"]


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("variance=")])
@pytest.mark.parametrize("objective", ["hybrid", "simple", "vlb"])
def test_networks_answer_twice_the_channels_where_the_variance_is_learned(choice: str, objective: str) -> None:
    config = composed(f"objective={objective}", choice)
    learned = instantiate(config.variance).learned
    assert config.model.out_channels == config.data.channels * (2 if learned else 1)


def test_samplers_take_no_more_steps_than_a_short_table_has_unless_told() -> None:
    assert composed("schedule.num_timesteps=10").sampler.num_steps == 10
    assert composed("schedule=custom", "schedule.betas=[0.1,0.2,0.4]").sampler.num_steps == 3
    assert composed("schedule=vp", "sampler=ancestral").sampler.num_steps == 1000
    assert composed("schedule.num_timesteps=10", "sampler.num_steps=20").sampler.num_steps == 20  # refused when built


@pytest.mark.parametrize("group", list(NAMES_ELSEWHERE))
def test_names_of_other_code_are_none_of_ours_and_point_to_ours(group: str) -> None:
    ours = {choice.partition("=")[2] for choice in CHOICES if choice.startswith(f"{group}=")}
    for name, meaning in NAMES_ELSEWHERE[group].items():
        assert name not in ours
        assert meaning.split()[0].rstrip(",") in ours


def test_training_measures_the_first_metric() -> None:
    targets = {
        name: composed(f"metrics={name}").callbacks.measure_distance.metric._target_.rpartition(".")[2]
        for name in ("fid", "kid", "[precision_recall,fid]")
    }
    assert list(targets.values()) == ["FrechetDistance", "KernelDistance", "PrecisionRecall"]


def test_metrics_that_bring_features_of_their_own_leave_the_others_theirs() -> None:
    metrics = composed("metrics=[fid,cmmd]", "features=inception").metrics
    assert [metrics[name].features._target_.rpartition(".")[2] for name in ("fid", "cmmd")] == ["Inception", "CLIP"]


def test_the_default_prediction_is_the_noise() -> None:
    assert composed().prediction._target_.endswith(".Epsilon")


def test_the_classroom_recipe_has_variances_0_to_098_in_steps_of_002() -> None:
    schedule = instantiate(composed("experiment=notebook_sneakers").schedule)
    assert schedule.betas.tolist() == pytest.approx([0.02 * step for step in range(50)], abs=1e-12)


def test_conf_holds_one_folder_for_each_group_of_the_command_line() -> None:
    groups = {path.name for path in Path(CONF).iterdir() if path.is_dir()}
    wanted = "data schedule model prediction objective times sampler ema optimizer metrics callbacks logger trainer"
    assert set(f"{wanted} experiment".split()) <= groups


def test_a_folder_of_classes_counts_them(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "test/cat", ".hidden"):
        (tmp_path / place).mkdir(parents=True)
    assert composed("data=class_folders", f"data.path={tmp_path}").data.num_classes == 2
    assert composed("data=class_folders", f"data.path={tmp_path / 'train'}").data.num_classes == 2
