"""Small examples of all schedules and predictions, for tests of properties that all of them have."""

import torch
from torch import Tensor

from diffusion_lab.process import (
    X0,
    ConstantSchedule,
    CosineSchedule,
    CustomSchedule,
    EDMDenoiser,
    EDMSchedule,
    Epsilon,
    FlowVelocity,
    Interpolated,
    JSDSchedule,
    LinearScaledSchedule,
    LinearSchedule,
    NoiseSchedule,
    PosteriorMean,
    Prediction,
    QuadraticSchedule,
    RectifiedFlowSchedule,
    Score,
    SigmoidBetaSchedule,
    SigmoidSchedule,
    TableSchedule,
    V,
    VESchedule,
    VPSchedule,
    WarmupSchedule,
)

TABLES: list[TableSchedule] = [
    LinearSchedule(40, 1e-3, 0.3),
    LinearScaledSchedule(40),
    QuadraticSchedule(40, 1e-3, 0.3),
    CosineSchedule(40),
    SigmoidSchedule(40),
    SigmoidBetaSchedule(40, 1e-3, 0.3),
    ConstantSchedule(40, 0.1),
    JSDSchedule(40),
    WarmupSchedule(40, 1e-3, 0.2, 0.25),
    CustomSchedule([0.01, 0.3, 0.02, 0.1, 0.5]),
    LinearSchedule(40, 1e-3, 0.3, zero_terminal_snr=True),
]
CONTINUOUS: list[NoiseSchedule] = [EDMSchedule(), RectifiedFlowSchedule(), VPSchedule(), VESchedule()]
INTERPOLATED = [Interpolated(table) for table in TABLES]
SCHEDULES: list[NoiseSchedule] = [*TABLES, *CONTINUOUS, *INTERPOLATED]
VARIED: list[NoiseSchedule] = [*TABLES, *CONTINUOUS, Interpolated(CosineSchedule(40)), Interpolated(JSDSchedule(40))]
"""Schedules without those interpolations that differ only in their table."""

PREDICTIONS: list[Prediction] = [
    Epsilon(), X0(), V(), Score(), FlowVelocity(), PosteriorMean(), EDMDenoiser(), EDMDenoiser(1.3)
]  # fmt: skip


def accepted(prediction: Prediction, schedule: NoiseSchedule) -> bool:
    try:
        prediction.require(schedule)
    except ValueError:
        return False
    return True


def some_times(schedule: NoiseSchedule, num_times: int = 5) -> Tensor:
    """Return evenly spaced times from t_min to t_max: [num_times]."""
    return schedule.nearest(torch.linspace(schedule.t_min, schedule.t_max, num_times, dtype=torch.float64))
