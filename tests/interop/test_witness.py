"""Witnesses of original networks, and the scripts that write them."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop import ddpm, openai_unet
from diffusion_lab.interop.computed_witness import Original, computed_witness
from diffusion_lab.interop.imported import Options, build_network
from diffusion_lab.interop.tensors import ForeignTensors
from diffusion_lab.interop.witness import Witness, differences, relative_difference
from diffusion_lab.interop.witness_scripts import SCRIPTS, script
from diffusion_lab.process import CosineSchedule, Epsilon, GaussianProcess, LinearSchedule
from support.foreign_ddpm import DDPM
from support.foreign_openai import random_tensors, unet
from support.foreign_witness import FLAGS, witness

PROCESS: Any = GaussianProcess(CosineSchedule(100))


@cache
def small_network() -> tuple[Any, dict[str, Tensor]]:
    """The imported network of FLAGS, and the tensors of its file."""
    tensors = random_tensors(FLAGS.shapes())
    options = Options(resolution=16, num_heads=2, given=frozenset({"schedule"}), num_timesteps=100)
    imported = openai_unet.read(ForeignTensors(tensors, Path("model.pt"), "adm"), options, rescaled=False)
    network = build_network(imported.network)
    network.load_state_dict(imported.weights)
    return network, tensors


def test_a_witness_of_another_network_differs(tmp_path: Path) -> None:
    network, tensors = small_network()
    other = tensors | {"out.2.bias": tensors["out.2.bias"] + 0.01}
    file = witness(other, tmp_path / "witness.npz", PROCESS.schedule.alpha_bar)
    found = differences(network, Witness.read(file), PROCESS, Epsilon())
    assert 1e-3 < found["output_float64"] < 0.02
    assert found["trajectory_float32"] > 1e-4
    assert relative_difference(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -5.0])) == pytest.approx(0.2)


def test_an_original_in_this_process_is_a_witness_without_a_trajectory() -> None:
    network, tensors = small_network()
    module = SimpleNamespace(network=network, process=PROCESS)
    computed = computed_witness(Original(lambda x, time, label: unet(FLAGS, tensors, x, time, label)), module)
    assert computed.time.tolist() == [0, 33, 66, 99]
    found = differences(network, computed, PROCESS, Epsilon())
    assert set(found) == {"output_float64", "output_float32"}
    assert 0 < max(found.values()) < 2e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": torch.ones(2, 3, 16, 16)}, "must have outputs of the shape [2, 6, 16, 16]"),
        ({"label": torch.tensor([0, 5])}, "must have inputs of this network"),
        ({"label": None}, "must have inputs of this network"),
        ({"x": torch.full((2, 3, 16, 16), float("nan"))}, "x must be finite numbers for one batch"),
        ({"samples": None}, "must have all of the arrays noise, times, clip, samples or none"),
        ({"times": torch.tensor([0, 10])}, "must have a trajectory of this run"),
        ({"x": np.array([{"a": 1}])}, "must be an .npz file of a script"),
        ({"output": None}, "must have the arrays x, time, output, got none named output"),
    ],
)
def test_another_witness_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    network, tensors = small_network()
    file = witness(tensors, tmp_path / "witness.npz", PROCESS.schedule.alpha_bar, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        differences(network, Witness.read(file), PROCESS, Epsilon())


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_valid_python_and_names_its_original(name: str) -> None:
    compile(script(name), name, "exec")
    assert SCRIPTS[name][0] in script(name).partition("\n")[0]
    with pytest.raises(UserError, match="print_script must be adm, "):
        script(name + "s")


ORIGINAL = """
import torch
from support.foreign_ddpm import DDPM, output

class Model(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        model = config.model
        self.net = DDPM(config.data.image_size, model.ch, tuple(model.ch_mult), 1, (8,))
    def load_state_dict(self, tensors):
        self.tensors = tensors
    def forward(self, x, t):
        return output(self.net, self.tensors, x, t)
"""


@pytest.mark.slow
@pytest.mark.full
def test_the_script_for_ddim_writes_a_witness_with_a_trajectory(tmp_path: Path) -> None:
    """The folder has a module with the interface of the original one, whose network is that of the tests."""
    tensors = random_tensors(DDPM(16, 32, (1, 2), 1, (8,)).shapes())
    torch.save([tensors, {}, 1, 2, {f"module.{name}": tensor for name, tensor in tensors.items()}], tmp_path / "c.pth")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "diffusion.py").write_text(ORIGINAL)
    config = "data: {image_size: 16}\nmodel: {ch: 32, ch_mult: [1, 2], in_channels: 3}\n"
    steps = "diffusion: {beta_start: 0.0001, beta_end: 0.02, num_diffusion_timesteps: 1000}\n"
    (tmp_path / "config.yml").write_text(config + steps)
    (tmp_path / "witness.py").write_text(script("ddpm"))
    command = [sys.executable, "witness.py", "witness.npz", "c.pth", "--config", "config.yml"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = ddpm.read(ForeignTensors(tensors, Path("c.pth"), "ddpm"), Options(resolution=16))
    network = build_network(imported.network)
    network.load_state_dict(imported.weights)
    process = GaussianProcess(LinearSchedule())
    found = differences(network, Witness.read(tmp_path / "witness.npz"), process, Epsilon())
    assert len(found) == 3
    assert max(found.values()) < 1e-4
