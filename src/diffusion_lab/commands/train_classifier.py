"""Train a classifier on noisy images for classifier guidance.

python src/train_classifier.py schedule=cosine data=fashion_mnist
python src/train_classifier.py data=imagenet64 model=half_unet_64 trainer=gpu
python src/train_classifier.py resume=last
python src/sample.py run=logs/train/RUN classifier=logs/train_classifier/RUN classifier_scale=2   # guide samples

Results: the run folder logs/train_classifier/<date>_<time> contains metrics.csv and checkpoints/.
Resuming: Ctrl-C saves a checkpoint; resume=last, or the path of the run folder, continues the run.
"""

from functools import partial

from diffusion_lab.commands import entry
from diffusion_lab.runs import resume as run_resume
from diffusion_lab.runs import train as run_training


def main() -> None:
    prepare = partial(run_resume.restore_command_line, "train_classifier")
    entry.entry("train_classifier", run_training.train, prepare, keeps_status=True)


if __name__ == "__main__":
    main()
