from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.randomness import Draws, ImageNoise, Purpose, normal_stream, permutation, stream

IMAGE = (3, 8, 6)


def all_draws(seed: int, step: int, positions: Sequence[int]) -> list[Tensor]:
    """Return all random numbers of a training step, one row per image."""
    draws = Draws(seed, step, positions, batch_size=60)
    noise = draws.noise(like=torch.zeros(len(positions), *IMAGE))
    return [draws.times(), draws.flips(0.5), draws.dropped_labels(0.3), noise]


@settings(max_examples=15)
@given(st.permutations(range(7)), st.integers(1, 6), st.integers(0, 2**63), st.integers(0, 10**9))
def test_draws_do_not_depend_on_the_split_of_the_batch(positions: list[int], cut: int, seed: int, step: int) -> None:
    whole = all_draws(seed, step, range(7))
    parts = zip(all_draws(seed, step, positions[:cut]), all_draws(seed, step, positions[cut:]), strict=True)
    for together, (first, rest) in zip(whole, parts, strict=True):
        assert torch.equal(together[positions], torch.cat([first, rest]))


@pytest.mark.parametrize(("seed", "step"), [(0, 1), (1, 0), (1, 1)])
def test_draws_differ_between_steps_and_between_seeds(seed: int, step: int) -> None:
    for one, other in zip(all_draws(0, 0, range(60)), all_draws(seed, step, range(60)), strict=True):
        assert not torch.equal(one, other)


def test_draws_differ_between_positions() -> None:
    times, _, _, noise = all_draws(0, 0, range(60))
    assert len(set(times.tolist())) == 60
    assert len(set(noise[:, 0, 0, 0].tolist())) == 60


def test_draws_differ_between_purposes() -> None:
    numbers = {stream(seed=5, purpose=purpose, step=2).random() for purpose in Purpose}
    assert len(numbers) == len(Purpose)


def test_a_stream_is_philox_with_the_documented_key_and_counter() -> None:
    # Runs must have identical random numbers in all versions, so that key and counter must not change.
    philox = np.random.Philox(key=[5, 3], counter=[0, 0, 7, 2])
    assert stream(5, Purpose.NOISE, step=2, position=7).random() == np.random.Generator(philox).random()
    assert [purpose.value for purpose in Purpose] == list(range(18))


def test_numbers_for_different_uses_in_one_step_are_independent() -> None:
    draws = Draws(0, 0, range(4096), 4096)
    late, flipped, dropped = (draws.times() < 0.5), draws.flips(0.5), draws.dropped_labels(0.5)
    for one, other in ((late, flipped), (late, dropped), (flipped, dropped)):
        assert float((one == other).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_repeated_calls_give_the_same_draws() -> None:
    draws = Draws(0, 0, range(5), 5)
    assert torch.equal(draws.times(), draws.times())
    assert torch.equal(draws.noise(torch.zeros(5, *IMAGE)), draws.noise(torch.zeros(5, *IMAGE)))


def test_augmentation_numbers_are_those_of_the_global_batch_for_any_positions() -> None:
    whole, part = (Draws(3, 7, positions, 12).augmentation(5, 2) for positions in (range(12), [4, 2]))
    assert [numbers.shape for numbers in whole] == [(12, 5), (12, 2)]
    assert all(torch.equal(one, other) for one, other in zip(whole, part, strict=True))
    for other in (Draws(3, 8, range(12), 12), Draws(4, 7, range(12), 12)):
        assert not any(torch.equal(one, two) for one, two in zip(whole, other.augmentation(5, 2), strict=True))


def test_augmentation_numbers_are_uniform_and_standard_normal() -> None:
    uniform, normal = Draws(3, 7, [0], 20_000).augmentation(1, 1)
    assert uniform.dtype == normal.dtype == torch.float64
    assert 0 <= float(uniform.min()) < 0.001
    assert 0.999 < float(uniform.max()) < 1
    counts = torch.histc(uniform, 10, 0, 1)
    assert float((counts - 2000).abs().max()) < 200  # 4.7 standard deviations
    assert float(normal.mean()) == pytest.approx(0, abs=0.03)
    assert float((normal.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.015)


def test_times_are_float64_and_uniform() -> None:
    times = Draws(3, 7, range(20_000), 20_000).times()
    assert times.dtype == torch.float64
    assert 0 <= float(times.min()) < 0.001
    assert 0.999 < float(times.max()) < 1
    counts = torch.histc(times, 10, 0, 1)
    assert float((counts - 2000).abs().max()) < 200  # 4.7 standard deviations


def test_the_shared_time_depends_only_on_seed_and_step() -> None:
    shared = Draws(3, 7, [0, 5], 12).shared_time()
    assert shared.shape == ()
    assert shared.dtype == torch.float64
    for positions in ([1, 2, 3], [11], range(12)):
        assert torch.equal(Draws(3, 7, positions, 12).shared_time(), shared)
    others = [Draws(3, 8, [0], 12).shared_time(), Draws(4, 7, [0], 12).shared_time(), Draws(3, 7, [0], 12).times()[0]]
    assert len({float(number) for number in (shared, *others)}) == 4


def test_shared_times_are_uniform_over_training_steps() -> None:
    shared = torch.stack([Draws(3, step, [0], 1).shared_time() for step in range(2000)])
    counts = torch.histc(shared, 10, 0, 1)
    assert float((counts - 200).abs().max()) < 60  # 4.5 standard deviations


def test_flips_and_dropped_labels_have_the_given_probability() -> None:
    draws = Draws(3, 7, range(20_000), 20_000)
    assert float(draws.flips(0.5).double().mean()) == pytest.approx(0.5, abs=0.015)
    assert float(draws.dropped_labels(0.1).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert not bool(draws.dropped_labels(0.0).any())
    assert bool(draws.flips(1.0).all())


@pytest.mark.parametrize(
    "noise", [lambda: Draws(3, 7, range(5), 5).noise(torch.zeros(5, 3, 80, 60)), ImageNoise(range(5), (3, 80, 60)).draw]
)
def test_noise_is_standard_normal_in_float32(noise: Callable[[], Tensor]) -> None:
    numbers = noise()
    assert numbers.dtype == torch.float32
    assert numbers.shape == (5, 3, 80, 60)
    assert float(numbers.mean()) == pytest.approx(0, abs=0.015)  # 4 standard errors
    assert float(numbers.std()) == pytest.approx(1, abs=0.015)
    assert float((numbers.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.01)


def test_noise_for_another_number_of_images_than_positions_is_rejected() -> None:
    with pytest.raises(ValueError, match="the batch size of the noise must be the number of positions \\(4\\), got 5"):
        Draws(0, 0, range(4), 4).noise(torch.zeros(5, *IMAGE))


def test_an_image_has_the_same_noise_in_any_batch() -> None:
    together, reordered, alone = ImageNoise([3, 1, 4], IMAGE), ImageNoise([9, 2, 6, 4], IMAGE), ImageNoise([4], IMAGE)
    for _ in range(3):
        expected = alone.draw()[0]
        assert torch.equal(together.draw()[2], expected)
        assert torch.equal(reordered.draw()[3], expected)


@pytest.mark.parametrize("shape", [IMAGE, (1, 28, 28), (1, 5, 7), (3, 128, 128)])
def test_draws_of_an_image_are_consecutive_numbers_of_its_stream(shape: tuple[int, int, int]) -> None:
    noise, alone = ImageNoise([3, 8], shape), normal_stream(8, Purpose.SAMPLING)
    drawn = [noise.draw() for _ in range(17)]  # some are generated ahead, and no number is skipped
    assert all(torch.equal(draw[1], torch.empty(shape).normal_(generator=alone)) for draw in drawn)


def test_the_noise_differs_between_draws_and_between_seeds() -> None:
    noise = ImageNoise([0, 1], IMAGE)
    first, second = noise.draw(), noise.draw()
    assert float((first == second).double().mean()) < 0.01
    assert float((first[0] == first[1]).double().mean()) < 0.01


def test_sampling_and_training_have_different_noise() -> None:
    sampling = ImageNoise([7], IMAGE).draw()
    training = Draws(seed=7, step=0, positions=[0], batch_size=1).noise(torch.zeros(1, *IMAGE))
    assert float((sampling == training).double().mean()) < 0.01


def test_an_image_has_the_same_likelihood_noise_in_any_batch() -> None:
    together, alone = ImageNoise.of_images(5, [3, 1, 4], IMAGE), ImageNoise.of_images(5, [4], IMAGE)
    for _ in range(3):
        drawn, expected = together.draw(), alone.draw()
        assert drawn.shape == (3, *IMAGE)
        assert torch.equal(drawn[2:], expected)


def test_likelihood_noise_depends_on_seed_and_position_and_differs_from_sampling() -> None:
    noise = ImageNoise.of_images(5, [0, 1], IMAGE).draw()
    others = (ImageNoise.of_images(6, [0, 1], IMAGE).draw(), ImageNoise([5, 5], IMAGE).draw(), noise.flip(0))
    for other in others:
        assert float((noise == other).double().mean()) < 0.01


def test_negative_seeds_are_rejected() -> None:
    with pytest.raises(ValueError, match="seeds must be whole numbers of at least 0, got -2"):
        ImageNoise([3, -2, -1], IMAGE)


def test_the_order_of_an_epoch_has_every_image_once() -> None:
    orders = [permutation(seed=1, epoch=epoch, size=50) for epoch in (0, 1)]
    assert [sorted(order.tolist()) for order in orders] == [list(range(50))] * 2
    assert orders[0].tolist() != orders[1].tolist()
    assert orders[0].tolist() != permutation(seed=2, epoch=0, size=50).tolist()


def test_global_random_states_are_neither_read_nor_changed() -> None:
    def draw_all() -> list[Tensor]:
        noise = ImageNoise([3, 1], IMAGE)
        order = torch.from_numpy(permutation(0, 0, 50))
        return [*all_draws(0, 0, range(5)), order, noise.draw(), noise.draw()]

    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
        results.append(draw_all())
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert str(np.random.get_state(legacy=False)) == str(numpy_state)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_normal_stream_is_a_mersenne_twister_whose_complete_state_comes_from_philox() -> None:
    # Runs must have identical random numbers in all versions of torch, so that the state must not change.
    twister, words = np.random.MT19937(), np.random.Philox(key=[5, 3], counter=[0, 0, 7, 2]).random_raw(312)
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.view(np.uint32), "pos": 624}}
    stream_of_torch = normal_stream(5, Purpose.NOISE, step=2, position=7)
    found = torch.empty(2000, dtype=torch.int32).random_(generator=stream_of_torch)  # without the highest bit
    assert np.array_equal(found.numpy(), twister.random_raw(2000) & (2**31 - 1))


@pytest.mark.parametrize("image", [IMAGE, (3, 64, 96), (1, 160, 200)])  # blocks of 16, 3 and 2 positions
@pytest.mark.parametrize("boundary", [1, 15, 16, 17, 31, 47])
def test_noise_does_not_depend_on_the_split_of_the_blocks_of_a_stream(boundary: int, image: tuple[int, ...]) -> None:
    def noise(positions: Sequence[int]) -> Tensor:
        return Draws(3, 8, positions, 48).noise(like=torch.zeros(len(positions), *image))

    assert torch.equal(torch.cat([noise(range(boundary)), noise(range(boundary, 48))]), noise(range(48)))
    assert torch.equal(noise([40, 3, 19]), noise(range(48))[[40, 3, 19]])


def test_all_positions_of_a_step_have_different_noise() -> None:
    noise = Draws(0, 0, range(80), 80).noise(like=torch.zeros(80, *IMAGE)).flatten(1)
    assert len({tuple(row) for row in noise.tolist()}) == 80
    assert float((noise @ noise.T / 144).fill_diagonal_(0).abs().max()) < 0.5  # six standard deviations of 1 / 12


def test_noise_of_distant_positions_is_generated_without_the_noise_between_them() -> None:
    like = torch.zeros(1, *IMAGE)
    together = Draws(3, 7, [10**12, 5], 10**12).noise(torch.zeros(2, *IMAGE))  # the noise between them needs terabytes
    assert torch.equal(together[:1], Draws(3, 7, [10**12], 10**12).noise(like))
    assert torch.equal(together[1:], Draws(3, 7, [5], 10**12).noise(like))
