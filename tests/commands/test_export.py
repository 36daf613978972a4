"""`src/export.py`: folders that other programs load, with the images of our samplers, and their model card."""

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from diffusion_lab.commands.export import export
from diffusion_lab.errors import UserError
from diffusion_lab.interop import safetensors_folder
from diffusion_lab.networks import Condition
from diffusion_lab.paths import CONF
from diffusion_lab.pixels import to_uint8
from diffusion_lab.runs.load import load_module
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.sample_arguments import as_sampler
from support.commands import run
from support.pipelines import GeneratorNoise, as_array, drawn_by_pipeline
from support.written_runs import TINY, write_run

DEFAULTS: Any = OmegaConf.to_container(OmegaConf.load(CONF / "export.yaml"))


def exported(folder: Path, output: Path, **settings: Any) -> Path:
    """Run the command on a run folder.  settings: its settings; names with two underscores are nested."""
    values = {key: value for key, value in DEFAULTS.items() if key not in ("defaults", "hydra")}
    config = OmegaConf.create(
        values | {"time_grid": None, "clipping": None, "variance": None, "run": str(folder), "output": str(output)}
    )
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    export(config)
    return output


LEADING = {"time_grid": {"_target_": "diffusion_lab.samplers.LeadingTimes"}, "sampler__num_steps": 20}


def drawn(module: DiffusionModule, label: int | None = None, **choices: Any) -> np.ndarray:
    """Images of the run from the noise of the generator of the pipelines."""
    sampler = as_sampler(None, module.sampler, module.process, **choices)
    network = module.network
    noise = GeneratorNoise(2, network.in_channels, network.resolution, network.resolution)
    labels = None if label is None else torch.full((2,), label)
    return as_array(sampler.sample(module.denoiser(), noise, labels))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain", "model=unet_tiny", *TINY)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ("model=unet_tiny", *TINY, "conditioning=label", "guidance_scale=2", "clipping=none")
    folder = write_run(tmp_path_factory.mktemp("runs") / "conditional", *overrides)
    (folder / "class_names.json").write_text(json.dumps([f"class {k}" for k in range(10)]))
    return folder


def test_the_pipeline_of_an_export_draws_the_images_of_the_run(trained: Path, tmp_path: Path) -> None:
    folder = exported(trained, tmp_path / "out", format="diffusers", **LEADING)
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    arguments = {"num_inference_steps": 20, "use_clipped_model_output": True}
    images, expected = (
        drawn_by_pipeline(pipeline, **arguments),
        drawn(load_module(trained), num_steps=20, time_grid="leading"),
    )
    assert expected.std() > 0.05
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "DDIMPipeline.from_pretrained" in card
    assert "num_inference_steps=20, eta=0.0, use_clipped_model_output=True" in card


def test_ddpm_pipeline_draws_the_images_of_ancestral_sampling(tmp_path: Path) -> None:
    overrides = ("sampler=ancestral", "sampler.num_steps=20", "variance=fixed_large", "schedule.num_timesteps=100")
    folder = write_run(tmp_path / "run", "model=unet_tiny", *TINY, *overrides)
    pipeline = diffusers.DDPMPipeline.from_pretrained(exported(folder, tmp_path / "out", format="diffusers"))
    images = drawn_by_pipeline(pipeline, num_inference_steps=20)
    np.testing.assert_allclose(images, drawn(load_module(folder)), rtol=0, atol=1e-5)


def test_a_time_grid_without_a_counterpart_is_replaced_and_noted(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported(trained, tmp_path / "out", format="diffusers", sampler__num_steps=20)
    note = "The pipeline samples at the times of time_grid=leading instead of the time grid of the run (UniformTimes)."
    assert note in caplog.messages
    assert note in (folder / "README.md").read_text()
    assert json.loads((folder / "scheduler/scheduler_config.json").read_text())["timestep_spacing"] == "leading"


def test_an_export_of_one_class_draws_the_images_of_this_class(conditional: Path, tmp_path: Path) -> None:
    folder = exported(conditional, tmp_path / "out", format="diffusers", label=3, **LEADING)
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    module = load_module(conditional)
    images = drawn_by_pipeline(pipeline, num_inference_steps=20)
    expected = drawn(module, label=3, num_steps=20, time_grid="leading")
    assert abs(expected - drawn(module, label=4, num_steps=20, time_grid="leading")).max() > 1e-2
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)
    unlabeled = exported(conditional, tmp_path / "none", format="diffusers", label="none", **LEADING)
    images = drawn_by_pipeline(diffusers.DDIMPipeline.from_pretrained(unlabeled), num_inference_steps=20)
    expected = drawn(module, label=module.labels.null, num_steps=20, time_grid="leading")
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)


def executed(card: str) -> dict[str, Any]:
    """Execute the Python code in a card in the current folder, and return its variables."""
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("\n```")[0], names)
    return names


def saved(number: int) -> np.ndarray:
    with Image.open(f"{number}.png") as picture:
        return np.asarray(picture)


def test_the_code_in_the_card_of_a_conditional_network_saves_its_images(
    conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(conditional, tmp_path / "out", format="diffusers", **LEADING)
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = executed(card)
    module = load_module(conditional)
    noise = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sampler = as_sampler(None, module.sampler, module.process, num_steps=20, time_grid="leading")
    expected = sampler.sample(module.denoiser(), noise, torch.arange(4))
    torch.testing.assert_close(names["images"], expected, rtol=0, atol=1e-5)
    assert abs(saved(3).astype(int) - to_uint8(expected)[3, 0].numpy()).max() <= 1
    assert "guidance_scale=2" in card
    assert str(tmp_path) not in card


def test_the_code_in_the_card_of_an_unconditional_network_saves_gray_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (exported(trained, tmp_path / "out", format="diffusers", **LEADING) / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    executed(card)
    assert saved(3).shape == (28, 28)


def test_the_code_in_the_card_of_a_safetensors_folder_saves_the_images_of_the_run(
    conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(conditional, tmp_path / "my model", format="safetensors")
    card = (folder / "README.md").read_text()
    assert "diffusion-lab import 'my model' format=safetensors output=my_model_run\n" in card
    assert "pip install '.[export]'" in card
    assert '# the classes in turn; one class: module.sample(8, label="class 0", guidance_scale=2)\n' in card
    listed = ", ".join(f"{k} class {k}" for k in range(10))
    assert f"| numbers and names of the classes | {listed} |" in card
    assert str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model_run").symlink_to(conditional)
    executed(card)
    expected = load_module(conditional).sample(8, guidance_scale=2.0)
    assert expected.abs().max() > 1  # the run does not clip
    np.testing.assert_array_equal(saved(7), to_uint8(expected)[7, 0].numpy())


def test_all_files_of_an_export_have_the_permissions_of_the_umask(trained: Path, tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        folders = [exported(trained, tmp_path / name, format=name) for name in ("safetensors", "diffusers")]
    finally:
        os.umask(umask)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for folder in folders for path in folder.rglob("*.*")}
    assert {"model.safetensors", "diffusion_pytorch_model.safetensors", "README.md"} < modes.keys()
    assert set(modes.values()) == {"0o640"}


@pytest.mark.full
def test_a_learned_variance_is_left_out_of_an_export_to_diffusers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "model=unet_tiny", *TINY, "objective=hybrid")
    output = exported(folder, tmp_path / "out", format="diffusers", **LEADING)
    images = drawn_by_pipeline(
        diffusers.DDIMPipeline.from_pretrained(output), num_inference_steps=20, use_clipped_model_output=True
    )
    expected = drawn(load_module(folder), num_steps=20, time_grid="leading")
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-5)
    assert "the output channels for the variance are left out" in (output / "README.md").read_text()


@pytest.mark.parametrize("weights", [None, "raw"])
def test_the_safetensors_of_a_run_are_read_back_to_the_bit(
    conditional: Path, weights: str | None, tmp_path: Path
) -> None:
    folder = exported(conditional, tmp_path / "out", format="safetensors", weights=weights)
    settings, state = safetensors_folder.read(folder)
    module = load_module(conditional)
    expected = module.sampled_network(weights).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    config = OmegaConf.to_container(OmegaConf.load(conditional / "config.yaml"))
    assert isinstance(config, dict)
    for name in ("model", "schedule", "prediction", "sampler", "space", "conditioning", "guidance_scale"):
        assert settings[name] == config[name]
    assert settings["step"] == 40
    assert settings["weights"]["kind"] == ("raw" if weights else "ema")


@pytest.mark.full
def test_an_onnx_file_has_the_outputs_of_the_network(
    conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    folder = exported(conditional, tmp_path / "out", format="onnx")
    x_t, time, label = torch.randn(3, 1, 28, 28), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 10, 9])
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    inputs: dict[str, Tensor] = {"x_t": x_t, "time": time, "label": label}
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = load_module(conditional).denoiser().network(x_t, time, Condition(label))
    np.testing.assert_allclose(output, expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))
    monkeypatch.chdir(folder)
    assert executed((folder / "README.md").read_text())["output"].shape == (4, 1, 28, 28)


def test_the_card_states_data_recipe_weights_results_and_license(trained: Path, tmp_path: Path) -> None:
    fingerprint = {
        "metric": {"name": "FrechetDistance"},
        "num_samples": 100,
        "weights": {"kind": "ema", "name": "main"},
    }
    others = [fingerprint | {"weights": {"kind": "raw"}}, fingerprint]
    numbers = [{"name": f"fd_{k}", "value": 1.25 + k, "fingerprint": each} for k, each in enumerate(others)]
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    record = {"run": str(trained), "checkpoint": "last.ckpt", "step": 40, "numbers": numbers}
    (evaluation / "metrics.json").write_text(json.dumps(record))
    folder = exported(
        trained, tmp_path / "out", format="safetensors", license="mit", numbers=[str(evaluation)], num_images=4
    )
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\n')
    assert "| fd_1 | 2.25 |" in card
    assert "fd_0" not in card  # of the trained weights, which are not exported
    assert '"num_samples": 100' in card
    assert "the exponential moving average `main` of the weights (EMA), after 40 training steps" in card
    assert "| data set | fashion_mini |" in card
    assert "| schedule | CosineSchedule(" in card
    assert "    model.channels=8\n" in card
    assert (folder / "samples.png").is_file()
    (evaluation / "metrics.json").write_text(json.dumps(record | {"step": 39}))
    with pytest.raises(
        UserError, match=r"numbers=... must list evaluations of the exported weights of plain at step 40"
    ):
        exported(trained, tmp_path / "other", format="safetensors", numbers=[str(evaluation)])
    assert not (tmp_path / "other").exists()


def test_a_run_without_a_counterpart_in_diffusers_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "model=unet_quick", "model.channels=8", "callbacks.measure_distance=null")
    with pytest.raises(UserError, match=r"model.patch_size must be 1 .*, got 2; format=safetensors exports every"):
        exported(folder, tmp_path / "out", format="diffusers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "keras"}, r"`format` must be diffusers, safetensors, onnx, got keras"),
        ({"format": "onnx", "label": 3}, r"`label` must be null for format=onnx, which keeps the labels, got 3"),
        ({"num_images": -1}, r"num_images must be a whole number in 0..1024 or null, got -1"),
        ({"weights": "narrow"}, r"`weights` must be main or raw, got narrow"),
        ({"label": 3}, r"`label` must be null"),
        ({"push": "a/b/c"}, r"`push` must be the name of a repository on the hub, such as me/my_model, got a/b/c"),
    ],
)
def test_an_invalid_setting_is_rejected_with_a_message(
    trained: Path, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        exported(trained, tmp_path / "out", **{"format": "diffusers"} | settings)
    with pytest.raises(UserError, match=r"`output` must be a folder that does not exist"):
        exported(trained, tmp_path, format="diffusers")


def test_the_command_writes_its_folder_and_prints_its_files(trained: Path, tmp_path: Path) -> None:
    arguments = (f"run={trained}", "format=safetensors", f"output={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}")
    peers = str(Path(diffusers.__file__).parents[1])
    done = run("export.py", *arguments, PYTHONPATH=peers)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("out: README.md, config.json, model.safetensors")
    _, state = safetensors_folder.read(tmp_path / "out")
    assert sum(tensor.numel() for tensor in state.values()) == 44_969
