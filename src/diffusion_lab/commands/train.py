"""Train one diffusion model, or several models in a sweep.

python src/train.py experiment=quickstart
python src/train.py schedule=cosine data=cifar10
python src/train.py -m schedule=linear,cosine model=unet_tiny,unet_small
python src/train.py resume=last
"""

from functools import partial

from diffusion_lab.commands import entry
from diffusion_lab.runs import resume as run_resume
from diffusion_lab.runs import train as run_training


def main() -> None:
    prepare = partial(run_resume.restore_command_line, "train")
    entry.entry("train", run_training.train, prepare, keeps_status=True)


if __name__ == "__main__":
    main()
