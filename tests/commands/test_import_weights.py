"""`src/import_weights.py` and `src/verify.py` on small checkpoints in the layouts of other code."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab import DDIM, CosineSchedule, load_module
from diffusion_lab.commands.import_weights import with_source
from diffusion_lab.errors import UserError
from diffusion_lab.interop.formats import read_foreign
from diffusion_lab.interop.imported import Options
from diffusion_lab.runs.load import load_config
from diffusion_lab.runs.trust import is_recorded
from support.commands import run
from support.foreign_edm import EDM, with_filters
from support.foreign_edm import output as edm_output
from support.foreign_edm import write as write_edm
from support.foreign_openai import random_tensors
from support.foreign_witness import FLAGS, witness

TYPED = ("schedule=cosine", "schedule.num_timesteps=100", "resolution=16", "num_heads=2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file of guided-diffusion with random weights, and its tensors."""
    file, tensors = tmp_path_factory.mktemp("foreign") / "ema_0.9999_300000.pt", random_tensors(FLAGS.shapes())
    torch.save(tensors, file)
    return file, tensors


@pytest.fixture(scope="module")
def imported(checkpoint: tuple[Path, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an imported run."""
    folder = tmp_path_factory.mktemp("runs") / "adm"
    done = run("import_weights.py", str(checkpoint[0]), *TYPED, f"output={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "format      adm: 828,998 parameters in 145 tensors\n" in done.stdout
    return folder


def test_an_imported_run_has_config_weights_and_provenance(
    imported: Path, checkpoint: tuple[Path, dict[str, Tensor]]
) -> None:
    file, tensors = checkpoint
    found = json.loads((imported / "provenance.json").read_text())
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found["format"], found["source"], found["num_parameters"]) == ("adm", str(file), 828_998)
    assert found["conventions"]["attention_order"] == "legacy"
    config = load_config(imported)
    assert (config.schedule.num_timesteps, config.variance._target_) == (100, "diffusion_lab.process.LearnedRange")
    assert "${" not in (imported / "config.yaml").read_text()
    content = torch.load(imported / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 300_000
    for prefix in ("network", "ema.networks.main"):
        assert torch.equal(content["state_dict"][f"{prefix}.conv_in.bias"], tensors["input_blocks.0.0.bias"])
    assert (imported / "checkpoints" / "last.ckpt").stat().st_size < 1.2 * file.stat().st_size  # each tensor once
    assert is_recorded(imported)
    shutil.copytree(imported, imported.parent / "copy")
    assert not is_recorded(imported.parent / "copy")
    assert load_config(imported.parent / "copy").model == config.model  # needs no trust


def test_an_imported_run_is_sampled_and_loaded_like_any_other_run(imported: Path, tmp_path: Path) -> None:
    settings = ["sampler=ddim", "sampler.num_steps=3", "num_images=2", f"output_folder={tmp_path}"]
    done = run("sample.py", f"run={imported}", *settings, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    module = load_module(imported)
    sampler = DDIM(module.process, num_steps=3)
    ours = ((module.sample(2, sampler=sampler) + 1) * 127.5).clamp(0, 255)
    first, _ = sorted((tmp_path / "images").glob("*.png"))
    with Image.open(first) as picture:
        assert (torch.from_numpy(np.array(picture)).permute(2, 0, 1) - ours[0]).abs().max() <= 1


@pytest.mark.parametrize("overrides", [["resume={}"], ["resume={}", "fork=true"], ["hydra.run.dir={}"]])
def test_training_does_not_resume_an_imported_run_and_names_other_uses(overrides: list[str], imported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*") if path.suffix != ".log"}
    done = run("train.py", *(override.format(imported) for override in overrides), "model=unet_tiny")
    assert done.returncode == 1
    remedy = f"init={imported} starts a new run from its weights."
    assert f"which was imported without the state of its training; {remedy}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "schedule must be given (schedule=linear or schedule=cosine)"),
        (
            ["format=adn", *TYPED],
            "format must be adm, improved_ddpm, ddpm, dit, ddpmpp, edm, safetensors, diffusers or auto, got adn.",
        ),
        ([*TYPED, "model.channels=64"], "model.channels must not be given, because the imported file determines"),
        ([*TYPED, "num_heads=2", "head_channels=16"], "num_heads must be null if head_channels is given"),
        ([*TYPED, "resolution=0"], "resolution must be a whole number of at least 1 or null, got 0."),
        ([*TYPED, "variance=fixed_large"], "must be LearnedRange or LearnedDiagonal for the objective"),
        ([*TYPED, "ema=power"], "ema must be an average"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_error_message_and_leaves_no_folder(
    overrides: list[str], message: str, checkpoint: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    typed = list({text.partition("=")[0]: text for text in ["resolution=16", *overrides]}.values())
    done = run("import_weights.py", str(checkpoint[0]), *typed, f"output={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "text", "PK no archive"])
def test_a_file_that_contains_no_weights_is_refused_with_the_accepted_files(content: str, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text(content)
    accepted = (
        r"a file of weights \(of torch\.save, .*, or a \.pkl file of EDM\) or a folder of safetensors or diffusers"
    )
    with pytest.raises(UserError, match=rf"^`source` must be {accepted}, got {file}, which is neither\.$"):
        read_foreign(file, "auto", Options())
    with pytest.raises(UserError, match=r"must be a \.pkl file of EDM for format=edm, got a file of another kind\.$"):
        read_foreign(file, "edm", Options())


def test_the_first_argument_is_the_source() -> None:
    assert with_source(["a b.pt", "seed=1"]) == ['source="a b.pt"', "seed=1"]
    assert with_source(["source=x", "y"]) == ["source=x", "y"]
    assert with_source(["--help", "schedule"]) == ["--help", "schedule"]


def test_verify_finds_the_outputs_and_the_trajectory_of_the_original(
    imported: Path, checkpoint: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    file = witness(checkpoint[1], tmp_path / "witness.npz", CosineSchedule(100).alpha_bar)
    done = run("verify.py", f"run={imported}", f"against={file}", f"hydra.run.dir={tmp_path / 'log'}")
    assert done.returncode == 0, done.stderr
    names = ["output_float64", "output_float32", "trajectory_float32"]
    assert [line.split()[0] for line in done.stdout.splitlines()] == names
    entry = json.loads((imported / "provenance.json").read_text())["verification"][-1]
    assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert 0 < max(entry["largest_relative_differences"].values()) < 2e-5
    other: Any = {**np.load(file), "output": np.ones((2, 6, 16, 16))}
    np.savez(tmp_path / "other.npz", **other)
    done = run("verify.py", f"run={imported}", f"against={tmp_path / 'other.npz'}", f"hydra.run.dir={tmp_path / 'log'}")
    assert done.returncode == 1
    assert "must equal the original up to tolerance=0.0001, got a relative difference of " in done.stderr
    entry = json.loads((imported / "provenance.json").read_text())["verification"][-1]
    assert max(entry["largest_relative_differences"].values()) > 0.1


def test_a_network_of_edm_is_imported_and_verified_with_its_trajectory(tmp_path: Path) -> None:
    net = EDM(8, 128, (1,), 1, (), label_dim=3)
    tensors = with_filters(random_tensors(net.shapes()))
    write_edm(net, tensors, tmp_path / "network.pkl")
    done = run("import_weights.py", str(tmp_path / "network.pkl"), f"output={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    generator = torch.Generator().manual_seed(3)
    x, noise, none = *torch.randn((2, 2, 3, 8, 8), generator=generator), torch.zeros(0)
    time, label, times = torch.tensor([-1.0, 1.0]), torch.tensor([0, 2]), [80.0, 9.0, 1.0, 0.1]
    h = 80 * noise
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        noise_time = torch.full((2,), t).log() / 4
        output = edm_output(net, tensors, h / (0.25 + t**2) ** 0.5, noise_time, label, none)
        x_0 = 0.25 / (t**2 + 0.25) * h + t * 0.5 / (t**2 + 0.25) ** 0.5 * output
        h = x_0 + s / t * (h - x_0)
    np.savez(
        tmp_path / "witness.npz", x=x, time=time, label=label, output=edm_output(net, tensors, x, time, label, none),
        noise=noise, times=np.array(times), clip=False, samples=h,
    )  # fmt: skip
    done = run("verify.py", f"run={tmp_path / 'run'}", f"against={tmp_path / 'witness.npz'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("e-0") == 3
