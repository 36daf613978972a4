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
from diffusion_lab.training.optimizers import Adam
from support.small_runs import FewImages, first_batch, fit, weights


def small_classifier(lr: float = 1e-2) -> ClassifierModule:
    torch.manual_seed(0)
    process = GaussianProcess(LinearSchedule(20, 1e-3, 0.4))
    network = HalfUNet(
        1, 3, resolution=8, channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,),
        blocks=Blocks(num_groups=4),
    )  # fmt: skip
    return ClassifierModule(network, process, times=Uniform(process.schedule), optimizer=Adam(lr=lr))


def test_an_untrained_classifier_has_the_loss_of_guessing() -> None:
    assert small_classifier().training_step(first_batch(), 0).item() == pytest.approx(math.log(3))


def test_the_loss_is_the_cross_entropy_at_the_times_that_the_step_drew() -> None:
    module, batch = small_classifier(), first_batch()
    torch.nn.init.normal_(module.network.get_parameter("pool.out.weight"))
    t, _ = module.times.sample(batch.draws)
    x_t = module.process.q_sample(batch.x_0, t, batch.draws.noise(like=batch.x_0))
    shares = module.classifier.logits(x_t, t).log_softmax(1)
    expected = -shares[torch.arange(12), batch.label].mean()
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)


class Shades(FewImages):
    """Images that are darker or lighter by their class."""

    def load(self, split: str = "train") -> Images:
        images = super().load(split)
        label = images.label
        pixels = images.gather(torch.arange(50)) // 4 + (label * 90).to(torch.uint8).view(-1, 1, 1, 1)
        return Images(pixels, label, images.class_names)


def test_training_learns_the_classes() -> None:
    module = small_classifier()
    trainer = fit(module, 60, callbacks=[MeasureAccuracy(every_n_steps=60)], store=Shades())
    accuracies = {name: float(value) for name, value in trainer.callback_metrics.items() if "accuracy_" in name}
    assert list(accuracies) == [f"accuracy_train_t{share:g}" for share in (0, 0.25, 0.5, 0.75)]
    clean, *_, noisy = accuracies.values()
    assert clean > 0.9
    assert noisy < clean


def test_a_resumed_classifier_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    whole = small_classifier()
    fit(whole, 6)
    first = small_classifier()
    fit(first, 3, callbacks=[SaveLast(str(tmp_path), every_n_steps=3)])
    second = small_classifier()
    fit(second, 6, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weights(second.network), weights(whole.network))


def test_accuracy_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="num_images and batch_size must be at least 1, got 0 and 200"):
        MeasureAccuracy(every_n_steps=10, num_images=0)
