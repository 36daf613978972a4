"""LightningModule of a classifier for noisy images: the training flow, image to loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.networks import ClassifierNetwork, require_network
from diffusion_lab.process import GaussianProcess, NoiseSchedule, TimeDistribution
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.lr_schedules import LRSchedule, TorchLRSchedule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import OptimizerFactory
from diffusion_lab.training.plain_batches import PlainBatch


class ClassifierModule(TrainedModule):
    """A classifier that is trained on noisy images of the process whose samples it will guide.

    network: classifier for noisy images, see `ClassifierNetwork` for the attributes that it must have.
    process: forward process of the diffusion models that the classifier will guide, or its noise schedule.
    times: distribution of the training times.  optimizer: optimizer.
    lr_schedule, guard, seed: see `DiffusionModule`.

    A `lightning.Trainer` can train the module with any data loader, whose batches are (images, labels), with images
    [B, C, H, W], uint8 or float in [-1, 1], and labels int64 [B], or a dict with the keys `image` and `label`:

    >>> from diffusion_lab import ClassifierModule, CosineSchedule, GaussianProcess, HalfUNet, OptimizerFactory, Uniform
    >>> process, optimizer = GaussianProcess(CosineSchedule()), OptimizerFactory(torch.optim.AdamW, lr=3e-4)
    >>> network = HalfUNet(1, 10, resolution=8, channels=32, channel_multipliers=(1,), attention_resolutions=())
    >>> module = ClassifierModule(network, process, times=Uniform(process.schedule), optimizer=optimizer)
    >>> images, labels = torch.full((4, 1, 8, 8), -1.0), torch.tensor([3, 1, 4, 1])
    >>> print(f"{module.training_step((images, labels), 0):.3f}")  # log 10: all classes have the same probability
    2.303
    """

    network: ClassifierNetwork

    trained_classes: Sequence[int] = ()
    """Numbers of the classes of the training images; empty if these are all classes, or if they are not known."""

    def __init__(
        self,
        network: ClassifierNetwork,
        process: GaussianProcess | NoiseSchedule,
        *,
        times: TimeDistribution,
        optimizer: OptimizerFactory,
        lr_schedule: LRSchedule | TorchLRSchedule | None = None,
        guard: NonFiniteGuard | None = None,
        seed: int = 0,
    ) -> None:
        require_network(network, ClassifierNetwork)
        super().__init__(network, optimizer=optimizer, lr_schedule=lr_schedule, guard=guard, seed=seed)
        self.process, self.times = GaussianProcess.of(process), times
        self.require_parts(times=TimeDistribution)
        self._accuracies: list[Tensor] = []

    @property
    def classifier(self) -> NoisyClassifier:
        """The network as a classifier that can guide sampling."""
        return NoisyClassifier(self.network, self.process, tuple(self.trained_classes))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.in_channels, self.network.resolution, self.network.resolution

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def training_step(self, batch: ImageBatch | PlainBatch, batch_idx: int) -> Tensor:
        batch = self.image_batch(batch, batch_idx)
        x_0, draws = batch.x_0, batch.draws  # [B, C, H, W], all randomness of this step
        t, weight = self.times.sample(draws)  # [B], [B]
        x_t = self.process.q_sample(x_0, t, draws.noise(like=x_0))
        with draws.dropout(x_0.device):
            logits = self.classifier.logits(x_t, t)  # [B, num_classes]
        loss = F.cross_entropy(logits, batch.label, reduction="none")  # [B]
        self.times.update(draws, t, loss)
        self._accuracies.append((logits.detach().argmax(dim=1) == batch.label).float().mean())
        return self.mean_loss(weight, loss, draws.step)

    def after_step(self) -> None:
        self.times.finish_step(self.guard.applied)
        accuracy = Ranks.current().all_reduce_mean(torch.stack(self._accuracies).mean())
        self._accuracies.clear()
        self.log_step(accuracy=accuracy)
