"""Export the network of a run to `diffusers`, safetensors or ONNX, with a model card.

python src/export.py run=logs/train/RUN format=diffusers output=FOLDER license=mit
python src/export.py run=logs/train/RUN format=diffusers output=FOLDER label=sneaker     # a network of one class
python src/export.py run=logs/train/RUN format=safetensors output=FOLDER weights=raw num_images=16
python src/export.py run=logs/train/RUN format=onnx output=FOLDER
python src/export.py run=logs/train/RUN format=diffusers output=FOLDER push=me/my_model   # requires a token

Results: the folder `output` contains the weights, their config, and the model card README.md.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_folder
from diffusion_lab.reporting.model_card import GRID, ModelCard
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import card_facts, class_names
from diffusion_lab.runs.find import Target, find_targets
from diffusion_lab.runs.setup import sampling as sampling_setup

if TYPE_CHECKING:
    from diffusion_lab.interop.diffusers_export import DiffusersFolder, TrainedNetwork
    from diffusion_lab.interop.snippets import Usage
    from diffusion_lab.networks import Network
    from diffusion_lab.training.diffusion_module import DiffusionModule

logger = logging.getLogger(__name__)

FORMATS = {"diffusers": "diffusers", "safetensors": "diffusion-lab", "onnx": "onnx"}
"""Format -> library that loads it."""

NOT_EXPORTED: dict[str, Any] = {
    "cascade": [],
    "cascade_steps": None,
    "low_resolution_noise": 0.0,
    "guidance": {},
    **dict.fromkeys(("guidance_scale", "guide", "classifier", "classifier_scale")),
    "data": {"path": None},
}
"""Settings of `sample` that an export does not have."""


def export(config: DictConfig) -> None:
    """Write the folder of the export, and upload it if `push` names a repository."""
    _require_settings(config)
    target = _target(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    settings = OmegaConf.create(plain | NOT_EXPORTED)
    trained = sampling_setup.checked_config(settings, target)
    module, step = sampling_setup.load_module(settings, trained, target)
    module.class_names = class_names.load(target.folder)
    output, run = Path(config.output), Run(config, target, trained, module, step)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output) as folder:
        card = run.write(folder)
        (folder / "README.md").write_text(card.text(), encoding="utf-8")
    for note in card.notes:
        logger.info(note)
    files = ", ".join(str(file.relative_to(output)) for file in sorted(output.rglob("*")) if file.is_file())
    print(terminal_text(f"{target.folder} at step {step:,} is exported to {output}: {files}"), flush=True)
    if config.push is not None:
        from diffusion_lab.interop import hub

        print(f"uploaded to {terminal_text(hub.push(output, config.push, private=config.private))}", flush=True)


def _require_settings(config: DictConfig) -> None:
    """Raise UserError for settings that are missing, have other values, or do not fit each other."""
    examples = {"run": "logs/train/RUN", "format": "diffusers", "output": "FOLDER"}
    for name, example in examples.items():
        if OmegaConf.is_missing(config, name) or config[name] is None:
            raise UserError(f"`{name}` must be given ({name}={example}), got no value.")
    if config.format not in FORMATS:
        raise UserError(f"`format` must be {', '.join(FORMATS)}, got {config.format}.")
    if Path(config.output).exists():
        raise UserError(f"`output` must be a folder that does not exist, got {config.output}.")
    if config.label is not None and config.format != "diffusers":
        raise UserError(f"`label` must be null for format={config.format}, which keeps the labels, got {config.label}.")
    count = config.num_images
    if count is not None and (type(count) is not int or not 0 <= count <= 1024):
        raise UserError(f"num_images must be a whole number in 0..1024 or null, got {count}.")
    if type(config.private) is not bool:
        raise UserError(f"`private` must be true or false, got {config.private}.")
    if config.license is not None and not isinstance(config.license, str):
        raise UserError(f"`license` must be a text such as mit, or null, got {config.license}.")
    if config.push is not None:
        from diffusion_lab.interop import hub

        hub.require_hub(str(config.push))
    if config.format == "onnx":
        from diffusion_lab.interop import onnx_file

        onnx_file.require_packages()


def _target(config: DictConfig) -> Target:
    target, *others = find_targets(config)
    if others:
        raise UserError(f"`run` and `checkpoint` must select one checkpoint, got {len(others) + 1}.")
    return target


class Run:
    """A run that is exported: its config with the sampling settings of the export, its module and its step."""

    def __init__(
        self, config: DictConfig, target: Target, trained: DictConfig, module: "DiffusionModule", step: int
    ) -> None:
        self.config, self.target, self.trained, self.module, self.step = config, target, trained, module, step
        try:
            self.network: Network = module.sampled_network(config.weights)
        except ValueError as error:
            raise UserError(str(error)) from error
        if config.num_images and self.network.condition_channels:
            raise UserError(
                f"num_images must be null or 0 for a network that is conditioned on images, got {config.num_images}; "
                "without it, the card shows the newest grid of the run."
            )

    @property
    def name(self) -> str:
        """The name by which others load the export: its repository, or the name of its folder."""
        return str(self.config.push or Path(self.config.output).name)

    def write(self, folder: Path) -> ModelCard:
        """Write the files of the format and the sample grid to a folder.  Returns the card."""
        writers = {"diffusers": self._write_diffusers, "safetensors": self._write_plain, "onnx": self._write_onnx}
        usage, notes = writers[self.config.format](folder)
        return self._card(usage, [*notes, *self._guidance_notes()], has_grid=self._write_grid(folder))

    def _guidance_notes(self) -> list[str]:
        """Return what the export does not contain of the guidance of the run, one sentence each."""
        scale, notes = self.trained.guidance_scale, list[str]()
        if scale != 1 and self.config.format != "safetensors":
            notes.append(f"The run samples with guidance_scale={scale}, which the exported network does not contain.")
        others = [name for name in ("guide", "classifier") if self.trained.get(name) not in (None, "none")]
        notes += [f"The run samples with the network of another run as `{name}`, which is left out." for name in others]
        return notes

    def _write_diffusers(self, folder: Path) -> tuple[list["Usage"], list[str]]:
        from diffusion_lab.interop import snippets
        from diffusion_lab.interop.diffusers_export import diffusers_folder

        trained = self._trained_network()
        content: DiffusersFolder = diffusers_folder(trained, label=self._label(), class_names=self.module.class_names)
        content.write(folder, self.module.space)
        notes = snippets.diffusers_notes(trained, content)
        if self.config.label is not None:
            notes.append(f"The network is that of the class {self.config.label}; the run is conditioned on classes.")
        return snippets.diffusers_usage(content, trained, self.name), notes

    def _write_plain(self, folder: Path) -> tuple[list["Usage"], list[str]]:
        from diffusion_lab.interop import safetensors_folder, snippets

        names = self.module.class_names
        label = names[(self.module.trained_classes or range(len(names)))[0]] if names else None
        settings = self._settings(folder)
        safetensors_folder.write(folder, settings, self.network.state_dict())
        return snippets.own_usage(self.name, self.network, settings["guidance_scale"], label), []

    def _write_onnx(self, folder: Path) -> tuple[list["Usage"], list[str]]:
        from diffusion_lab.interop import onnx_file, snippets

        onnx_file.require_exportable(self.network)
        difference = onnx_file.write(self.network.float().cpu(), folder)
        labels = ["label"] if self.network.labels.num_classes else []
        note = f"The outputs of onnxruntime and torch differ by {difference:.1e}, relative to the largest output."
        return snippets.onnx_usage(["x_t", "time", *labels], self.network), [note]

    def _trained_network(self) -> "TrainedNetwork":
        from diffusion_lab.interop.diffusers_export import TrainedNetwork

        node: Any = OmegaConf.to_container(self.trained.model)
        module = self.module
        return TrainedNetwork(
            node, self.network.state_dict(), module.process, module.prediction, module.sampler, module.space
        )

    def _label(self) -> int | None:
        """Return the number of the class that `label` names.  Raises UserError for a class that does not exist."""
        from diffusion_lab.data.classes import as_label

        given, labels = self.config.label, self.network.labels
        if given is None:
            return None
        try:
            if str(given).lower() == "none":
                return labels.null
            label = as_label(given, labels.num_classes, self.module.class_names, "null")
        except ValueError as error:
            raise UserError(str(error)) from error
        if type(label) is not int:
            raise UserError(f"`label` must be one class, none or null, got {given}.")
        return label

    def _settings(self, folder: Path) -> dict[str, Any]:
        """Return the settings of the run as plain values; the autoencoder of a local folder is copied."""
        from diffusion_lab.interop import safetensors_folder
        from diffusion_lab.interop.diffusers_export import save_autoencoder
        from diffusion_lab.latents import Latents

        plain: Any = OmegaConf.to_container(self.trained)
        settings = {name: plain[name] for name in safetensors_folder.NODES if name in plain and name != "data"}
        space = self.module.space
        source = (plain["space"] or {}).get("autoencoder", {}).get("pretrained_model_name_or_path")
        if isinstance(space, Latents) and Path(str(source)).is_dir():
            save_autoencoder(space, folder / safetensors_folder.AUTOENCODER)
            settings["space"] = safetensors_folder.with_autoencoder(plain["space"], safetensors_folder.AUTOENCODER)
        if plain.get("guide") not in (None, "none"):  # the network has no unconditional part
            settings["guidance_scale"] = 1.0
        settings["guidance"] = {name: (plain.get("guidance") or {}).get(name) for name in safetensors_folder.GUIDANCE}
        settings["data"] = {key: plain["data"][key] for key in ("channels", "resolution", "num_classes")}
        return settings | {
            "class_names": list(self.module.class_names),
            "step": self.step,
            "weights": self.module.weights_protocol(self.config.weights),
        }

    def _write_grid(self, folder: Path) -> bool:
        """Write the sample grid: new images, or a copy of the newest grid of the run.  Returns whether there is one."""
        from diffusion_lab.reporting.image_grids import grid, save_picture

        if self.config.num_images is None:
            found = sorted((self.target.folder / "samples").glob("step_*.png"))
            if found:
                shutil.copyfile(found[-1], folder / GRID)
            return bool(found)
        if self.config.num_images:
            images = self.module.eval().sample(range(self.config.num_images), weights=self.config.weights)
            save_picture(grid(images, num_columns=8), folder / GRID)
        return bool(self.config.num_images)

    def _card(self, usage: Sequence["Usage"], notes: list[str], *, has_grid: bool) -> ModelCard:
        weights = self.module.weights_protocol(self.config.weights)
        folder = self.target.folder
        return ModelCard(
            title=Path(self.name).name,
            license=self.config.license,
            library=FORMATS[self.config.format],
            summary=self._summary(weights),
            usage=usage,
            notes=notes,
            data=card_facts.data_facts(self.trained, self.module),
            recipe=card_facts.recipe_facts(self.trained, self.step),
            sampling=card_facts.sampling_facts(self.module, self.trained.guidance_scale),
            overrides=card_facts.training_overrides(folder),
            results=card_facts.results(self.config.numbers, folder, self.step, weights),
            has_grid=has_grid,
        )

    def _summary(self, weights: dict[str, Any]) -> list[str]:
        """Return sentences about the network and the exported weights."""
        network = self.network
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        side, classes = network.resolution, network.labels.num_classes
        kind = f"conditioned on {classes} classes" if classes else "unconditional"
        average = "the trained weights (raw), not an average"
        if weights["kind"] == "ema":
            average = f"the exponential moving average `{weights['name']}` of the weights (EMA)"
        return [
            f"A diffusion model, {kind}: {type(network).__name__} with {num_parameters:,} parameters for inputs of "
            f"{network.in_channels} x {side} x {side}, trained with Diffusion Lab.",
            f"The weights are {average}, after {self.step:,} training steps.",
        ]


def main() -> None:
    entry.entry("export", export)


if __name__ == "__main__":
    main()
