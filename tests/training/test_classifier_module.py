import math
from pathlib import Path

import pytest
import torch

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.callbacks.measure_accuracy import MeasureAccuracy
from diffusion_lab.data.images import Images
from diffusion_lab.networks import Blocks, HalfUNet
from diffusion_lab.process import GaussianProcess, LinearSchedule, Uniform
from diffusion_lab.training.classifier_module import ClassifierModule
from diffusion_lab.training.optimizers import OptimizerFactory
from support.small_runs import FewImages, first_batch, fit, weights


def small_classifier(lr: float = 1e-2) -> ClassifierModule:
    torch.manual_seed(0)
    process = GaussianProcess(LinearSchedule(20, 1e-3, 0.4))
    network = HalfUNet(
        1, 3, resolution=8, channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,),
        blocks=Blocks(num_groups=4),
    )  # fmt: skip
    return ClassifierModule(
        network, process, times=Uniform(process.schedule), optimizer=OptimizerFactory(torch.optim.AdamW, lr=lr)
    )


def test_an_untrained_classifier_has_the_loss_of_uniform_guessing() -> None:
    assert small_classifier().training_step(first_batch(), 0).item() == pytest.approx(math.log(3))


def test_the_loss_is_the_cross_entropy_at_the_sampled_times() -> None:
    module, batch = small_classifier(), first_batch()
    torch.nn.init.normal_(module.network.get_parameter("pool.out.weight"))
    t, _ = module.times.sample(batch.draws)
    x_t = module.process.q_sample(batch.x_0, t, batch.draws.noise(like=batch.x_0))
    log_probabilities = module.classifier.logits(x_t, t).log_softmax(1)
    expected = -log_probabilities[torch.arange(12), batch.label].mean()
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)


class BrightnessByClass(FewImages):
    """Images whose brightness depends on their class."""

    def load(self, split: str = "train") -> Images:
        images = super().load(split)
        label = images.label
        pixels = images.gather(torch.arange(50)) // 4 + (label * 90).to(torch.uint8).view(-1, 1, 1, 1)
        return Images(pixels, label, images.class_names)


def test_training_learns_the_classes() -> None:
    module = small_classifier()
    trainer = fit(module, 60, callbacks=[MeasureAccuracy(every_n_steps=60)], store=BrightnessByClass())
    accuracies = {name: float(value) for name, value in trainer.callback_metrics.items() if "accuracy_" in name}
    assert list(accuracies) == [f"accuracy_train_t{quarter:g}" for quarter in (0, 0.25, 0.5, 0.75)]
    clean, *_, noisy = accuracies.values()
    assert clean > 0.9
    assert noisy < clean


def test_a_resumed_classifier_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = small_classifier()
    fit(uninterrupted, 6)
    first = small_classifier()
    fit(first, 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)])
    resumed = small_classifier()
    fit(resumed, 6, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))


def test_measuring_the_accuracy_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="num_images and batch_size must be at least 1, got 0 and 200"):
        MeasureAccuracy(every_n_steps=10, num_images=0)
