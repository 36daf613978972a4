"""Train the Fashion-MNIST classifier whose features the metric fd_fashion_cnn uses, on the 60,000 training images.

    python src/train_fashion_cnn.py [--data FOLDER]

Takes about 10 minutes on 2 CPU cores, writes the weights to the package folder and prints the test accuracy.
"""

import argparse
import math

import torch
import torch.nn.functional as F

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.features import FASHION_CNN_WEIGHTS, FashionCNN
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import permutation

BATCH_SIZE = 128


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip and shift images [B, 1, 28, 28] at random: uint8 -> float32 in [-1, 1] of the same shape.

    Each image is flipped horizontally with probability 0.5, and shifted by up to 2 pixels along each axis.
    """
    x = F.pad(from_uint8(pixels), (2, 2, 2, 2), value=-1.0)
    flipped = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flipped[:, None, None, None], x.flip(-1), x)
    top, left = torch.randint(0, 5, (2, len(x)), generator=generator)
    rows, columns = top[:, None] + torch.arange(28), left[:, None] + torch.arange(28)
    image = torch.arange(len(x))[:, None, None]
    return x[:, 0][image, rows[:, :, None], columns[:, None, :]][:, None]


def accuracy(network: FashionCNN, images: Images) -> float:
    network.eval()
    num_correct = sum(
        int((network(pixels)["logits"].argmax(1) == label).sum())
        for pixels, label in zip(images.batches(500), torch.split(images.label, 500), strict=True)
    )
    return num_correct / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="local folder with Fashion-MNIST (default: the copy on the Hugging Face Hub)")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    store = ImageStore("zalando-datasets/fashion_mnist", arguments.data, channels=1, resolution=28)
    train, test = store.load("train"), store.load("test")
    network = FashionCNN(weights=None).requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    num_steps = len(train) // BATCH_SIZE * arguments.epochs
    lr_schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / num_steps))
    )
    for epoch in range(arguments.epochs):
        # A feature network stays in evaluation mode by design, but batch normalization must be in training mode here.
        for module in network.layers:
            module.train()
        order = torch.from_numpy(permutation(seed=0, epoch=epoch, size=len(train)))
        for index in torch.split(order[: len(train) // BATCH_SIZE * BATCH_SIZE], BATCH_SIZE):
            features = network.layers(augment(train.gather(index), generator)).mean(dim=(2, 3))
            loss = F.cross_entropy(network.classifier(features), train.label[index], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            lr_schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, test accuracy {accuracy(network, test):.4f}", flush=True)
    torch.save(network.state_dict(), FASHION_CNN_WEIGHTS)
