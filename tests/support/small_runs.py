"""Small runs in this process, for tests of modules and callbacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import nn

from diffusion_lab.data.image_datamodule import ImageBatch, ImageDataModule
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.ema.averages import EMA, RampedDecay
from diffusion_lab.networks import Blocks, Labels, Network, UNet
from diffusion_lab.objectives import Denoising
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule, Uniform
from diffusion_lab.randomness import Draws
from diffusion_lab.samplers import DDIM
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.optimizers import OptimizerFactory


class FewImages(ImageStore):
    """Fifty random grayscale images of 8 x 8 pixels in three classes."""

    def __init__(self) -> None:
        super().__init__(None, channels=1, resolution=8)

    def splits(self) -> list[str]:
        return ["train"]

    def load(self, split: str = "train") -> Images:
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=generator)
        return Images(pixels, torch.arange(50) % 3, ("a", "b", "c"))


def small_module(
    labels: Labels | None = None,
    dropout: float = 0.0,
    lr: float = 1e-2,
    *,
    network: Network | None = None,
    **options: Any,
) -> DiffusionModule:
    """Return an untrained network with 20 diffusion steps.

    network: by default a U-Net of a few thousand weights.  options: arguments of `UNet`.
    """
    torch.manual_seed(0)
    process = GaussianProcess(LinearSchedule(20, 1e-3, 0.4))
    network = network or UNet(
        1, 1, resolution=8, channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,),
        blocks=Blocks(num_groups=4, dropout=dropout), labels=labels, **options,
    )  # fmt: skip
    return DiffusionModule(
        network,
        process,
        prediction=Epsilon(),
        objective=Denoising(Epsilon()),
        times=Uniform(process.schedule),
        ema=lambda trained: EMA(trained, {"main": RampedDecay(0.99)}),
        optimizer=OptimizerFactory(torch.optim.AdamW, lr=lr),
        sampler=DDIM(process, num_steps=4),
    )


def fit(module: TrainedModule, max_steps: int, *, callbacks: Sequence[Callback] = (), **settings: Any) -> Trainer:
    """Train on FewImages with 12 images per step, without the logger and the checkpoints of Lightning."""
    datamodule = ImageDataModule(
        settings.pop("store", None) or FewImages(),
        batch_size=12,
        seed=settings.pop("seed", 3),
        low_resolution=settings.pop("low_resolution", None),
        masking=settings.pop("masking", None),
    )
    ckpt_path: Path | None = settings.pop("ckpt_path", None)
    options: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": -1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "use_distributed_sampler": False, "gradient_clip_val": 1.0,
        "enable_checkpointing": any("checkpoints" in type(c).__module__ for c in callbacks),
    }  # fmt: skip
    trainer = Trainer(max_steps=max_steps, callbacks=list(callbacks), **(options | settings))
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return trainer


def weights(network: nn.Module) -> torch.Tensor:
    """Return all parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def first_batch(**settings: Any) -> ImageBatch:
    """Return the first training batch of FewImages, after augmentation and conditioning."""
    datamodule = ImageDataModule(FewImages(), batch_size=12, seed=3, **settings)
    positions = range(12)
    images, index = datamodule.train_images, torch.arange(12)
    batch = ImageBatch(images.gather(index), images.label[index], Draws(3, 0, positions, 12))
    return datamodule.on_after_batch_transfer(batch, 0)
