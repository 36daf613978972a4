"""Trains the classifier whose features measure fd_fashion_cnn, on the 60,000 Fashion-MNIST training images.

    python src/train_fashion_cnn.py --data FOLDER_OR_NOTHING

About 10 minutes on 2 CPU cores. Writes the weights into the package and prints the accuracy on the test split.
"""

import argparse
import math

import torch
import torch.nn.functional as F

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.features import FASHION_CNN_WEIGHTS, FashionCNN
from diffusion_lab.randomness import permutation


def augmented(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrored half of the time and moved by up to 2 pixels, image by image: float [B, 1, 28, 28] in [-1, 1]."""
    x = F.pad(pixels.float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    top, left = torch.randint(0, 5, (2, len(x)), generator=generator)
    rows, columns = top[:, None] + torch.arange(28), left[:, None] + torch.arange(28)
    image = torch.arange(len(x))[:, None, None]
    return x[:, 0][image, rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(network: FashionCNN, images: Images) -> float:
    network.eval()
    correct = sum(
        int((network.classifier(network(pixels)).argmax(1) == label).sum())
        for pixels, label in zip(images.batches(500), torch.split(images.label, 500), strict=True)
    )
    return correct / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="local folder with Fashion-MNIST; the hub's set if not given")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    store = ImageStore("zalando-datasets/fashion_mnist", arguments.data, channels=1, resolution=28)
    train, test = store.load("train"), store.load("test")
    network = FashionCNN(weights=None).requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    num_batches = len(train) // 128
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / (num_batches * arguments.epochs)))
    )
    for epoch in range(arguments.epochs):
        # The features stay in evaluation mode by design; only their normalisation learns in training mode.
        for module in network.layers:
            module.train()
        order = torch.from_numpy(permutation(seed=0, epoch=epoch, size=len(train)))
        for index in torch.split(order[: num_batches * 128], 128):
            features = network.layers(augmented(train.gather(index), generator)).mean(dim=(2, 3))
            loss = F.cross_entropy(network.classifier(features), train.label[index], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, test accuracy {accuracy(network, test):.4f}", flush=True)
    torch.save(network.state_dict(), FASHION_CNN_WEIGHTS)
