"""Results of edits depend on their source, their seed and the settings alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.edits import (
    CompressedSense,
    Deblur,
    DeblurMotion,
    Denoise,
    Half,
    Inpaint,
    Invert,
    RandomRectangle,
    Style,
    SuperResolution,
    Task,
    TransparentPixels,
    Variation,
)
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import FIELDS, differences
from diffusion_lab.generation import EditedImages, EditSources, SeededImages
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.inverse_problems import DDNM, DDRM, DPS, MMPS, PiGDM, PosteriorSampler, RePaint, Replace
from diffusion_lab.networks import Labels
from diffusion_lab.samplers import Ancestral, Sampler
from support.every_sampler import SAMPLERS
from support.small_runs import FewImages, small_module

MODULE = small_module().eval()
CONDITIONAL = small_module(Labels(3, dropout=0.1)).eval()
IMAGES = FewImages().load()


def edited(task: Task, module: Any = MODULE, num_images: int = 3, **options: Any) -> EditedImages:
    """Return results of the first images of FewImages."""
    names = ("num_results", "seed", "has_labels", "masks")
    of_edit = {name: options.pop(name) for name in names if name in options}
    sources = EditSources(
        IMAGES.select(torch.arange(num_images)), "train", of_edit.pop("has_labels", True), of_edit.pop("masks", None)
    )
    return EditedImages(SeededImages(module, **options), sources, task, **of_edit)


def all_pixels(images: EditedImages) -> torch.Tensor:
    return torch.cat([images.generate(batch) for batch in images.batches(range(images.num_images))])


NOISY = Inpaint(RandomRectangle(), PiGDM(), noise=0.2)


@pytest.mark.parametrize("task", [NOISY, Inpaint(Half(), Replace()), Variation(), Invert()])
def test_a_result_depends_neither_on_the_batch_nor_on_other_sources_and_results(task: Task) -> None:
    together = all_pixels(edited(task, batch_size=6, num_results=2))
    for other in (edited(task, batch_size=4, num_results=2), edited(task, num_images=2, batch_size=3, num_results=2)):
        difference = together[: other.num_images].int() - all_pixels(other).int()
        assert int(difference.abs().max()) <= 1  # rounding
    assert torch.equal(edited(task, batch_size=6, num_results=2).results(1), together[2:4])


def test_results_of_a_source_have_the_same_measurement_and_different_noise() -> None:
    images = edited(NOISY, num_results=2)
    measurement = images.task.measurement(images._sources(range(4)))
    assert measurement is not None
    assert torch.equal(measurement.y[0], measurement.y[1])
    assert not torch.equal(measurement.y[1], measurement.y[2])
    assert not torch.equal(*images.results(0))


def test_the_seed_of_a_result_is_the_seed_of_the_edit_plus_its_index() -> None:
    first = all_pixels(edited(Variation(0.9), num_images=1, num_results=3, batch_size=3))
    later = all_pixels(edited(Variation(0.9), num_images=1, num_results=3, batch_size=3, seed=1))
    assert torch.equal(later[:2], first[1:])


@pytest.mark.parametrize(
    "posterior", [PiGDM(), MMPS(num_iterations=2), DPS(), Replace(), RePaint(2, 2), DDRM(), DDNM()]
)
def test_known_pixels_are_those_of_the_source_to_the_gray_level(posterior: PosteriorSampler) -> None:
    images = edited(Inpaint(Half("left"), posterior))
    pixels = all_pixels(images)
    assert torch.equal(pixels[..., 4:], images.sources.pixels(range(3))[..., 4:])
    assert not torch.equal(pixels[..., :4], images.sources.pixels(range(3))[..., :4])


def test_results_have_the_class_of_their_source_or_the_given_class_or_none() -> None:
    assert edited(Variation(), CONDITIONAL, num_results=2).labels(range(6)).tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    given = edited(Style(), CONDITIONAL, label=[2, 1], num_results=2)
    assert given.labels(range(4)).tolist() == [2, 1, 2, 1]  # type: ignore[union-attr]
    unknown = edited(Variation(), CONDITIONAL, has_labels=False)
    assert (unknown.labels(range(3)), unknown.num_classes) == (None, 0)
    assert unknown._label(range(2)).tolist() == [3, 3]  # type: ignore[union-attr]  # the null label
    assert edited(Variation()).labels(range(3)) is None
    assert len({str(each.protocol()["label"]) for each in (given, unknown, edited(Variation(), CONDITIONAL))}) == 3


def test_fingerprints_name_task_mask_noise_posterior_sources_and_pasted_pixels() -> None:
    protocol = edited(Inpaint(Half("top"), DDRM(eta=0.5)), seed=3, num_results=2).protocol()
    assert protocol["task"] == {
        "name": "Inpaint",
        "mask": {"name": "Half", "side": "top"},
        "posterior": {"name": "DDRM", "eta": 0.5, "eta_b": 1.0},
        "noise": 0.0,
        "pasted": True,
    }
    assert (protocol["seed"], protocol["num_results"], protocol["sources"]["size"]) == (3, 2, 3)
    assert protocol.keys() <= set(FIELDS)
    noisy = edited(Inpaint(Half("top"), DDRM(eta=0.5), noise=0.1), seed=3, num_results=2).protocol()
    assert differences([protocol, noisy]).keys() == {"task.noise", "task.pasted"}
    masks = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    masks[..., :2] = 255
    first, second = (edited(Inpaint(TransparentPixels()), masks=m).protocol() for m in (masks, masks.flip(-1)))
    assert differences([first, second]).keys() == {"sources.masks"}


def test_cached_batches_are_reused_for_the_same_edit_only(tmp_path: Path) -> None:
    images = edited(Variation(), batch_size=2)
    images.folder = tmp_path / images.identity("32-true")
    pixels = all_pixels(images)
    assert [path.name for path in sorted(images.folder.iterdir())] == ["seeds_000000000.npy", "seeds_000000002.npy"]
    again = edited(Variation(), batch_size=2)
    again.folder, again.task = images.folder, Invert()  # would give other images
    assert torch.equal(all_pixels(again), pixels)
    assert (
        len({each.identity("32-true") for each in (images, edited(Variation(0.5)), edited(Variation(), seed=1))}) == 3
    )


def test_the_noises_of_an_inversion_generate_the_result() -> None:
    images = edited(Invert(), batch_size=2)
    noises = torch.cat([images.noises(batch) for batch in images.batches(range(3))])
    results = images.sampler.sample(MODULE.denoiser(), noises)
    difference = ((results + 1) * 127.5).clamp(0, 255).round() - all_pixels(images)
    assert float(difference.abs().max()) <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: edited(Variation(), num_results=0), "num_results must be a whole number of at least 1, got 0."),
        (lambda: edited(Style()), "`run` must be trained with conditioning=label"),
        (lambda: edited(Style(), CONDITIONAL), "`label` must be given for task=style"),
        (
            lambda: edited(Variation(), CONDITIONAL, has_labels=False, guidance=Guidance(Strength(2.0))),
            "`label` must be given for source images without a known class if guidance_scale is not 1",
        ),
        (
            lambda: edited(Variation(), small_module(Labels(3)).eval(), has_labels=False),
            "trained without dropped labels",
        ),
        (lambda: edited(Inpaint(TransparentPixels())), "`mask` must be given for task=inpaint"),
        (
            lambda: edited(Inpaint(TransparentPixels()), masks=torch.zeros(3, 1, 8, 8, dtype=torch.uint8)),
            "fills no pixel of source image 0",
        ),
        (lambda: edited(SuperResolution(factor=3)), "factor must be at least 1 and divide the height"),
        (lambda: edited(Inpaint(Half(), DDRM()), sampler=Ancestral(MODULE.process)), "posterior=ddrm, got Ancestral"),
    ],
)
def test_edits_that_cannot_be_generated_are_refused_before_anything_is_drawn(
    build: Callable[[], Any], message: str
) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        build()


def test_a_mask_that_depends_on_the_pixels_is_checked_for_every_source() -> None:
    masks = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    masks[:2, ..., :2] = 255
    with pytest.raises(UserError, match="source image 2"):
        edited(Inpaint(TransparentPixels()), masks=masks)


def restorations(posterior: PosteriorSampler) -> list[Task]:
    return [
        Inpaint(Half(), posterior),
        SuperResolution(2, posterior=posterior),
        SuperResolution(2, "bicubic", posterior),
        Deblur(1.0, posterior, 0.05),
        DeblurMotion(3.0, 0.0, posterior, 0.05),
        Denoise(posterior, 0.2),
        CompressedSense(0.5, posterior),
    ]


FIXED_STEPS = {name for name in SAMPLERS if not name.startswith(("unipc", "rk45"))}
ANCESTRAL_OR_DDIM = {name for name in SAMPLERS if name.startswith(("ancestral", "ddim"))}
ACCEPTED: dict[str, tuple[PosteriorSampler, set[str], set[str]]] = {
    "pigdm": (PiGDM(), {*SAMPLERS}, {*SAMPLERS}),
    "pigdm, paper": (
        PiGDM("paper"), {name for name in SAMPLERS if "ddim" in name}, {name for name in SAMPLERS if "ddim" in name},
    ),
    "mmps": (MMPS(num_iterations=1), {*SAMPLERS}, {*SAMPLERS}),
    "dps": (DPS(), ANCESTRAL_OR_DDIM, ANCESTRAL_OR_DDIM),
    "ddrm": (DDRM(), {"ddim, eta 0"}, {"ddim, eta 0"}),
    "ddnm": (DDNM(), {*SAMPLERS}, ANCESTRAL_OR_DDIM - {"ddim, eta 0"}),
    "replace": (Replace(), FIXED_STEPS, FIXED_STEPS),
    "repaint": (RePaint(2, 2), FIXED_STEPS, set()),
}  # fmt: skip
"""The samplers that each posterior sampler takes for measurements without noise and with noise."""

FEW = ("ddim, eta 0", "heun", "unipc, order 2", "rk45")
"""Samplers that are tested by default, and only for inpainting."""


def runs(task: Task, sampler: Sampler) -> bool:
    """Generate a result, and return whether the edit is not refused by a sentence before that."""
    try:
        images = edited(task, CONDITIONAL, num_images=1, batch_size=1, sampler=sampler, label=1)
    except (UserError, ValueError):
        return False
    steps: list[int] = []
    assert images.generate(range(1), lambda k, *_: steps.append(k)).shape == (1, 1, 8, 8)
    assert steps == list(range(1, images.num_steps + 1))
    return True


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(SAMPLERS), marks=pytest.mark.full)], ids=["few", "all"])
def test_every_task_runs_with_the_samplers_of_its_posterior_sampler_or_is_refused(
    name: str, names: tuple[str, ...]
) -> None:
    posterior, accepted, accepted_with_noise = ACCEPTED[name]
    samplers = {key: SAMPLERS[key].build(CONDITIONAL.process, num_steps=3) for key in names}
    for task in restorations(posterior)[: None if len(names) > len(FEW) else 1]:
        expected = accepted_with_noise if getattr(task, "noise", 0) else accepted
        assert {key for key, sampler in samplers.items() if runs(task, sampler)} == expected & {*names}


@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(SAMPLERS), marks=pytest.mark.full)], ids=["few", "all"])
def test_variations_take_every_sampler_and_inversion_takes_ddim_and_heun(names: tuple[str, ...]) -> None:
    samplers = {key: SAMPLERS[key].build(CONDITIONAL.process, num_steps=3) for key in names}
    assert all(runs(task, sampler) for task in (Variation(), Style()) for sampler in samplers.values())
    assert {key for key, sampler in samplers.items() if runs(Invert(), sampler)} == {"ddim, eta 0", "heun"} & {*names}
