"""Scripts that a user runs where the original code can be imported; each writes a witness, see `witness`.

A script consists of a start that is the same for all, a middle that loads the original network with the original code,
and an end that computes the outputs. The middle defines `load(parser)`, which returns an `Original`.
"""

from diffusion_lab.errors import UserError

START = '''"""Write a witness of {name}: python witness.py OUTPUT.npz CHECKPOINT {flags}

{note}
"""

import argparse
from types import SimpleNamespace

import numpy as np
import torch


'''

END = """

@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("checkpoint")
    original = load(parser)
    generator = torch.Generator().manual_seed(0)
    shape = (4, original.channels, original.resolution, original.resolution)
    x = torch.randn(shape, generator=generator)
    arrays = {"x": x, "time": original.time}
    if original.num_classes:
        arrays["label"] = torch.randint(original.num_classes, (4,), generator=generator)
    if original.low_resolution:
        side = original.low_resolution
        arrays["low_resolution"] = torch.randn((4, original.channels, side, side), generator=generator).clamp(-1, 1)
    inputs = arrays.get("label"), arrays.get("low_resolution")
    arrays["output"] = original.network(x, original.time, *inputs)
    if original.trajectory is not None:
        arrays["noise"] = torch.randn(shape, generator=generator)
        arrays["times"], arrays["clip"], arrays["samples"] = original.trajectory(arrays["noise"], *inputs)
    arguments = parser.parse_args()
    np.savez(arguments.output, **{name: np.asarray(array) for name, array in arrays.items()})


if __name__ == "__main__":
    main()
"""

OPENAI = """def load(parser):
    from {package} import script_util as util

    parser.add_argument("--super_resolution", action="store_true", help="the flags are those of an upsampler")
    is_upsampler = parser.parse_known_args()[0].super_resolution
    defaults = (util.sr_model_and_diffusion_defaults if is_upsampler else util.model_and_diffusion_defaults)()
    util.add_dict_to_argparser(parser, defaults)
    arguments = parser.parse_args()
    flags = util.args_to_dict(arguments, defaults.keys())
    flags.update(timestep_respacing="ddim20", **({{"use_fp16": False}} if "use_fp16" in flags else {{}}))
    create = util.sr_create_model_and_diffusion if is_upsampler else util.create_model_and_diffusion
    model, diffusion = create(**flags)
    model.load_state_dict(torch.load(arguments.checkpoint, map_location="cpu", weights_only=True))
    model.eval()
    scale = 1000.0 / arguments.diffusion_steps if arguments.rescale_timesteps else 1.0

    def options(label, low_resolution):
        given = {{"y": label, "low_res": low_resolution}}
        return {{name: value for name, value in given.items() if value is not None}}

    def network(x, time, label, low_resolution):
        return model(x, time.float() * scale, **options(label, low_resolution))

    def trajectory(noise, label, low_resolution):
        samples = diffusion.ddim_sample_loop(
            model, tuple(noise.shape), noise=noise, clip_denoised=True, model_kwargs=options(label, low_resolution),
            device="cpu", eta=0.0,
        )
        return torch.tensor(diffusion.timestep_map[::-1]), True, samples

    resolution = arguments.large_size if is_upsampler else arguments.image_size
    last = arguments.diffusion_steps - 1
    return SimpleNamespace(
        network=network, trajectory=trajectory, channels=3, resolution=resolution,
        num_classes=1000 if arguments.class_cond else 0, low_resolution=arguments.small_size if is_upsampler else 0,
        time=torch.tensor([0.0, last // 3, 2 * last // 3, last]),
    )
"""

CLASSIFIER = """def load(parser):
    from guided_diffusion import script_util as util

    defaults = util.classifier_defaults()
    util.add_dict_to_argparser(parser, defaults)
    arguments = parser.parse_args()
    model = util.create_classifier(**{**util.args_to_dict(arguments, defaults.keys()), "classifier_use_fp16": False})
    model.load_state_dict(torch.load(arguments.checkpoint, map_location="cpu", weights_only=True))
    model.eval()
    return SimpleNamespace(
        network=lambda x, time, label, low_resolution: model(x, time), trajectory=None, channels=3,
        resolution=arguments.image_size, num_classes=0, low_resolution=0, time=torch.tensor([0.0, 333.0, 666.0, 999.0]),
    )
"""

DDPM = """def load(parser):
    import yaml
    from models.diffusion import Model

    parser.add_argument("--config", required=True, help="file of the folder configs of ddim, such as cifar10.yml")
    arguments = parser.parse_args()

    def as_namespace(node):
        return SimpleNamespace(**{k: as_namespace(v) for k, v in node.items()}) if isinstance(node, dict) else node

    with open(arguments.config) as file:
        config = as_namespace(yaml.safe_load(file))
    model = Model(config)
    states = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    states = states[-1] if isinstance(states, (list, tuple)) else states
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in states.items()})
    model.eval()
    settings = config.diffusion
    betas = torch.linspace(
        settings.beta_start, settings.beta_end, settings.num_diffusion_timesteps, dtype=torch.float64
    )
    alpha_bar = torch.cumprod(1 - betas, dim=0).tolist() + [1.0]  # the last one, at index -1, is that of clean images

    def trajectory(noise, label, low_resolution):
        times = list(range(0, len(betas), len(betas) // 20))[::-1]
        x = noise
        for t, s in zip(times, [*times[1:], -1]):
            epsilon = model(x, torch.full((len(x),), t))
            x_0 = (x - (1 - alpha_bar[t]) ** 0.5 * epsilon) / alpha_bar[t] ** 0.5
            x = alpha_bar[s] ** 0.5 * x_0 + (1 - alpha_bar[s]) ** 0.5 * epsilon
        return torch.tensor(times), False, x

    return SimpleNamespace(
        network=lambda x, time, label, low_resolution: model(x, time), trajectory=trajectory,
        channels=config.model.in_channels, resolution=config.data.image_size, num_classes=0, low_resolution=0,
        time=torch.tensor([0.0, 333.0, 666.0, 999.0]),
    )
"""

EDM = """def load(parser):
    import pickle

    import dnnlib  # noqa: F401  (the checkpoint is a pickle of the original code: run this with files that you trust)

    arguments = parser.parse_args()
    with open(arguments.checkpoint, "rb") as file:
        net = pickle.load(file)["ema"].eval()

    def one_hot(label):
        return None if label is None else torch.eye(net.label_dim)[label]

    def trajectory(noise, label, low_resolution):
        times = [80 * 0.7**k for k in range(20)]
        x = noise * times[0]
        for t, s in zip(times, [*times[1:], 0.0]):
            x_0 = net(x, torch.full((len(x),), t), one_hot(label)).float()
            x = x_0 + s / t * (x - x_0)
        return torch.tensor(times, dtype=torch.float64), False, x

    return SimpleNamespace(
        network=lambda x, time, label, low_resolution: net.model(x, time, one_hot(label)),
        trajectory=trajectory if hasattr(net, "sigma_data") else None, channels=net.img_channels,
        resolution=net.img_resolution, num_classes=net.label_dim, low_resolution=0,
        time=torch.tensor([-1.5, -0.5, 0.3, 1.0]),
    )
"""

DIT = """def load(parser):
    from diffusion import create_diffusion
    from models import DiT_models

    parser.add_argument("--model", default="DiT-XL/2", choices=list(DiT_models))
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--num-classes", type=int, default=1000)
    arguments = parser.parse_args()
    side = arguments.image_size // 8
    model = DiT_models[arguments.model](input_size=side, num_classes=arguments.num_classes)
    content = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(content.get("ema", content))
    model.eval()
    diffusion = create_diffusion("ddim20")

    def trajectory(noise, label, low_resolution):
        samples = diffusion.ddim_sample_loop(
            model.forward, tuple(noise.shape), noise=noise, clip_denoised=False, model_kwargs={"y": label},
            device="cpu", eta=0.0,
        )
        return torch.tensor(diffusion.timestep_map[::-1]), False, samples

    return SimpleNamespace(
        network=lambda x, time, label, low_resolution: model(x, time, label), trajectory=trajectory,
        channels=model.in_channels, resolution=side, num_classes=arguments.num_classes, low_resolution=0,
        time=torch.tensor([0.0, 333.0, 666.0, 999.0]),
    )
"""

_FLAGS = "[--FLAG VALUE ...]"
_README = """The flags are those of image_sample.py in the README.md of the original code. Those of super_res_sample.py
also need --super_resolution."""

SCRIPTS = {
    "adm": ("openai/guided-diffusion", _FLAGS, _README,
            OPENAI.format(package="guided_diffusion")),
    "adm_classifier": ("a classifier of openai/guided-diffusion", _FLAGS,
                       "The flags are those that begin with classifier_, and image_size.", CLASSIFIER),
    "improved_ddpm": ("openai/improved-diffusion", _FLAGS, _README,
                      OPENAI.format(package="improved_diffusion")),
    "ddpm": ("ermongroup/ddim", "--config configs/cifar10.yml", "Run it in the folder of the original code.", DDPM),
    "edm": ("NVlabs/edm", "", "Run it in the folder of the original code.", EDM),
    "dit": ("facebookresearch/DiT", "[--model DiT-XL/2]", "Run it in the folder of the original code.", DIT),
}  # fmt: skip
"""Name of a script -> the original code, the arguments of the script, a note for the user, and the middle."""


def script(name: str) -> str:
    """Return the text of a script.  Raises UserError for an unknown name."""
    if name not in SCRIPTS:
        raise UserError(f"print_script must be {', '.join(SCRIPTS)} or null, got {name}.")
    code, flags, note, middle = SCRIPTS[name]
    return START.format(name=code, flags=flags, note=note) + middle + END
