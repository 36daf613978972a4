"""Classes that the config of a run folder may name: for each kind of node, those of this package, torch and Lightning.

Such a config may come from another person. Hydra would call any function that a `_target_` names, so that every other
target needs the trust of the user, see `runs.trust`. Nothing is imported here.
"""

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple


def _exports(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"diffusion_lab.{package}.{name}" for name in names.split())


def _torch(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"torch.{package}.{name}" for name in names.split())


_METRICS = _exports(
    "metrics",
    "ClassAccuracy CMMD Consistency DensityCoverage Diversity FrechetDistance InceptionScore KernelDistance LPIPS "
    "MeanOverImages Memorization PrecisionRecall PSNR RMSE Smoothness SpatialFrechetDistance SSIM",
)

OPTIMIZERS = _torch(
    "optim",
    "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam",
)

LR_SCHEDULERS = _torch(
    "optim.lr_scheduler",
    "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR "
    "PolynomialLR StepLR",
)

ACCEPTED: dict[str, tuple[str, ...]] = {
    "augmentation": _exports("data", "EDMAugmentation"),
    "autoencoder": ("diffusers.AutoencoderKL", "diffusers.AutoencoderKL.from_pretrained"),
    "blocks": _exports("networks", "Blocks"),
    "bound": _exports("objectives", "Variational"),
    "callbacks": _exports(
        "callbacks",
        "MeasureAccuracy MeasureDistance Progress RestoreOnDivergence SampleImages SaveAverages SaveLast StopOnSignal "
        "Throughput",
    ),
    "churn": _exports("samplers", "Churn"),
    "clipping": _exports("samplers", "DynamicClipping NoClipping StaticClipping"),
    "conditioning": _exports("networks", "Labels"),
    "datamodule": _exports("data", "ImageDataModule"),
    "decays": _exports("ema", "ConstantDecay HalfLifeDecay PowerFunctionDecay RampedDecay"),
    "ema": _exports("ema", "EMA"),
    "features": _exports("features", "CLIP DINOv2 EfficientNet FashionCNN Inception RawPixels"),
    "guard": _exports("training", "NonFiniteGuard"),
    "guidance": _exports("runs", "guidance"),
    "labels": _exports("networks", "Labels"),
    "logger": _exports("training", "MetricsFile TensorBoardEvents WandbRun"),
    "low_resolution": _exports("low_resolution", "LowResolution"),
    "lr_schedule": (
        *_exports(
            "training",
            "ConstantWithWarmup CosineWithWarmup InverseSqrtWithWarmup LinearWithWarmup WarmupStableDecay",
        ),
        *LR_SCHEDULERS,
    ),
    "mask": _exports("edits", "Color Half MaskFile Outside RandomPixels RandomRectangle Rectangle TransparentPixels"),
    "masking": _exports("masking", "Halves RandomRectangles Strokes"),
    "metric": _METRICS,
    "metrics": _METRICS,
    "model": _exports("networks", "DiT FromDiffusers HalfUNet PixelTransformer UNet"),
    "network": tuple(f"diffusers.{name}" for name in ("DiTTransformer2DModel", "UNet2DModel", "UViT2DModel")),
    "objective": _exports("objectives", "Denoising Hybrid Variational"),
    "optimizer": (*_exports("training", "Muon"), *OPTIMIZERS),
    "pairs": _exports("data", "Pairs"),
    "plugins": (*_exports("callbacks", "WholeCheckpoints"), *_exports("distributed", "cluster_environment")),
    "posterior": _exports("inverse_problems", "DDNM DDRM DPS InpaintingNetwork MMPS PiGDM RePaint Replace"),
    "prediction": _exports("process", "EDMDenoiser Epsilon FlowVelocity PosteriorMean Score V X0"),
    "process": _exports("process", "GaussianProcess"),
    "quantity": _exports("evaluation", "FlowLikelihood Reconstruction VariationalBound"),
    "sampler": _exports(
        "samplers",
        "Ancestral AnnealedLangevin DDIM DPMSolver DPMSolverSDE Euler Heun PredictorCorrector RK45 UniPC",
    ),
    "schedule": _exports(
        "process",
        "ConstantSchedule CosineSchedule CustomSchedule EDMSchedule JSDSchedule LinearScaledSchedule LinearSchedule "
        "QuadraticSchedule RectifiedFlowSchedule SigmoidBetaSchedule SigmoidSchedule VESchedule VPSchedule "
        "WarmupSchedule",
    ),
    "selection": _exports("data", "Selection"),
    "simple": _exports("objectives", "Denoising"),
    "sinusoids": _exports("networks", "Sinusoids"),
    "space": _exports("latents", "Latents Pixels"),
    "store": _exports("data", "ImageStore"),
    "task": _exports(
        "edits",
        "Colorize CompressedSense Deblur DeblurMotion Denoise Inpaint Interpolate Invert Morph Style SuperResolution "
        "Sweep Variation Walk",
    ),
    "time_grid": _exports(
        "samplers",
        "DDIMTimes KarrasTimes LeadingTimes ListedTimes LogSNRTimes QuadraticTimes SectionTimes TrailingTimes "
        "UniformTimes",
    ),
    "times": _exports("process", "LogNormalSigma LogitNormal LossSecondMoment Stratified Uniform"),
    "trainer": ("lightning.Trainer",),
    "variance": _exports("process", "FixedLarge FixedSmall LearnedDiagonal LearnedRange"),
    "variant": _exports("networks", "DiTVariant"),
    "weighting": _exports("objectives", "Constant EDMWeighting MinSNR P2 SoftMinSNR TruncatedSNR unweighted"),
}
"""Kind of a node -> accepted targets. The kind is the key of the node, or of the collection that contains it."""

COLLECTIONS = ("callbacks", "decays", "logger", "metrics", "plugins")
"""Kinds of nodes that are values of a collection, so that their own key is a name."""

OF_TRAINING = {"callbacks": ("callbacks",), "logger": ("logger",), "trainer": (), "plugins": ("trainer", "plugins")}
"""Kinds of objects that act when they are built or used -> the only place of such nodes, without the key of a node."""

HUB_NAMES = ("stabilityai/sd-vae-ft-ema",)
"""Names on the Hugging Face hub in conf/ from which pretrained weights are loaded."""

FROM_PRETRAINED = ("_target_", "pretrained_model_name_or_path", "subfolder", "revision", "variant")
"""Keys of a node that loads pretrained weights. Other arguments could let a library execute code or write files."""


class Target(NamedTuple):
    """A target in a config, or a place of pretrained weights, that the user must trust.

    path: path of its node.  name: the import path, or the place.
    """

    path: str
    name: str

    @property
    def package(self) -> str:
        """The name that the user must trust: a package, or the complete place of weights."""
        return self.name if "/" in self.name else self.name.partition(".")[0]


def foreign_targets(config: Any) -> list[Target]:
    """Return the targets in a plain config that are not accepted at their place."""
    return list(dict.fromkeys(_foreign(config, ())))


def _foreign(node: Any, path: tuple[str, ...]) -> Iterator[Target]:
    if isinstance(node, list):
        for child in node:
            yield from _foreign(child, path)
    if not isinstance(node, dict):
        return
    place = ".".join(path) or "config"
    if "_target_" in node:
        name = str(node["_target_"])
        exported = re.sub(r"^(diffusion_lab\.\w+)\.(?:\w+\.)+(\w+)$", r"\1.\2", name)  # also of a module by its path
        if exported not in ACCEPTED.get(_kind(path), ()):
            yield Target(place, name)
        elif "_args_" in node:  # arguments without a name are not checked by their name
            yield Target(f"{place}._args_", name)
        elif name.endswith(".from_pretrained"):
            yield from _foreign_weights(node, place)
    for key, child in node.items():
        yield from _foreign(child, (*path, str(key)))


def _foreign_weights(node: dict[str, Any], place: str) -> Iterator[Target]:
    source = str(node.get("pretrained_model_name_or_path"))
    if source not in HUB_NAMES and not os.path.isabs(source):  # a folder contains data only
        yield Target(f"{place}.pretrained_model_name_or_path", source)
    if unknown := [key for key in map(str, node) if key not in FROM_PRETRAINED]:
        yield Target(f"{place}.{unknown[0]}", str(node["_target_"]))


def _kind(path: tuple[str, ...]) -> str:
    kind = path[-2] if len(path) > 1 and path[-2] in COLLECTIONS else path[-1] if path else ""
    place = OF_TRAINING.get(kind)
    return kind if place is None or path == place or path[:-1] == place else ""
