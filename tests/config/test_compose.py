"""Composed configs, and the messages for configs that cannot be composed or resolved."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffusion_lab.config.compose import compose_config, require_global_experiment
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.load import resolve


@pytest.mark.parametrize(("given", "shown"), [("abc", "abc"), (None, "null")])
def test_a_value_that_cannot_be_computed_names_the_setting_from_which_it_is_computed(
    given: str | None, shown: str
) -> None:
    config = OmegaConf.create(
        {
            "data": {"resolution": given},
            "model": {"side": "${data.resolution}", "levels": {"count": "${at_most:3,${model.side}}"}},
            "other": "${model.levels.count}",
        }
    )
    message = f"^data.resolution must have a value from which model.levels.count can be computed, got {shown}\\.$"
    with pytest.raises(UserError, match=message):
        resolve(config)


def test_a_prediction_for_a_schedule_that_selects_none_names_the_defaults_list_of_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "bare.yaml").write_text("_target_: my_project.Schedule\n")
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "schedule=bare", "prediction=v"]
    monkeypatch.setattr("sys.argv", ["train.py", *overrides])
    GlobalHydra.instance().clear()
    message = "^prediction is not a setting with this schedule, whose file must select the group prediction"
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(UserError, match=message):
        compose_config("train", overrides)


def test_the_recipe_of_the_quick_start_trains_on_all_images_of_the_user_with_or_without_classes(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    quick, place = "experiment=quickstart", f"data.path={tmp_path}"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        usual = compose_config("train", [quick])
        own = compose_config("train", [quick, "data=class_folders", place])
        unlabeled = compose_config("train", [quick, "data=folder", place, "conditioning=none"])
        hub = compose_config("train", [quick, "data=fashion_mnist", place])
    assert [config.data.num_held_out for config in (usual, own, unlabeled, hub)] == [1000, 0, 0, 1000]
    assert [config.guidance_scale for config in (usual, unlabeled)] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["metrics=[fid,kid,nll]", "metrics.kid.num_subset=5"],
            r"metrics\.kid\.num_subset is not a setting in metrics\.kid; perhaps you mean num_subsets; .*",
        ),
        (
            ["metrics=[fid,kid]", "metrics.kid.num_subset=5", "metrics.fid.more=1"],
            r"metrics\.kid\.num_subset is not a setting in metrics\.kid; perhaps you mean num_subsets; .*",
        ),
        (
            ["metrics=[fid,kid,nll]", "metrics.flow.num_images=5"],
            r"metrics\.flow\.num_images is a setting of metrics=flow, .*; use 'metrics=\[fid,kid,bound,flow\]'\.",
        ),
        (["metrics=[fid,kid]", "metrics.fd.x=5"], r"metrics\.fd is not a setting in metrics; .* are fid, kid\."),
    ],
)
def test_the_message_for_an_unknown_setting_of_a_metric_refers_to_the_metrics_of_the_command_line(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", *overrides])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(UserError, match=f"^{message}$"):
        compose_config("evaluate", overrides)


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("sample", ["run=x", "num_samples=4"], "num_samples is not a setting; perhaps you mean num_images; .*"),
        ("sample", ["run=x", "steps=4"], r"steps is not a setting; perhaps you mean sampler\.num_steps; .*"),
        ("evaluate", ["run=x", "num_images=4"], "num_images is not a setting; perhaps you mean num_samples; .*"),
        ("sample", ["run=x", "schedule=cosine"], "schedule is a setting of training, which `run` determines; .*"),
        ("edit", ["run=x", "data.num_held_out=4"], r"data\.num_held_out is a setting of training, which `run` .*"),
        ("evaluate", ["data.num_held_out=4"], r"data\.num_held_out is not a setting in data; add data=afhq or .*"),
        ("sample", ["run=x", "sampler.eta=4"], r"sampler\.eta is not a setting in sampler; add sampler=ddim .*"),
        ("train", ["ema.decay=0.9"], r"ema\.decay is not .*; perhaps you mean ema\.decays\.main\.max_decay; .*"),
        (
            "train",
            ["callbacks.save_last=null", "callbacks.save_last.every_n_steps=5"],
            r"callbacks\.save_last\.every_n_steps is not a setting while callbacks\.save_last is null\.",
        ),
    ],
)
def test_the_message_for_an_unknown_setting_fits_the_command(
    command: str, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [f"{command}.py", *overrides])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(UserError, match=f"^{message}$"):
        compose_config(command, overrides)


def test_the_message_for_a_sweep_refers_to_the_value_of_the_sweep_that_lacks_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "-m", "metrics=kid,fid", "metrics.kid.num_subsets=5"])
    GlobalHydra.instance().clear()
    message = r"metrics\.kid\.num_subsets is a setting of metrics=kid, .*; use 'metrics=\[fid,kid\]'\."
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(UserError, match=message):
        compose_config("evaluate", ["metrics=fid", "metrics.kid.num_subsets=5"])


def test_an_unknown_setting_of_a_network_in_one_of_several_config_folders_names_the_settings_of_this_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one/model", "two"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one" / "model" / "mine.yaml").write_text("_target_: my_project.MyNet\nwidth: 8\ndepth: 2\n")
    overrides = [f"hydra.searchpath=[file://{tmp_path}/one,file://{tmp_path}/two]", "model=mine", "model.widht=16"]
    monkeypatch.setattr("sys.argv", ["train.py", *overrides])
    GlobalHydra.instance().clear()
    message = "^model.widht is not a setting in model; perhaps you mean width; accepted settings are depth, width.$"
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(UserError, match=message):
        compose_config("train", overrides)


@pytest.mark.parametrize("content", ["defaults: [override /data: cifar10]\n", "model:\n  channels: 16\n"])
def test_an_experiment_whose_settings_are_not_global_names_the_missing_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    monkeypatch.setattr("sys.argv", ["train.py", *overrides])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        file.write_text(content)
        message = "^the file of experiment=mine must have the line `# @package _global_` at its beginning, "
        with pytest.raises(UserError, match=message):
            require_global_experiment(compose_config("train", overrides))
        GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        file.write_text(f"# @package _global_\n{content}")
        require_global_experiment(compose_config("train", overrides))
