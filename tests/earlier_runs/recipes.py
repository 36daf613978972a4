"""Commands that made the run folders in `v0_3`, and commands that go on from them.

Words of a command may name {runs}, the folder that holds all run folders, and {output}, the folder that it writes to.
"""

from dataclasses import dataclass

ROOT_THEN = "/home/researcher/diffusion-lab"
"""Checkout in which the runs of version 0.3 were made."""

RUNS_THEN = f"{ROOT_THEN}/logs/v0_3"

QUIET = ("callbacks.sample_images=null", "callbacks.measure_distance=null")
TINY = (
    *("model=unet_quick", "model.channels=4", "model.channel_multipliers=[1,1]", "model.attention_resolutions=[7]"),
    "model.blocks.num_groups=2",
    *("data.batch_size=8", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "num_samples=20"),
    "callbacks.save_last.every_n_steps=2",
)
LATENT = (
    *("data.resolution=32", "model=dit_s", "model.channels=16", "model.depth=1", "model.num_heads=2"),
    *("space=sd_latents", "space.autoencoder.pretrained_model_name_or_path={runs}/autoencoder", "num_samples=20"),
    *("data.batch_size=8", "trainer.precision=32-true", "trainer.log_every_n_steps=1"),
)


@dataclass(frozen=True)
class Command:
    """One start of a script in src/.

    is_sweep: its folder is that of a sweep.  stop_after: step at which SIGTERM is sent.  resume: run that it goes on
    with, copied first.  to_step: for resume, `trainer.max_steps` counts from the step of the checkpoint.
    """

    script: str
    words: tuple[str, ...]
    is_sweep: bool = False
    stop_after: int | None = None
    resume: str | None = None
    more_steps: int | None = None


def _train(*words: str) -> Command:
    return Command("train.py", words)


def _sample(run: str, *words: str) -> Command:
    return Command("sample.py", (f"run={{runs}}/{run}", "num_images=6", "save_npz=true", "num_pictures=0", *words))


MADE: dict[str, Command] = {
    "plain": _train(
        *TINY, "schedule.num_timesteps=20", "trainer.max_steps=4", "callbacks.sample_images.num_images=4",
        "callbacks.sample_images.num_columns=2", "callbacks.measure_distance.every_n_steps=2", "sampler.num_steps=4",
    ),
    "stopped": Command(
        "train.py", (*TINY, *QUIET, "schedule=quadratic", "trainer.max_steps=100000", "sampler.num_steps=4"),
        stop_after=4,
    ),
    "class_conditional": _train(
        *TINY, *QUIET, "schedule=cosine", "prediction=v", "conditioning=label", "guidance_scale=2", "ema=several",
        "weighting=min_snr", "optimizer.course.num_warmup_steps=2", "optimizer.course.num_decay_steps=10",
        "optimizer.weight_decay=0.01", "trainer.max_steps=4", "sampler.num_steps=4", "seed=3",
    ),
    "weaker": _train(
        *TINY, *QUIET, "schedule=cosine", "prediction=v", "conditioning=label", "trainer.max_steps=2",
    ),
    "learned_variance": _train(
        *TINY, *QUIET, "schedule=cosine", "schedule.num_timesteps=20", "objective=hybrid", "times=loss_second_moment",
        "sampler=ancestral", "sampler.num_steps=5", "trainer.max_steps=4",
    ),
    "edm": _train(
        *TINY, *QUIET, "schedule=edm", "sampler=heun", "sampler.num_steps=3", "augmentation=edm", "ema=power",
        "callbacks.save_averages.every_n_steps=2", "trainer.max_steps=4",
    ),
    "classifier": Command(
        "train_classifier.py",
        (
            "schedule=cosine", "model.channels=4", "model.channel_multipliers=[1,1]", "model.blocks.num_groups=2",
            "model.blocks.head_channels=4", "data.batch_size=8", "trainer.precision=32-true", "trainer.max_steps=4",
            "trainer.log_every_n_steps=1", "callbacks.measure_accuracy.num_images=100",
            "optimizer.course.num_warmup_steps=1",
        ),
    ),
    "base": _train(
        *TINY, *QUIET, "data.resolution=14", "data.fit=resize", "model.patch_size=1", "conditioning=label",
        "trainer.max_steps=2", "sampler.num_steps=3",
    ),
    "upsampler": _train(
        *TINY, *QUIET, "low_resolution=noised", "low_resolution.resolution=14", "conditioning=label",
        "trainer.max_steps=2", "sampler.num_steps=3",
    ),
    "latent": _train(*LATENT, *QUIET, "trainer.max_steps=2", "sampler.num_steps=3"),
    "sweep": Command(
        "train.py",
        (
            "-m", *TINY, *QUIET, "schedule.num_timesteps=20", "optimizer.lr=0.001,0.002", "trainer.max_steps=2",
            "optimizer.course.num_warmup_steps=1",
        ),
        is_sweep=True,
    ),
    "evaluated": Command(
        "evaluate.py",
        ("run={runs}/plain", "metrics=[fid,kid,precision_recall,nll,reconstruction]", "num_samples=20",
         "metrics.bound.split=train", "metrics.bound.num_images=10", "metrics.reconstruction.split=train",
         "metrics.reconstruction.num_images=10", "num_pictures=4"),
    ),
    "evaluated_guided": Command(
        "evaluate.py",
        ("run={runs}/class_conditional", "metrics=[fid,class_accuracy]", "num_samples=20", "num_pictures=0",
         "classifier={runs}/classifier", "classifier_scale=2", "guide={runs}/weaker", "guidance_scale=1.5",
         "guidance.interval=[0.1,50]"),
    ),
    "evaluations": Command(
        "evaluate.py",
        ("-m", "run={runs}/plain", "num_samples=20", "num_pictures=0", "sampler=ddim,ancestral",
         "sampler.num_steps=2,4"),
        is_sweep=True,
    ),
}  # fmt: skip

GOES_ON: dict[str, Command] = {
    "resume_stopped": Command("train.py", (), resume="stopped", more_steps=3),
    "resume_class_conditional": Command("train.py", (), resume="class_conditional", more_steps=3),
    "resume_learned_variance": Command("train.py", (), resume="learned_variance", more_steps=2),
    "resume_edm": Command("train.py", (), resume="edm", more_steps=2),
    "resume_plain": Command("train.py", (), resume="plain", more_steps=2),
    "resume_classifier": Command("train_classifier.py", (), resume="classifier", more_steps=2),
    "resume_latent": Command("train.py", (), resume="latent", more_steps=1),
    "fork": _train(
        "resume={runs}/class_conditional", "fork=true", "trainer.max_steps=6", "optimizer.lr=0.01",
    ),
    "sample_plain": _sample("plain", "checkpoint=best.ckpt"),
    "sample_guided": _sample(
        "class_conditional", "guide={runs}/weaker", "classifier={runs}/classifier", "classifier_scale=2",
        "weights=fast",
    ),
    "sample_learned_variance": _sample("learned_variance"),
    "sample_edm": _sample("edm", "weights=narrow"),
    "sample_latent": _sample("latent"),
    "sample_cascade": _sample("base", "cascade=[{runs}/upsampler]", "cascade_steps=2", "low_resolution_noise=0.2"),
    "reconstruct": Command("reconstruct_ema.py", ("run={runs}/edm", "length=0.08")),
    "evaluate": MADE["evaluated"],
    "evaluate_guided": MADE["evaluated_guided"],
    "evaluate_learned_variance": Command(
        "evaluate.py",
        ("run={runs}/learned_variance", "metrics=[fid,nll]", "num_samples=20", "metrics.bound.split=train",
         "metrics.bound.num_images=10", "num_pictures=0"),
    ),
}  # fmt: skip
"""What a run of 0.3 is used for; its figures stand in `expected.json`."""
