"""The schedulers of `diffusers` as schedule, prediction, variance, sampler, time grid and clipping, and back."""

from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError
from diffusion_lab.interop.foreign_config import ForeignConfig
from diffusion_lab.interop.own_settings import require
from diffusion_lab.process import (
    X0,
    ConstantSchedule,
    CosineSchedule,
    Epsilon,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LinearSchedule,
    Prediction,
    QuadraticSchedule,
    TableSchedule,
    V,
)
from diffusion_lab.samplers import (
    Ancestral,
    Clipping,
    DynamicClipping,
    LeadingTimes,
    NoClipping,
    Sampler,
    StaticClipping,
    TimeGrid,
    TrailingTimes,
    UniformTimes,
)

DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}
"""Arguments of DDPMScheduler and DDIMScheduler with their defaults (`diffusers` 0.42)."""

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")

PREDICTIONS = {"epsilon": "Epsilon", "sample": "X0", "v_prediction": "V"}

VARIANCES = {
    "fixed_small": "FixedSmall",
    "fixed_small_log": "FixedSmall",  # the same standard deviation, computed from its logarithm
    "fixed_large": "FixedLarge",
    "learned_range": "LearnedRange",
}

DDIM_STEPS = 50
"""Default number of steps of DDIMPipeline."""

UNBOUNDED = 1e6
"""Value of sample_max_value from which `DynamicClipping`, which has no such limit, is the same."""


def own_settings(content: dict[str, Any], path: Path, *, learns_variance: bool) -> dict[str, Any]:
    """Return the config nodes of schedule, prediction, variance, process, sampler, time_grid and clipping.

    content: config of the scheduler.  path: file of the config, for error messages.
    learns_variance: whether the network has output channels for the variance.
    Raises UserError for a scheduler or a setting that has no counterpart.
    """
    name = content.get("_class_name")
    if name not in SCHEDULERS:
        raise UserError(f"the scheduler must be {' or '.join(SCHEDULERS)} in {path}, got {str(name)[:100]}.")
    config = ForeignConfig(content, DEFAULTS, path)
    schedule = _schedule(config)
    kind = PREDICTIONS[config.require("prediction_type", *PREDICTIONS)]
    parts = {
        "schedule": schedule,
        "prediction": {"_target_": f"diffusion_lab.process.{kind}"},
        "process": {"_target_": "diffusion_lab.process.GaussianProcess", "schedule": schedule},
        "variance": _variance(config, name, learns_variance=learns_variance),
        "time_grid": _time_grid(config),
        "clipping": _clipping(config),
    }
    return parts | {"sampler": _sampler(config, name, parts)}


def scheduler_settings(process: GaussianProcess, prediction: Prediction, sampler: Sampler) -> dict[str, Any]:
    """Return the config of a scheduler that has the steps of a sampler.

    A sampler other than `Ancestral` with a fixed variance results in a DDIMScheduler.
    Raises UserError that names the setting for which `diffusers` has no scheduler.
    """
    schedule = process.schedule
    require(isinstance(schedule, TableSchedule), "schedule", "a schedule with discrete steps", type(schedule).__name__)
    assert isinstance(schedule, TableSchedule)
    kinds = {Epsilon: "epsilon", X0: "sample", V: "v_prediction"}
    require(type(prediction) in kinds, "prediction", "epsilon, x_0 or v", type(prediction).__name__)
    is_ddpm = is_ancestral(sampler)
    own = {
        "_class_name": "DDPMScheduler" if is_ddpm else "DDIMScheduler",
        "num_train_timesteps": schedule.num_timesteps,
        **_betas(schedule),
        "prediction_type": kinds[type(prediction)],
        **_clip_settings(sampler.clipping),
        **_spacing(sampler),
    }
    if is_ddpm:
        own["variance_type"] = "fixed_large" if isinstance(sampler.variance, FixedLarge) else "fixed_small"  # type: ignore[attr-defined]
    else:
        own["set_alpha_to_one"] = True
    return own


def is_ancestral(sampler: Sampler) -> bool:
    """Return whether DDPMScheduler has the steps of a sampler: those of `Ancestral` with a fixed variance."""
    return isinstance(sampler, Ancestral) and isinstance(sampler.variance, (FixedLarge, FixedSmall))


def _schedule(config: ForeignConfig) -> dict[str, Any]:
    """Return the config node of a schedule."""
    snr = {"zero_terminal_snr": config.flag("rescale_betas_zero_snr")}
    if config["trained_betas"] is not None:
        betas = config.sequence("trained_betas", float)
        config.require("num_train_timesteps", len(betas))
        return {"_target_": "diffusion_lab.process.CustomSchedule", "betas": betas, **snr}
    steps = {"num_timesteps": config.whole("num_train_timesteps")}
    kind = config.require("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
    if kind == "squaredcos_cap_v2":
        constants = {"offset": 0.008, "max_beta": 0.999}
        return {"_target_": "diffusion_lab.process.CosineSchedule", **steps, **constants, **snr}
    ends = {"beta_start": config.number("beta_start"), "beta_end": config.number("beta_end")}
    names = {"linear": "LinearSchedule", "scaled_linear": "QuadraticSchedule", "sigmoid": "SigmoidBetaSchedule"}
    return {"_target_": f"diffusion_lab.process.{names[kind]}", **steps, **ends, **snr}


def _variance(config: ForeignConfig, scheduler: str, *, learns_variance: bool) -> dict[str, Any]:
    """Return the config node of a variance.  DDIMScheduler has none: its networks may have been trained with one."""
    if scheduler == "DDIMScheduler":
        name = "LearnedRange" if learns_variance else "FixedSmall"
    else:
        name = VARIANCES[config.require("variance_type", *VARIANCES)]
        if (name == "LearnedRange") != learns_variance:
            outputs = "twice as many output channels as" if learns_variance else "no output for the variance next to"
            accepted = (
                f"{'learned_range' if learns_variance else 'fixed_small or fixed_large'} (the network has {outputs}"
            )
            raise config.refuse("variance_type", f"{accepted} the input channels)")
    return {"_target_": f"diffusion_lab.process.{name}"}


def _time_grid(config: ForeignConfig) -> dict[str, Any]:
    spacing = config.require("timestep_spacing", "leading", "trailing", "linspace")
    offset = config.whole("steps_offset", least=0)
    if spacing == "leading":
        return {"_target_": "diffusion_lab.samplers.LeadingTimes", "offset": offset}
    name = "TrailingTimes" if spacing == "trailing" else "UniformTimes"
    return {"_target_": f"diffusion_lab.samplers.{name}"}


def _clipping(config: ForeignConfig) -> dict[str, Any]:
    """Return the config node of a clipping.  Raises UserError for a range other than [-1, 1]."""
    if config.flag("thresholding"):
        largest = config.number("sample_max_value")
        if largest >= UNBOUNDED:
            ratio = config.number("dynamic_thresholding_ratio")
            return {"_target_": "diffusion_lab.samplers.DynamicClipping", "percentile": ratio, "after_guidance": False}
        config.require("sample_max_value", 1, 1.0)  # every image is clipped to [-1, 1]
    elif not config.flag("clip_sample"):
        return {"_target_": "diffusion_lab.samplers.NoClipping"}
    else:
        config.require("clip_sample_range", 1, 1.0)
    return {"_target_": "diffusion_lab.samplers.StaticClipping", "after_guidance": False}


def _sampler(config: ForeignConfig, scheduler: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the config node of the sampler, with the default number of steps of the pipelines."""
    total = config.whole("num_train_timesteps")
    own = {"process": parts["process"], "time_grid": parts["time_grid"], "clipping": parts["clipping"]}
    if scheduler == "DDPMScheduler":
        rest = {"num_steps": total, "variance": parts["variance"], "chain_variance": True}
        return {"_target_": "diffusion_lab.samplers.Ancestral", **rest, **own}
    config.require("set_alpha_to_one", True)
    steps = min(DDIM_STEPS, total)
    return {
        "_target_": "diffusion_lab.samplers.DDIM",
        "num_steps": steps,
        "eta": 0.0,
        "noise_after_clipping": False,  # the default of DDIMPipeline
        **own,
    }


def _betas(schedule: TableSchedule) -> dict[str, Any]:
    """Return the settings of a schedule: its name in `diffusers`, or the list of its variances."""
    snr = {"rescale_betas_zero_snr": schedule.zero_terminal_snr}
    if isinstance(schedule, CosineSchedule) and (schedule.offset, schedule.max_beta) == (0.008, 0.999):
        return {"beta_schedule": "squaredcos_cap_v2", **snr}
    for kind, name in ((LinearSchedule, "linear"), (QuadraticSchedule, "scaled_linear")):
        if isinstance(schedule, kind):
            return {
                "beta_schedule": name,
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
                **snr,
            }
    if isinstance(schedule, ConstantSchedule):
        return {"beta_schedule": "linear", "beta_start": schedule.beta, "beta_end": schedule.beta, **snr}
    return {"trained_betas": schedule.betas.tolist(), "rescale_betas_zero_snr": False}


def _clip_settings(clipping: Clipping) -> dict[str, Any]:
    if isinstance(clipping, NoClipping):
        return {"clip_sample": False}
    if isinstance(clipping, DynamicClipping):
        ratio = {"dynamic_thresholding_ratio": clipping.percentile, "sample_max_value": UNBOUNDED}
        return {"clip_sample": False, "thresholding": True, **ratio}
    require(isinstance(clipping, StaticClipping), "clipping", "static, dynamic or none", type(clipping).__name__)
    return {"clip_sample": True, "clip_sample_range": 1.0}


def _spacing(sampler: Sampler) -> dict[str, Any]:
    """Return the settings of the time grid, or those of `fallback_grid` for a grid that the scheduler does not have."""
    grid = sampler.time_grid if fallback_grid(sampler) is None else fallback_grid(sampler)
    if isinstance(grid, LeadingTimes):
        return {"timestep_spacing": "leading", "steps_offset": grid.offset}
    spacing = "trailing" if isinstance(grid, TrailingTimes) else "linspace"
    return {"timestep_spacing": spacing, "steps_offset": 0}


def fallback_grid(sampler: Sampler) -> TimeGrid | None:
    """Return the time grid of the pipeline if it has no counterpart of the sampler's grid; None if it has one.

    DDIMScheduler has the times of linspace, but its steps end T // num_steps before, and not at the next time.
    """
    grid, schedule = sampler.time_grid, sampler.process.schedule
    is_complete = isinstance(schedule, TableSchedule) and len(sampler.times) == schedule.num_timesteps
    is_linspace = isinstance(grid, UniformTimes) and (is_ancestral(sampler) or is_complete)
    if is_linspace or isinstance(grid, (LeadingTimes, TrailingTimes)):
        return None
    return TrailingTimes() if schedule.remaining_signal == 0 else LeadingTimes()
