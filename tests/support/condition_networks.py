"""A network of three convolutions that is conditioned on an image, and its training without Lightning."""

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition, Network
from diffusion_lab.networks.embeddings import with_condition_image
from diffusion_lab.process import X0, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import Draws
from diffusion_lab.training.diffusion_module import DiffusionModule


class Convolutions(Network):
    """Predicts x_0 from the noisy image, the time as one more channel, and the condition image."""

    def __init__(self, condition_channels: int = 0) -> None:
        super().__init__()
        self.in_channels = self.out_channels = 1
        self.resolution, self.condition_channels = 8, condition_channels
        self.layers = nn.Sequential(
            nn.Conv2d(2 + condition_channels, 16, 3, padding=1), nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 1),
        )  # fmt: skip

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        x = with_condition_image(x_t, condition, self.condition_channels)
        x = torch.cat([x, (time / 20)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)
        output: Tensor = self.layers(x)
        return output


def trained(store: ImageStore, num_steps: int, condition_channels: int = 0, **conditions: Any) -> DiffusionModule:
    """Train `Convolutions` on the images of a store.  conditions: arguments of `ImageDataModule`."""
    torch.manual_seed(0)
    process = GaussianProcess(LinearSchedule(20, 1e-3, 0.4))
    module = DiffusionModule(Convolutions(condition_channels), process, prediction=X0())
    data = ImageDataModule(store, batch_size=32, seed=3, **conditions)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    optimizer = torch.optim.Adam(module.network.parameters(), lr=1e-2)
    for step, batch in zip(range(num_steps), data.train_dataloader(), strict=False):
        loss = module.training_step(data.on_after_batch_transfer(batch, 0), step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    module.eval()
    return module


def error_at(module: DiffusionModule, x_0: Tensor, condition: Condition, t: float) -> Tensor:
    """Return the squared error of the network's estimate of x_0 at the time t, [B, C, H, W]."""
    noise = Draws(1, 0, range(len(x_0)), len(x_0)).noise(x_0)
    times = torch.full((len(x_0),), t, dtype=torch.float64)
    denoiser = Denoiser(module.network, module.process, module.prediction)
    with torch.no_grad():
        estimate = denoiser(module.process.q_sample(x_0, times, noise), times, condition).x_0
    return (estimate - x_0).square()
