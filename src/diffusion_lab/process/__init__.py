"""The forward process of diffusion models: schedules, predictions, variances and time distributions.

This package imports no library other than torch. Conventions used in the entire package:

- Images are float32 `[B, C, H, W]` in [-1, 1]. Labels are int64 `[B]`.
- Time `t` is float `[B]` and increases from data (0) to noise. The schedule defines its range. Times are float64
  tensors on the CPU. `GaussianProcess.coefficients` returns alpha_t and sigma_t on the device of the images.
- `x_t = alpha_t * x_0 + sigma_t * noise`, and `s` is a time before `t`.
- The T discrete steps of DDPM are the times k / T, k = 1..T. A network that is trained on step indices receives k - 1.
"""

from diffusion_lab.process.continuous_schedules import (
    ContinuousSchedule,
    EDMSchedule,
    RectifiedFlowSchedule,
    UnitTimeSchedule,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.process.discrete_schedules import (
    ConstantSchedule,
    CosineSchedule,
    CustomSchedule,
    JSDSchedule,
    LinearScaledSchedule,
    LinearSchedule,
    QuadraticSchedule,
    SigmoidBetaSchedule,
    SigmoidSchedule,
    WarmupSchedule,
)
from diffusion_lab.process.gaussian import GaussianProcess, weighted_sum, widen
from diffusion_lab.process.predictions import (
    X0,
    EDMDenoiser,
    Epsilon,
    FlowVelocity,
    PosteriorMean,
    Preconditioning,
    Prediction,
    Score,
    V,
)
from diffusion_lab.process.schedule_base import NoiseSchedule
from diffusion_lab.process.tables import Interpolated, TableSchedule
from diffusion_lab.process.time_sampling import (
    LogitNormal,
    LogNormalSigma,
    LossSecondMoment,
    Stratified,
    TimeDistribution,
    Uniform,
)
from diffusion_lab.process.variances import (
    FixedLarge,
    FixedSmall,
    LearnedDiagonal,
    LearnedRange,
    Variance,
    split_output,
)

__all__ = [
    "X0",
    "ConstantSchedule",
    "ContinuousSchedule",
    "CosineSchedule",
    "CustomSchedule",
    "EDMDenoiser",
    "EDMSchedule",
    "Epsilon",
    "FixedLarge",
    "FixedSmall",
    "FlowVelocity",
    "GaussianProcess",
    "Interpolated",
    "JSDSchedule",
    "LearnedDiagonal",
    "LearnedRange",
    "LinearScaledSchedule",
    "LinearSchedule",
    "LogNormalSigma",
    "LogitNormal",
    "LossSecondMoment",
    "NoiseSchedule",
    "PosteriorMean",
    "Preconditioning",
    "Prediction",
    "QuadraticSchedule",
    "RectifiedFlowSchedule",
    "Score",
    "SigmoidBetaSchedule",
    "SigmoidSchedule",
    "Stratified",
    "TableSchedule",
    "TimeDistribution",
    "Uniform",
    "UnitTimeSchedule",
    "V",
    "VESchedule",
    "VPSchedule",
    "Variance",
    "WarmupSchedule",
    "split_output",
    "weighted_sum",
    "widen",
]
