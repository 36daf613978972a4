"""Networks and training loops of diffusers and denoising-diffusion-pytorch, on the same images as ours.

Requires the packages that `make bench` installs. A loop ends when `after_step` raises `Stopped`. If a library has a
class for a part of the loop, that class is used here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

AfterStep = Callable[[], None]


class Stopped(Exception):  # noqa: N818 (no error)
    """Raised by `after_step` to end a loop."""


def diffusers_network(size: str, *, channels: int = 1, side: int = 28, dropout: float = 0.0) -> nn.Module:
    """Return a UNet2DModel.

    size: unet_cifar10 or unet_tiny, with our settings; default, with those of diffusers' unconditional example.
    """
    from diffusers import UNet2DModel

    common: dict[str, Any] = {"sample_size": side, "in_channels": channels, "out_channels": channels}
    if size == "default":
        return UNet2DModel(
            **common,
            layers_per_block=2,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        )
    ours: dict[str, dict[str, Any]] = {
        "unet_cifar10": {
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        "unet_tiny": {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
        },
    }
    return UNet2DModel(
        **common, **ours[size], layers_per_block=2, attention_head_dim=None, dropout=dropout, flip_sin_to_cos=False,
        freq_shift=1, downsample_padding=0, norm_eps=1e-5,
    )  # fmt: skip


class ExampleDataset(Dataset[Tensor]):
    """Images as diffusers' unconditional example loads them: each from PIL, through torchvision's transforms."""

    def __init__(self, pixels: Tensor) -> None:
        """pixels: uint8 [N, C, H, W]."""
        self.images = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in pixels]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> Tensor:
        x: Tensor = self.transform(self.images[k])
        return x


class DiffusersLoop:
    """The loop of diffusers' unconditional example at its default settings, with its optional EMA enabled.

    bf16, fused: use autocast and Adam's fused kernel, which the example does not do by default.
    """

    def __init__(
        self, network: nn.Module, pixels: Tensor, *, batch_size: int = 16, bf16: bool = False, fused: bool = False
    ) -> None:
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.network, self.bf16 = network.train(), bf16
        self.batches = DataLoader(ExampleDataset(pixels), batch_size=batch_size, shuffle=True)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=fused or None
        )
        self.lr_scheduler = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=500, num_training_steps=100 * len(self)
        )
        self.ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def __len__(self) -> int:
        return len(self.batches)

    def run(self, after_step: AfterStep) -> None:
        while True:
            for images in self.batches:
                self._step(images)
                try:
                    after_step()
                except Stopped:
                    return

    def _step(self, images: Tensor) -> None:
        noise = torch.randn(images.shape)
        timesteps = torch.randint(0, 1000, (len(images),)).long()
        noisy = self.scheduler.add_noise(images, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            output = self.network(noisy, timesteps).sample
            loss = F.mse_loss(output.float(), noise.float())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        loss.detach().item()  # the example logs the loss at each step

    def ema_weights(self) -> dict[str, Tensor]:
        """Return the EMA weights under the names of the network's parameters."""
        names = [name for name, _ in self.network.named_parameters()]
        return {name: value.detach().clone() for name, value in zip(names, self.ema.shadow_params, strict=True)}


def lucidrains_network(size: str, *, channels: int = 1, dropout: float = 0.0) -> nn.Module:
    """Return a Unet of denoising-diffusion-pytorch.

    size: unet_cifar10 or unet_tiny, with our widths; default, with those of its README.
    """
    from denoising_diffusion_pytorch import Unet

    widths: dict[str, tuple[int, tuple[int, ...]]] = {
        "default": (64, (1, 2, 4, 8)),
        "unet_tiny": (32, (1, 2, 2)),
        "unet_cifar10": (128, (1, 2, 2, 2)),
    }
    dim, dim_mults = widths[size]
    return Unet(dim=dim, dim_mults=dim_mults, channels=channels, dropout=dropout)


class LucidrainsLoop:
    """denoising-diffusion-pytorch's Trainer, without its sampling every thousand steps.

    folder: folder of image files, the input of that Trainer.
    """

    def __init__(
        self, network: nn.Module, folder: Path, *, side: int, batch_size: int = 16, bf16: bool = False,
        fused: bool = False, results: Path,
    ) -> None:  # fmt: skip
        from accelerate.state import AcceleratorState
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

        AcceleratorState._reset_state(reset_partial_state=True)  # one process may create trainers of two precisions
        self.diffusion = GaussianDiffusion(network, image_size=side)
        self.trainer = Trainer(
            self.diffusion, str(folder), train_batch_size=batch_size, save_and_sample_every=10**9,
            calculate_fid=False, amp=bf16, mixed_precision_type="bf16", train_num_steps=10**9,
            results_folder=str(results),
        )  # fmt: skip
        if fused:
            parameters = self.diffusion.parameters()
            adam = torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.99), fused=True)
            self.trainer.opt = self.trainer.accelerator.prepare(adam)

    def run(self, after_step: AfterStep) -> None:
        update_ema = self.trainer.ema.update

        def update() -> None:  # the last call in each step of the Trainer
            update_ema()
            after_step()

        self.trainer.ema.update = update
        try:
            self.trainer.train()
        except Stopped:
            pass
        finally:
            self.trainer.ema.update = update_ema

    def ema_weights(self) -> dict[str, Tensor]:
        """Return the EMA weights under the names of the network's parameters."""
        state = self.trainer.ema.ema_model.model.state_dict()
        return {name: value.detach().clone() for name, value in state.items()}


def write_images(pixels: Tensor, folder: Path) -> Path:
    """Write images, uint8 [N, C, H, W], as PNG files and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / f"{k:06}.png")
    return folder
