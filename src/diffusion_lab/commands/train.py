"""Train one diffusion model, or several models in a sweep.

python src/train.py experiment=quickstart                          # a model of clothing images, in minutes on a laptop
python src/train.py schedule=cosine data=cifar10                   # one run
python src/train.py -m schedule=linear,cosine seed=1,2             # a sweep: four runs
python src/train.py resume=last                                    # resume the last run
python src/train.py resume=logs/train/RUN trainer.max_steps=5000 fork=true   # train for more steps, as a new run

Results: the run folder logs/train/<date>_<time> contains metrics.csv, samples/ and checkpoints/.
Resuming: Ctrl-C saves a checkpoint; resume=last, or the path of the run folder, continues the run,
    with lr_schedule=constant also for more steps (trainer.max_steps=5000).
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
