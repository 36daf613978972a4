"""Every file in conf/ composes, matches the signatures of its targets, and builds."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.compilation import without_acceleration
from diffusion_lab.config.library_classes import import_target
from diffusion_lab.config.validation import argument_problems
from diffusion_lab.paths import CONF
from diffusion_lab.runs.load import build_optimization, resolve

PIXELS_256 = ("afhq", "celeba_hq", "ffhq", "imagenet256", "lsun_bedroom", "lsun_cat", "lsun_church")
OF_EDITS = ("task", "posterior", "mask")
"""Groups of the command edit."""

CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/[!_]*.yaml"))
    if path.parent.name not in ("experiment", *OF_EDITS)  # experiment: test_recipes.py
]
INDEPENDENT = (  # groups of which any choices can be combined
    *(
        "clipping",
        "data",
        "ema",
        "features",
        "guard",
        "logger",
        "lr_schedule",
        "metrics",
        "optimizer",
        "prediction",
        "sampler",
    ),
    *("time_grid", "times", "trainer", "weighting"),
)
REQUIRED = {  # overrides that a choice requires
    "schedule=custom": ["schedule.betas=[0.1,0.2,0.4]"],
    "time_grid=sections": ["sampler.num_steps=50"],  # the sum of its counts
    "data=folder": ["data.path=somewhere"],
    "data=class_folders": ["data.path=somewhere"],
    "low_resolution=area": ["low_resolution.resolution=14"],
    "low_resolution=noised": ["low_resolution.resolution=14"],
    "space=sd_latents": ["model=dit_s", "data.resolution=256"],
    **{f"data={name}": ["model=unet_256"] for name in PIXELS_256},  # others do not reach their attention at 16 x 16
    # every network can halve a resolution of 32
    **{choice: ["data.resolution=32"] for choice in CHOICES if choice.startswith("model=")},
    # training needs a distance as the first metric; these metrics are for evaluation
    **{f"metrics={name}": [f"metrics=[fid,{name}]"] for name in ("bound", "nll", "flow", "reconstruction")},
}
NAMES_ELSEWHERE: dict[str, dict[str, str]] = OmegaConf.to_object(OmegaConf.load(CONF / "_names_elsewhere.yaml"))  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def initialized_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@cache
def composed(*overrides: str) -> DictConfig:
    return resolve(compose("train", overrides=["run_folder=somewhere", *overrides]))


def composed_with(*choices: str) -> DictConfig:
    return composed(*choices, *(override for choice in choices for override in REQUIRED.get(choice, [])))


Result = TypeVar("Result")
RESULTS: dict[tuple[str, str], Any] = {}


def once(function: Callable[[Any], Result], node: Any) -> Result:
    """Return function(node), computed once for all nodes with the same content: a choice changes few of the nodes."""
    key = (function.__name__, repr(node))
    if key not in RESULTS:
        RESULTS[key] = function(node)
    result: Result = RESULTS[key]
    return result


def problems(node: Any) -> list[str]:
    return list(argument_problems(node, ""))


def build(node: DictConfig) -> Any:
    return instantiate(node, _convert_="all")


def build_network(node: DictConfig) -> Any:
    with torch.device("meta"):
        return build(node)


def compositions() -> list[list[str]]:
    """Return lists of choices that together contain every choice once; independent groups share a list."""
    groups = {name: [choice for choice in CHOICES if choice.startswith(f"{name}=")] for name in INDEPENDENT}
    together = [[choice for choice in row if choice] for row in zip_longest(*groups.values())]
    return [*together, *([choice] for choice in CHOICES if choice.partition("=")[0] not in INDEPENDENT)]


def test_every_choice_is_composed_once() -> None:
    assert sorted(choice for choices in compositions() for choice in choices) == CHOICES


@pytest.mark.parametrize("choices", compositions(), ids=",".join)
def test_each_choice_composes_matches_the_signatures_and_builds_its_objects(choices: list[str]) -> None:
    config = composed_with(*choices)
    nodes = {**config, "trainer": without_acceleration(config.trainer)}
    assert [problem for node in nodes.values() for problem in once(problems, node)] == []
    in_channels = 4 if choices == ["space=sd_latents"] else config.data.channels
    assert once(build_network, config.model).in_channels == in_channels
    for part in ("process", "prediction", "objective", "times", "sampler", "ema", "guard", "variance"):
        assert once(build, config[part]) is not None
    assert build_optimization(config)["optimizer"].lr > 0


@pytest.mark.parametrize(
    "choice", [f"{path.parent.name}={path.stem}" for name in OF_EDITS for path in sorted(CONF.glob(f"{name}/*.yaml"))]
)
def test_each_choice_of_an_edit_composes_matches_the_signatures_and_builds_its_objects(choice: str) -> None:
    group, name = choice.split("=")
    required = {"mask=file": ["mask.path=mask.png"], "mask=color": ["mask.color=255"]}.get(choice, [])
    posterior = [] if group == "posterior" else ["posterior=pigdm"]
    config = compose("edit", overrides=["run=somewhere", "images=test", choice, *posterior, *required])
    node = resolve(OmegaConf.masked_copy(config, ["task", "mask", "posterior"]))[group]
    assert problems(node) == []
    assert build(node) is not None
    if group != "mask":
        assert import_target(str(node._target_)).name == name


@pytest.mark.parametrize(
    ("overrides", "num_parameters"),
    [
        (["experiment=ddpm_cifar10"], 35_746_307),  # networks alone: networks/test_published_sizes.py
        # the label embedding adds one row per class, and one for the null label if labels are dropped
        (["model=unet_tiny", "conditioning=label"], 1_623_169 + 11 * 128),
        (["model=unet_tiny", "conditioning=label", "conditioning.dropout=0"], 1_623_169 + 10 * 128),
    ],
)
def test_networks_have_the_stated_number_of_parameters(overrides: list[str], num_parameters: int) -> None:
    with torch.device("meta"):
        network = instantiate(composed(*overrides).model, _convert_="all")
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


def test_a_data_set_selects_network_and_features_and_both_can_be_overridden() -> None:
    assert composed("data=cifar10").model.channels == 128
    assert composed("data=cifar10").features._target_.endswith("Inception")
    assert composed("data=fashion_mini").features._target_.endswith("FashionCNN")
    other = composed("data=cifar10", "model=unet_small", "features=fashion_cnn")
    assert other.model.channels == 64
    assert other.features._target_.endswith("FashionCNN")


def test_an_augmentation_conditions_the_network_and_replaces_other_flips() -> None:
    plain, augmented = composed("data=cifar10"), composed("data=cifar10", "augmentation=edm")
    assert plain.data.horizontal_flip
    assert plain.data.datamodule.augmentation is None
    assert not augmented.data.horizontal_flip
    assert augmented.model.num_augmentation_channels == 9
    assert instantiate(augmented.data.datamodule).augmentation.probability == 0.12


def test_a_schedule_selects_matching_choices_and_all_can_be_overridden() -> None:
    config = composed("schedule=edm")
    selected = [config[key]._target_.rpartition(".")[2] for key in ("prediction", "times", "weighting", "time_grid")]
    assert selected == ["EDMDenoiser", "LogNormalSigma", "EDMWeighting", "KarrasTimes"]
    other = composed("schedule=edm", "prediction=v", "times=stratified", "weighting=none", "time_grid=log_snr")
    overridden = [other[key]._target_.rpartition(".")[2] for key in ("prediction", "times", "weighting", "time_grid")]
    assert overridden == ["V", "Stratified", "unweighted", "LogSNRTimes"]
    assert composed("schedule=jsd").prediction._target_.endswith(".V")


def test_power_averages_add_the_callback_that_saves_them_fifty_times_per_run() -> None:
    assert composed("ema=power").callbacks.save_averages.every_n_steps == 1000 // 50
    assert composed("ema=power", "trainer.max_steps=30").callbacks.save_averages.every_n_steps == 1
    assert composed("ema=power", "trainer.max_steps=-1").callbacks.save_averages.every_n_steps == 5000
    assert "save_averages" not in composed("ema=several").callbacks


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("ema=")])
def test_main_is_the_average_that_is_sampled_for_every_choice(choice: str) -> None:
    ema = instantiate(composed_with(choice).ema, _convert_="all")(torch.nn.Linear(2, 2))
    assert ema.network is ema.networks["main"]


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("variance=")])
@pytest.mark.parametrize("objective", [[], ["objective=hybrid"], ["objective=vlb"]])
def test_networks_have_twice_the_output_channels_if_the_variance_is_learned(choice: str, objective: list[str]) -> None:
    config = composed(choice, *objective)
    learned = instantiate(config.variance).learned
    assert config.model.out_channels == config.data.channels * (2 if learned else 1)


def test_samplers_take_at_most_the_steps_of_a_short_schedule_by_default() -> None:
    assert composed("schedule.num_timesteps=10").sampler.num_steps == 10
    assert composed("schedule=custom", "schedule.betas=[0.1,0.2,0.4]").sampler.num_steps == 3
    assert composed("schedule=vp", "sampler=ancestral").sampler.num_steps == 1000
    assert composed("schedule.num_timesteps=10", "sampler.num_steps=20").sampler.num_steps == 20  # rejected later


def has(config: DictConfig, path: str) -> bool:
    return bool(OmegaConf.select(config, path, default="missing") != "missing")


@pytest.mark.parametrize("group", list(NAMES_ELSEWHERE))
def test_names_of_other_libraries_refer_to_choices_that_exist(group: str) -> None:
    choices = {choice.partition("=")[2] for choice in CHOICES if choice.startswith(f"{group}=")}
    for name, text in NAMES_ELSEWHERE[group].items():
        if group in ("absent", "edit"):
            assert name not in composed()
        elif group == "settings":
            meant = text.split(" or ")
            commands = [composed(), compose("sample"), compose("evaluate")]
            lacking = [config for config in commands if not has(config, name)]
            is_setting = any(has(config, other) for config in lacking for other in meant)
            assert is_setting or text == "trainer.max_epochs" or (CONF / text).is_dir(), text
        else:
            assert name not in choices
            assert text.split()[0] in choices


def test_the_settings_of_edit_for_names_of_other_libraries_are_accepted() -> None:
    for text in NAMES_ELSEWHERE["edit"].values():
        compose("edit", overrides=text.split())


def test_training_measures_the_first_metric() -> None:
    targets = {
        name: composed(f"metrics={name}").callbacks.measure_distance.metric._target_.rpartition(".")[2]
        for name in ("fid", "kid", "[precision_recall,fid]")
    }
    assert list(targets.values()) == ["FrechetDistance", "KernelDistance", "PrecisionRecall"]


@pytest.mark.parametrize("choice", [path.stem for path in CONF.glob("metrics/*.yaml") if path.stem != "nll"])
def test_messages_name_a_metric_by_its_choice(choice: str) -> None:
    (node,) = compose("train", overrides=["run_folder=somewhere", f"metrics={choice}"]).metrics.values()
    assert import_target(str((node.get("quantity") or node)._target_)).choice == choice


def test_features_of_one_metric_do_not_replace_those_of_others() -> None:
    metrics = composed("metrics=[fid,cmmd]", "features=inception").metrics
    assert [metrics[name].features._target_.rpartition(".")[2] for name in ("fid", "cmmd")] == ["Inception", "CLIP"]


def test_the_default_prediction_is_the_noise() -> None:
    assert composed().prediction._target_.endswith(".Epsilon")


def test_the_sneakers_recipe_has_variances_0_to_098_in_steps_of_002() -> None:
    schedule = instantiate(composed("experiment=notebook_sneakers").schedule)
    assert schedule.betas.tolist() == pytest.approx([0.02 * step for step in range(50)], abs=1e-12)


def test_conf_has_one_folder_per_group() -> None:
    groups = {path.name for path in Path(CONF).iterdir() if path.is_dir()}
    expected = "data schedule model prediction objective times sampler ema optimizer metrics callbacks logger trainer"
    assert set(f"{expected} experiment".split()) <= groups


def test_class_folders_are_counted(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").touch()
    assert composed("data=class_folders", f"data.path={tmp_path}").data.num_classes == 2
    assert composed("data=class_folders", f"data.path={tmp_path / 'train'}").data.num_classes == 2


@pytest.mark.parametrize("model", ["unet_quick", "unet_tiny", "unet_small", "unet_medium"])
@pytest.mark.parametrize(
    "resolution", [48, *(pytest.param(side, marks=pytest.mark.full) for side in (32, 64, 96, 128)), 256]
)
def test_presets_have_attention_on_small_maps_at_every_resolution(model: str, resolution: int) -> None:
    settings = composed(f"model={model}", f"data.resolution={resolution}").model
    network = build_network(settings)
    sides = [resolution // settings.patch_size // 2**level for level in range(len(settings.channel_multipliers))]
    attending = set(sides) & set(settings.attention_resolutions)
    assert attending
    assert max(attending) <= 16
    assert network.resolution == resolution


@pytest.mark.parametrize(
    ("model", "channel_multipliers", "patch_size"),
    [("unet_quick", [1, 2], 2), ("unet_tiny", [1, 2, 2], 1), ("unet_small", [1, 2, 2], 1)],
)
@pytest.mark.parametrize("resolution", [16, 28, 32])
def test_presets_keep_the_settings_of_version_04_at_low_resolutions(
    model: str, channel_multipliers: list[int], patch_size: int, resolution: int
) -> None:
    settings = composed(f"model={model}", f"data.resolution={resolution}").model
    assert settings.channel_multipliers == channel_multipliers
    assert settings.attention_resolutions == [7, 8]
    assert settings.patch_size == patch_size


def test_the_first_map_of_unet_quick_and_unet_medium_does_not_grow_above_32_and_64() -> None:
    sides = {
        model: [
            resolution // composed(f"model={model}", f"data.resolution={resolution}").model.patch_size
            for resolution in (28, 32, 64, 128, 256)
        ]
        for model in ("unet_quick", "unet_medium")
    }
    assert sides == {"unet_quick": [14, 16, 32, 32, 32], "unet_medium": [28, 32, 64, 64, 64]}
