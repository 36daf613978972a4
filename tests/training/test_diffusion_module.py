"""The training and sampling flows through Lightning; test_training_step.py tests a single training step."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from diffusion_lab.callbacks.checkpoints import SaveLast
from diffusion_lab.ema.averages import EMA, ConstantDecay, PowerFunctionDecay
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.process import LinearSchedule, LossSecondMoment
from diffusion_lab.randomness import Draws
from support.small_runs import fit, small_module, weights


def test_the_time_distribution_learns_once_per_optimizer_step_from_all_accumulated_batches() -> None:
    histories = []
    for accumulate in (1, 4):
        module = small_module()
        times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=2)
        module.times = times
        fit(module, 3, accumulate_grad_batches=accumulate)
        assert int(times.num_met.sum()) == 3 * 12
        histories.append((times.num_met, times.kept))
    for num_met, losses in histories[1:]:
        assert torch.equal(num_met, histories[0][0])
        torch.testing.assert_close(losses, histories[0][1], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_contains_the_loss_history_of_the_time_distribution(tmp_path: Path) -> None:
    runs = [small_module() for _ in range(3)]
    for module in runs:
        module.times = LossSecondMoment(LinearSchedule(20, 1e-3, 0.4), num_kept=1)
    uninterrupted, first, resumed = runs
    fit(uninterrupted, 12)
    fit(first, 9, callbacks=[SaveLast(str(tmp_path), every_n_steps=9)])
    fit(resumed, 12, ckpt_path=tmp_path / "last.ckpt")
    histories = [module.times for module in (uninterrupted, resumed)]
    assert all(isinstance(times, LossSecondMoment) for times in histories)
    one, other = (times.state_dict() for times in histories if isinstance(times, LossSecondMoment))
    assert int(one["num_met"].min()) > 0  # the losses have influenced the sampled times
    assert torch.equal(one["kept"], other["kept"])
    assert torch.equal(one["num_met"], other["num_met"])
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))


def test_steps_are_the_same_however_batches_are_accumulated() -> None:
    runs = {}
    for accumulate in (1, 2, 4):
        module = small_module()
        trainer = fit(module, 3, accumulate_grad_batches=accumulate)
        assert trainer.global_step == 3
        assert int(module.ema.num_updates) == 3
        runs[accumulate] = (weights(module.network), weights(module.ema.network))
    for accumulate in (2, 4):
        # Adam divides by the size of the gradient, which amplifies rounding errors of gradients close to 0.
        torch.testing.assert_close(runs[accumulate][0], runs[1][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(runs[accumulate][1], runs[1][1], rtol=1e-3, atol=1e-4)


def test_every_average_is_the_same_however_batches_are_accumulated() -> None:
    runs = []
    for accumulate in (1, 4):
        module = small_module()
        module.ema = EMA(module.network, {"main": PowerFunctionDecay(0.1), "constant": ConstantDecay(0.5)})
        fit(module, 3, accumulate_grad_batches=accumulate, precision="64-true")
        assert module.ema.num_updates == 3
        runs.append([weights(network) for network in module.ema.networks.values()])
    for averages in runs[1:]:
        torch.testing.assert_close(averages, runs[0], rtol=0, atol=1e-7)  # float64, but the noise of images is float32


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_weights_of_other_precisions_train_and_sample(precision: str, dtype: torch.dtype) -> None:
    module = small_module(Labels(3, 0.2))
    fit(module, 3, precision=precision)
    assert weights(module.network).dtype == dtype
    assert module.sample(range(2)).isfinite().all()


def test_a_batch_size_that_cannot_be_divided_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size.* divisible by .*1 \* 5\), got 12"):
        fit(small_module(), 2, accumulate_grad_batches=5)


def test_the_average_is_a_separate_network_that_stays_in_evaluation_mode() -> None:
    module = small_module(dropout=0.5)
    fit(module, 3)
    module.train()
    assert module.network.training
    assert not any(part.training for part in module.ema.modules())
    assert not torch.equal(weights(module.network), weights(module.ema.network))


def test_training_is_reproducible_and_independent_of_sampling() -> None:
    class SampleEachStep(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
            trainer.lightning_module.sample(range(3))

    first, second, with_sampling = small_module(), small_module(), small_module()
    fit(first, 4)
    fit(second, 4)
    fit(with_sampling, 4, callbacks=[SampleEachStep()])
    assert torch.equal(weights(first.network), weights(second.network))
    assert torch.equal(weights(first.network), weights(with_sampling.network))


def test_a_checkpoint_contains_the_average_and_resumes_at_its_step(tmp_path: Path) -> None:
    uninterrupted, first = small_module(), small_module()
    fit(uninterrupted, 6)
    fit(first, 4, callbacks=[SaveLast(str(tmp_path), every_n_steps=4)])
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    average = torch.cat([v.flatten() for k, v in state["state_dict"].items() if k.startswith("ema.networks.main.")])
    assert torch.equal(average, weights(first.ema.network))
    resumed = small_module()
    fit(resumed, 6, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(weights(resumed.network), weights(uninterrupted.network))
    assert torch.equal(weights(resumed.ema.network), weights(uninterrupted.ema.network))


def test_samples_come_from_the_average_not_from_the_trained_weights() -> None:
    module = small_module()
    fit(module, 3)
    images = module.sample(range(4))
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.zero_()
    assert torch.equal(module.sample(range(4)), images)
    with torch.no_grad():
        for parameter in module.ema.network.parameters():
            parameter.zero_()
    assert not torch.equal(module.sample(range(4)), images)


def test_any_average_and_the_trained_weights_can_be_sampled_by_name() -> None:
    module = small_module(dropout=0.5)
    module.ema = EMA(module.network, {"main": PowerFunctionDecay(0.1), "slow": ConstantDecay(0.9)})
    fit(module, 20)
    main, slow, raw = (module.sample(range(4), weights=name) for name in ("main", "slow", "raw"))
    assert torch.equal(module.sample(range(4)), main)
    assert not torch.equal(main, slow)
    module.ema.networks["main"].load_state_dict(module.network.state_dict())
    assert torch.equal(module.sample(range(4)), raw)  # raw samples are generated without dropout
    assert module.network.training
    assert all(parameter.requires_grad for parameter in module.network.parameters())


def test_weights_of_an_unknown_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`weights` must be main or raw, got slow\."):
        small_module().sample(range(2), weights="slow")


def test_image_k_does_not_depend_on_the_other_images_of_its_batch() -> None:
    module = small_module(Labels(3, 0.2))
    fit(module, 5)
    batch, alone = module.sample(range(5)), module.sample([3])
    torch.testing.assert_close(batch[3:4], alone, rtol=0, atol=1e-5)


def test_seed_k_is_given_class_k_modulo_their_number_unless_labels_are_passed() -> None:
    module = small_module(Labels(3, 0.2))
    fit(module, 30)
    expected = module.sample([0, 1, 2, 3], Condition(torch.tensor([0, 1, 2, 0])))
    assert torch.equal(module.sample([0, 1, 2, 3]), expected)
    assert not torch.equal(module.sample([0, 1, 2, 3], Condition(torch.tensor([1, 1, 2, 0]))), expected)


def test_guidance_without_a_null_label_is_refused() -> None:
    for labels in (None, Labels(3)):
        with pytest.raises(ValueError, match="guidance requires a network that was trained with dropped labels"):
            small_module(labels).sample(range(2), guidance=Guidance(Strength(1.5)))


def test_gradients_are_clipped_to_gradient_clip_val() -> None:
    module = small_module()
    norms = []
    clip = module.configure_gradient_clipping

    def clip_and_record(*arguments: Any, **settings: Any) -> None:
        clip(*arguments, **settings)
        norms.append(torch.cat([p.grad.flatten() for p in module.network.parameters() if p.grad is not None]).norm())

    module.configure_gradient_clipping = clip_and_record  # type: ignore[method-assign]
    fit(module, 3, gradient_clip_val=0.01)
    assert [norm.item() for norm in norms] == pytest.approx([0.01] * 3, rel=1e-3)


def test_labels_are_dropped_with_the_given_probability() -> None:
    labels = Labels(3, 0.25)
    dropped = Draws(0, 0, range(4000), 4000).dropped_labels(labels.dropout)
    label = labels.drop(torch.zeros(4000, dtype=torch.int64), dropped)
    assert label is not None
    assert (label == labels.null).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_two_modules_do_not_share_weights() -> None:
    module = small_module()
    other = copy.deepcopy(module)
    fit(module, 2)
    assert not torch.equal(weights(module.network), weights(other.network))


def test_the_average_of_a_run_in_half_precision_is_float32_moves_and_is_sampled() -> None:
    module = small_module()
    module.ema = EMA(module.network, {"main": ConstantDecay(0.9999)})
    before = weights(module.ema.network)
    fit(module, 20, precision="bf16-true")
    average = weights(module.ema.network)
    assert weights(module.network).dtype == torch.bfloat16
    assert average.dtype == torch.float32
    assert (average != before).double().mean() > 0.95  # in bfloat16, 0.3
    assert module.sample(range(2)).isfinite().all()
    assert module.sample(range(2), weights="raw").isfinite().all()
