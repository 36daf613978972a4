"""The overrides of `train` that select what an imported folder says about schedule, prediction, sampling and space."""

import json
from collections.abc import Mapping
from typing import Any

CHOICES = {
    "ConstantSchedule": "schedule=constant",
    "CosineSchedule": "schedule=cosine",
    "CustomSchedule": "schedule=custom",
    "EDMSchedule": "schedule=edm",
    "JSDSchedule": "schedule=jsd",
    "LinearScaledSchedule": "schedule=linear_scaled",
    "LinearSchedule": "schedule=linear",
    "QuadraticSchedule": "schedule=quadratic",
    "RectifiedFlowSchedule": "schedule=rectified_flow",
    "SigmoidBetaSchedule": "schedule=sigmoid_beta",
    "SigmoidSchedule": "schedule=sigmoid",
    "VESchedule": "schedule=ve",
    "VPSchedule": "schedule=vp",
    "WarmupSchedule": "schedule=beta_warmup",
    "Epsilon": "prediction=epsilon",
    "X0": "prediction=x_0",
    "V": "prediction=v",
    "FixedLarge": "variance=fixed_large",
    "FixedSmall": "variance=fixed_small",
    "LearnedRange": "variance=learned_range",
    "Ancestral": "sampler=ancestral",
    "DDIM": "sampler=ddim",
    "LeadingTimes": "time_grid=leading",
    "TrailingTimes": "time_grid=trailing",
    "UniformTimes": "time_grid=uniform",
    "DynamicClipping": "clipping=dynamic",
    "NoClipping": "clipping=none",
    "StaticClipping": "clipping=static",
    "Latents": "space=sd_latents",
}
"""Class of a node -> config group and choice."""

GROUPS = ("schedule", "prediction", "variance", "sampler", "time_grid", "space", "clipping")
"""Settings of `diffusers_folder.read` that are config groups. The choice of `space` also selects a clipping."""

NESTED = ("process", "time_grid", "clipping", "variance")
"""Keys of a sampler that are config groups or follow from them."""


def train_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return overrides of `train` for the settings of `diffusers_folder.read`, except for the network.

    A learned variance requires the objective that trains it.
    """
    overrides = list[str]()
    for group in GROUPS:
        if group not in settings:
            continue
        node = settings[group]
        overrides.append(CHOICES[node["_target_"].rpartition(".")[2]])
        values = {key: value for key, value in node.items() if key not in ("_target_", *NESTED)}
        overrides += [f"{group}.{key}={text(value)}" for key, value in _flat(values).items()]
        if group == "variance":
            learned = node["_target_"].endswith("LearnedRange")
            overrides.insert(0, "objective=hybrid" if learned else "objective=simple")
    return overrides


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    values = dict[str, Any]()
    for key, value in node.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{path}{key}.")
        elif key != "_target_":
            values[f"{path}{key}"] = value
    return values


def text(value: Any) -> str:
    """Return a plain value in Hydra's override grammar."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)
