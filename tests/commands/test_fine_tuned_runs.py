"""`src/train.py init=RUN`, with frozen parameters and adapters, in separate processes."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab.runs.load import load_module
from support.commands import ROOT, run, table, train
from support.written_runs import TINY, write_run

PEERS = str(Path(sys.prefix, "peers"))

FEW = [
    "model=unet_tiny", *TINY, "data.batch_size=8", "data.max_images=100", "schedule.num_timesteps=8",
    "callbacks.sample_images=null", "trainer.precision=32-true", "callbacks.save_last.every_n_steps=2",
    "trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "source", "model=unet_tiny", *TINY, "schedule.num_timesteps=8")


def state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return content


def require_equal(folder: Path, other: Path) -> None:
    weights, expected = state(folder), state(other)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    loss, expected_loss = ([row["loss"] for row in table(each / "metrics.csv")] for each in (folder, other))
    assert loss == expected_loss


def test_a_fine_tuned_run_resumes_to_the_bit_after_its_source_has_vanished(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "logs" / "train" / "other")
    tuned = [*FEW, "freeze=down.*", f"logs={tmp_path / 'logs'}"]
    whole = train(*tuned, f"init={source}", "trainer.max_steps=4", f"hydra.run.dir={tmp_path / 'whole'}")
    first = train(*tuned, "init=last", "trainer.max_steps=2", "hydra.run.dir=first", cwd=tmp_path)
    assert (whole.returncode, first.returncode) == (0, 0), whole.stderr + first.stderr
    shutil.rmtree(tmp_path / "logs" / "train" / "other")
    rest = train(f"resume={tmp_path / 'first'}", "trainer.max_steps=4")
    assert rest.returncode == 0, rest.stderr
    assert "init:" not in rest.stderr
    require_equal(tmp_path / "first", tmp_path / "whole")

    config = OmegaConf.load(tmp_path / "first" / "config.yaml")
    assert config.init == str(tmp_path / "logs" / "train" / "other")
    record = json.loads((tmp_path / "first" / "initialization.json").read_text())
    assert (record["step"], record["made_anew"]) == (40, [])
    start = state(source)
    for name, tensor in state(tmp_path / "first").items():
        prefix, is_frozen, parameter = name.partition("down.")
        if is_frozen and prefix in ("network.", "ema.networks.main."):
            assert torch.equal(tensor, start[f"ema.networks.main.down.{parameter}"])


@pytest.mark.full
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_same_weights(
    source: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    done = train(*FEW, "data.channels=3", f"init={other}", f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert "made anew: conv_in.weight, conv_out.weight, conv_out.bias (because of model.in_channels" in done.stderr
    shutil.rmtree(other)
    killed = shutil.copytree(tmp_path / "run", tmp_path / "killed")
    (killed / "checkpoints" / "last.ckpt").unlink()
    again = train(f"resume={killed}")
    assert again.returncode == 0, again.stderr
    assert "has no checkpoint yet; the run starts from its first step" in again.stderr
    require_equal(killed, tmp_path / "run")


@pytest.mark.full
def test_adapters_of_an_imported_run_are_trained_resumed_sampled_and_exported(source: Path, tmp_path: Path) -> None:
    def command(script: str, *arguments: str) -> str:
        done = run(script, *arguments, cwd=tmp_path, PYTHONPATH=PEERS)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    command("export.py", f"run={source}", "format=safetensors", "output=exported", "num_images=0")
    command("import_weights.py", "exported", "output=imported")
    refused = run("train.py", "resume=imported", cwd=tmp_path)
    assert f"init={tmp_path / 'imported'} starts a new run from its weights." in refused.stderr

    tuned = [*FEW, "init=imported", "lora.rank=2", "ema=power", "callbacks.save_averages.every_n_steps=1"]
    printed = command("train.py", *tuned, "trainer.max_steps=4", "hydra.run.dir=whole")
    assert "training 2,032 of 47,001 " in printed
    command("train.py", *tuned, "trainer.max_steps=2", "hydra.run.dir=adapted")
    shutil.rmtree(tmp_path / "imported")
    command("train.py", "resume=adapted", "trainer.max_steps=4")
    require_equal(tmp_path / "adapted", tmp_path / "whole")

    module, adapters = load_module(tmp_path / "adapted"), tmp_path / "adapted" / "checkpoints" / "lora"
    assert (adapters / "adapter_model.safetensors").stat().st_size < 40_000
    for images in ("adapted", "again"):
        command("sample.py", "run=adapted", "num_images=2", "sampler.num_steps=2", f"output_folder=of_{images}")
        if images == "adapted":
            command("export.py", "run=adapted", "format=safetensors", "output=merged", "num_images=0")
            shutil.move(tmp_path / "adapted", tmp_path / "moved")
            command("import_weights.py", "merged", "output=adapted")
    pictures = [(tmp_path / f"of_{images}" / "images" / "000000.png").read_bytes() for images in ("adapted", "again")]
    assert pictures[0] == pictures[1]
    merged: Any = load_module(tmp_path / "adapted").network.state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in module.ema.network.state_dict().items())
    command("reconstruct_ema.py", "run=moved", "length=0.1")
    forked = run("train.py", "resume=moved", "fork=true", "lora.rank=3", cwd=tmp_path, PYTHONPATH=PEERS)
    assert "fork=true must keep the settings of all parts with a state (model, conditioning, ema, times, lora)" in (
        forked.stderr
    )


@pytest.mark.full
def test_a_classifier_starts_from_another_one_and_a_fork_may_freeze_more(tmp_path: Path) -> None:
    settings = ["data.batch_size=8", "trainer.max_steps=2", "callbacks.measure_accuracy=null", "data.max_images=100",
                "model=half_unet_quick", "model.channels=8"]  # fmt: skip
    assert run("train_classifier.py", *settings, f"hydra.run.dir={tmp_path / 'first'}").returncode == 0
    tuned = run("train_classifier.py", *settings, f"init={tmp_path / 'first'}", "freeze=down.*",
                f"hydra.run.dir={tmp_path / 'tuned'}")  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    assert "(weights raw, step 2)" in tuned.stderr
    first, second = state(tmp_path / "first"), state(tmp_path / "tuned")
    assert torch.equal(second["network.down.0.0.conv_in.weight"], first["network.down.0.0.conv_in.weight"])
    assert not torch.equal(second["network.conv_in.weight"], first["network.conv_in.weight"])

    fork = run("train_classifier.py", f"resume={tmp_path / 'tuned'}", "fork=true", "freeze=[down.*,middle.*]",
               "trainer.max_steps=4", f"hydra.run.dir={tmp_path / 'fork'}")  # fmt: skip
    assert fork.returncode == 0, fork.stderr
    assert "the state of the optimizer in the checkpoint (torch.optim.adam.Adam) is not used" in fork.stderr
    name = "network.middle.0.conv_in.weight"
    assert torch.equal(state(tmp_path / "fork")[name], second[name])
    refused = train(f"init={tmp_path / 'first'}", "model=unet_quick", cwd=ROOT)
    assert "`init` must be a run with a network of the class UNet" in refused.stderr
