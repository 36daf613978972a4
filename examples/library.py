"""Diffusion Lab as a library, without its commands and configs: build, train, sample and measure a diffusion model.

    python examples/library.py                     # less than a minute on two CPU cores
    python examples/library.py --num-steps 2000    # better images

The script trains a small class-conditional network on images of clothes that are part of the package, generates images
of each class, measures their distance to the training images, and writes library_samples.png to the current folder.
The notebook `examples/library.ipynb` takes the same steps and shows the images.
"""

import argparse
import logging
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.utils import save_image

import diffusion_lab
from diffusion_lab import (
    DDIM,
    Blocks,
    CosineSchedule,
    CosineWithWarmup,
    DiffusionModule,
    FashionCNN,
    FeatureSet,
    FrechetDistance,
    GaussianProcess,
    ImageStore,
    Labels,
    NoClipping,
    OptimizerFactory,
    UNet,
    V,
    to_uint8,
)


def clothing_images() -> tuple[Tensor, Tensor]:
    """Return 10,000 images, uint8 [N, 1, 28, 28], and their labels, int64 [N] in 0..9.

    Other images must be uint8, or float in [-1, 1].
    """
    folder = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"
    images = ImageStore(None, folder, channels=1, resolution=28, fit="pad").load("train")
    return images.gather(torch.arange(len(images))), images.label


def build(num_steps: int) -> DiffusionModule:
    """Return an untrained model.  num_steps: number of training steps, for the learning-rate schedule."""
    torch.manual_seed(0)  # for the initial weights; the random numbers of training depend on DiffusionModule(seed=...)
    network = UNet(
        in_channels=1,
        out_channels=1,
        resolution=28,
        channels=32,
        channel_multipliers=(1, 2),
        num_blocks=1,
        patch_size=2,  # folds squares of 2 x 2 pixels into channels, which saves three quarters of the time
        attention_resolutions=(7,),
        # scale_shift: the time and the class scale the features in addition to shifting them, as in ADM.
        blocks=Blocks(num_groups=8, scale_shift=True),
        labels=Labels(num_classes=10, dropout=0.1),  # classifier-free guidance needs label dropout
    )
    # The forward process x_t = alpha_t x_0 + sigma_t noise. Training and sampling use the same process.
    process = GaussianProcess(CosineSchedule())
    # Only the network and the process are required. Without the other arguments, the network predicts the noise, is
    # trained by Adam with a learning rate of 2e-4, and generates images in 50 DDIM steps.
    return DiffusionModule(
        network,
        process,
        prediction=V(),
        optimizer=OptimizerFactory(torch.optim.Adam, lr=5e-3),
        lr_schedule=CosineWithWarmup(num_warmup_steps=num_steps // 4, num_decay_steps=num_steps),
        sampler=DDIM(process, num_steps=20, clipping=NoClipping()),
    )


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """Return the Fréchet distance between the features of two sets of images, uint8 [N, 1, 28, 28]."""
    features = FashionCNN()  # a small classifier that is part of the package; `Inception` gives the FID
    one, other = (
        FeatureSet.of(torch.cat([features(batch)["pooled"] for batch in torch.split(pixels, 250)]))
        for pixels in (samples, reference)
    )
    return FrechetDistance(features).measure(one, other)["fd"]


def main(num_steps: int = 250, num_samples: int = 300, path: Path = Path("library_samples.png")) -> float:
    """Train a model, write a grid of samples to `path`, and return the Fréchet distance of the samples to the data."""
    images, labels = clothing_images()
    module = build(num_steps)

    # Any loader works whose batches are images, (images, labels), or a dict with the keys image and label.
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True, drop_last=True)
    trainer = Trainer(
        max_steps=num_steps, gradient_clip_val=1.0, log_every_n_steps=20, logger=False, enable_checkpointing=False
    )
    trainer.fit(module, loader)
    print(f"loss after {num_steps} steps: {float(trainer.callback_metrics['loss']):.3f}")

    # Image k has seed k, whatever the size of the batch, and class k modulo 10; label=7 selects another class. After
    # training, the module is on the CPU; module.to("cuda") moves it.
    seeds = range(num_samples)
    batches = [module.sample(seeds[k : k + 100], guidance=2.0) for k in seeds[::100]]
    samples = torch.cat(batches)  # [num_samples, 1, 28, 28], in [-1, 1]
    save_image((samples[:80] + 1) / 2, path, nrow=10)

    distance = frechet_distance(to_uint8(samples), images[:2000])
    print(f"Fréchet distance of {num_samples} samples: {distance:.1f}; some of them are in {path}")
    return distance


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, sample and measure a small diffusion model.")
    parser.add_argument("--num-steps", type=int, default=250, help="number of training steps")
    warnings.filterwarnings("ignore", module="lightning")  # advises data loading workers, although images are in memory
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    main(parser.parse_args().num_steps)
