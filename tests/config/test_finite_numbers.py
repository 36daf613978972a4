"""Refusal of numbers that are not finite."""

import math

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffusion_lab.config.finite_numbers import require_finite
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF


def check(command: str, *overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        require_finite(compose(command, overrides=list(overrides)))


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "optimizer.lr=inf", "optimizer.lr must be a finite number, got inf"),
        ("train", "trainer.gradient_clip_val=nan", "trainer.gradient_clip_val must be a finite number, got nan"),
        ("train", "guidance_scale=-inf", "guidance_scale must be a finite number, got -inf"),
        ("train", "optimizer.betas=[0.9,nan]", "optimizer.betas.1 must be a finite number, got nan"),
        ("train", "+callbacks.mine={a:[{b:nan}]}", "callbacks.mine.a.0.b must be a finite number, got nan"),
        ("train", "guidance.interval=[0.2,nan]", "guidance.interval.1 must be a finite number, got nan"),
        ("train_classifier", "optimizer.weight_decay=1e999", "optimizer.weight_decay must be a finite number, got inf"),
        ("sample", "classifier_scale=nan", "classifier_scale must be a finite number, got nan"),
        ("evaluate", "num_samples=inf", "num_samples must be a finite number, got inf"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_in_every_node(command: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}\.$".replace("[", r"\[")):
        check(command, override)


@pytest.mark.parametrize("overrides", [["sampler=heun"], ["sampler=euler"], ["guidance.interval=[0.2,inf]"], []])
def test_an_open_range_of_noise_levels_is_accepted(overrides: list[str]) -> None:
    check("train", *overrides)


def test_classes_of_other_libraries_may_accept_infinity_but_not_nan() -> None:
    for value, is_refused in ((math.inf, False), (math.nan, True)):
        config = OmegaConf.create({"model": {"_target_": "my_project.MyNet", "limit": value}})
        if is_refused:
            with pytest.raises(UserError, match=r"model.limit must be a finite number, got nan"):
                require_finite(config)
        else:
            require_finite(config)
