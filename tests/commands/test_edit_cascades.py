"""The command edit with a cascade: its files, its numbers, and its error messages."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.runs.images.one_target import find_one_target
from diffusion_lab.runs.setup.sampling import build_images
from support.commands import run
from support.edits import composed, edit_error, run_edit
from support.written_runs import TINY, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs with random weights: from noise to 14 x 14 pixels, and from 14 to 28."""
    folder, settings = tmp_path_factory.mktemp("runs"), ["data=fashion_mini", "model=unet_tiny", *TINY]
    small = ["data.resolution=14", "data.fit=resize", "model.attention_resolutions=[7]", "conditioning=label"]
    large = ["low_resolution=noised", "low_resolution.resolution=14", "conditioning=label", "clipping=none"]
    return {
        "base": write_run(folder / "base", *settings, *small),
        "upsampler": write_run(folder / "upsampler", *settings, *large),
        "plain": write_run(folder / "plain", *settings),
    }


@pytest.fixture(autouse=True)
def without_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of this machine, from which a job estimates its duration, takes seconds to measure."""
    monkeypatch.setattr("diffusion_lab.runs.cost.sampling.print_sampling_cost", lambda *_, **__: None)


def cascade(runs: dict[str, Path]) -> list[str]:
    names = [f"run={runs['base']}", f"cascade=[{runs['upsampler']}]"]
    return [*names, "trainer=cpu", "sampler.num_steps=3", "cascade_steps=2", "low_resolution_noise=0.1"]


def array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_an_inpainting_keeps_the_known_pixels_of_sources_of_the_last_run_and_measures_results_against_them(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    settings = [
        "images=train",
        "num_images=2",
        "num_results=2",
        "mask=half",
        "seed=3",
        "batch_size=4",
        "metrics=[psnr,consistency]",
    ]
    value = run_edit(tmp_path, *cascade(runs), *settings)
    sources = [array(tmp_path / "sources" / f"{k:06}.png") for k in range(2)]
    results = [array(tmp_path / "images" / f"{k:06}.png") for k in range(4)]
    assert {image.shape for image in (*sources, *results)} == {(28, 28)}
    for k, result in enumerate(results):
        assert np.array_equal(result[:, [*range(7), *range(21, 28)]], sources[k // 2][:, [*range(7), *range(21, 28)]])
    numbers = {n["name"]: n for n in json.loads((tmp_path / "metrics.json").read_text())["numbers"]}
    errors = [np.mean((result - sources[k // 2].astype(float)) ** 2) for k, result in enumerate(results)]
    assert -value == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
    assert numbers["consistency_train_4"]["value"] == 0
    fingerprint = numbers["psnr_train_4"]["fingerprint"]
    before = fingerprint["low_resolution"]
    assert fingerprint["task"] == before["from"]["task"]
    assert fingerprint["sampler"]["clipping"]["name"] == "StaticClipping"  # the upsampler was trained without clipping
    assert [each["sampler"]["num_steps"] for each in (fingerprint, before["from"])] == [2, 3]
    assert (before["noise"], before["from"]["sources"]["resolution"]) == (0.1, 14)
    assert len(before["from"]["weights_sha256"]) == 64
    assert not list((tmp_path / "work").iterdir())


def test_frames_at_the_stops_of_a_walk_are_the_images_of_the_cascade_of_sample(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    walk = ["task=walk", "task.num_frames=4", "task.seeds=[4,1]", "captions=true", "metrics=[]", "batch_size=2"]
    run_edit(tmp_path / "frames", *cascade(runs), *walk)
    assert (tmp_path / "frames" / "samples.webp").is_file()
    config = composed(tmp_path / "sample", *cascade(runs), *walk)
    fabric: Any = SimpleNamespace(device=torch.device("cpu"))
    samples, _ = build_images(config, find_one_target(config), fabric)
    for frame, seed in ((0, 4), (2, 1)):
        image = array(tmp_path / "frames" / "images" / f"{frame:06}.png").astype(int)
        assert np.abs(image - samples.generate(range(seed, seed + 1))[0, 0].numpy()).max() <= 1
    first, second = (array(tmp_path / "frames" / "images" / f"{k:06}.png") for k in (0, 1))
    assert not np.array_equal(first, second)


TRAIN = ["images=train", "num_images=2"]
BY_DEFAULT = 5
"""Number of mistakes that are made by default; the others are of the same kinds, for `make test-full`."""

MISTAKES: list[tuple[list[str], str]] = [
    (
        [*TRAIN, "task=deblur"],
        r"`cascade` must be \[\] for task=deblur, which edits images of one resolution only, got",
    ),
    ([*TRAIN, "mask=half", "cascade=[{plain}]"], "`cascade` must list super-resolution runs .*, got .*plain"),
    (
        [*TRAIN, "mask=half", "run={upsampler}"],
        r"`run` must be .*upsampler, whose network receives low-resolution images; cascade=\[.*upsampler\] upsamples",
    ),
    (["task=walk", "run={upsampler}"], r"`run` must be a run .*; cascade=\[.*upsampler\] upsamples the images of"),
    ([*TRAIN, "mask=random_pixels", "mask.fraction=0.99"], "`mask` must leave known pixels in the images of 14 x 14"),
    (
        [*TRAIN, "task=invert"],
        r"`cascade` must be \[\] for task=invert, which edits images of one resolution only, got",
    ),
    ([*TRAIN, "mask=half", "low_resolution_noise=0.7"], r"low_resolution_noise must be in \[0, 0.5\] .* got 0.7"),
    ([*TRAIN, "mask=half", "low_resolution_noise=x"], r"low_resolution_noise must be in \[0, 0.5\] .* got x"),
    (
        [*TRAIN, "task=denoise", "task.noise=0.2", "posterior=ddnm", "sampler=ancestral"],
        r"^cascade: .*upsampler, which uses the sampler of its run: `sampler.eta` must be above 0 for posterior=ddnm",
    ),
    (
        [*TRAIN, "mask=half", "cascade_steps=1000000"],
        r"^cascade_steps=1000000 does not fit .*upsampler: sampler: num_steps must be",
    ),
    (
        [*TRAIN, "mask=half", "cascade=[{upsampler},{upsampler}]"],
        "^`cascade` must list runs that were trained with low_resolution.resolution=28 .*, got a run with 14",
    ),
    ([*TRAIN, "mask=half", "task.noise=0.2", "posterior=repaint"], "task.noise must be 0 .*, got 0.2; posterior="),
    ([*TRAIN, "mask=half", "cascade=[]"], "`cascade` must be given for cascade_steps=2, got none."),
    (
        [*TRAIN, "mask=half", "cascade=[]", "cascade_steps=null"],
        "low_resolution_noise must be 0 without super-resolution, got 0.1.",
    ),
    ([*TRAIN, "mask=half", "run={plain}"], r"`cascade` must list .*resolution=28 .*, got a run with 14"),
    ([*TRAIN, "mask=half", "posterior=ddrm", "sampler=heun"], "`sampler` must be DDIM for posterior=ddrm, got Heun."),
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(*mistake, id=" ".join(mistake[0]), marks=[] if number < BY_DEFAULT else pytest.mark.full)
        for number, mistake in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_explained_in_one_sentence_before_anything_is_drawn(
    runs: dict[str, Path], overrides: list[str], message: str, tmp_path: Path
) -> None:
    given = {text.partition("=")[0]: text for text in (*cascade(runs), *(text.format(**runs) for text in overrides))}
    shown = edit_error(tmp_path / "out", *given.values())
    assert re.search(message, shown), shown
    assert "\n" not in shown
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    "task", [["task=style", "label=3", *TRAIN], ["task=interpolate", *TRAIN]], ids=["style", "frames"]
)
def test_results_are_the_same_files_on_two_ranks(runs: dict[str, Path], task: list[str], tmp_path: Path) -> None:
    settings = [*cascade(runs), *task, "sampler=ddim", "batch_size=2", "num_pictures=4", "animation=true"]
    for name, ranks in (("one", []), ("two", ["trainer.devices=2"])):
        places = [f"hydra.run.dir={tmp_path / name}", f"work_folder={tmp_path / name}_work"]
        done = run("edit.py", *settings, *ranks, *places)
        assert done.returncode == 0, done.stderr
        assert "cost: about" in done.stdout
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png")]
    assert len(files) > 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["numbers"] for name in ("one", "two")]
    assert metrics[0] == metrics[1]
