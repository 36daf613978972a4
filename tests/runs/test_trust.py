"""Run folders that another person has written: what they name is not imported and not called without trust."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]

from diffusion_lab.config.accepted_targets import ACCEPTED, foreign_targets
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF, ROOT
from diffusion_lab.runs import status, trust
from diffusion_lab.runs.images import job as image_job
from diffusion_lab.runs.load import load_config, load_module
from diffusion_lab.runs.unrecorded import kept_overrides, require_plain_folder, require_plain_run_folder
from diffusion_lab.sweeps.comparison import saved_overrides
from support.commands import TINY, run
from support.representatives import with_representatives

MARK = "MARK"
"""Stands for a folder that a hostile config tries to create."""

CALL = {"_target_": "os.mkdir", "path": MARK}

HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a function as the network": lambda c: c.update(model=dict(CALL)),
    "a function in a part of the network": lambda c: c["model"].update(blocks=dict(CALL)),
    "a function as an argument that does not exist": lambda c: c["model"].update(more={"deep": [[dict(CALL)]]}),
    "a function as the sampler": lambda c: c.update(sampler=dict(CALL)),
    "a function as a decay": lambda c: c["ema"]["decays"].update(other=dict(CALL)),
    "a function as the optimizer": lambda c: c.update(optimizer=dict(CALL)),
    "a function as the space": lambda c: c.update(space=dict(CALL)),
    "a function as the set of images": lambda c: c["data"].update(store=dict(CALL)),
    "a module that is not installed": lambda c: c.update(model={"_target_": "evil_package.Network"}),
    "a network as the sampler": lambda c: c.update(sampler=c["model"]),
    "a function of torch": lambda c: c.update(model={"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"}),
    "the report of torch": lambda c: c.update(model={"_target_": "torch.utils.collect_env.run", "command": "id"}),
    "a pickle in a NumPy file": lambda c: c["model"].update(
        sinusoids={"_target_": "numpy.load", "file": "x.npy", "allow_pickle": True}
    ),
    "a pickle of torch": lambda c: c.update(
        schedule={"_target_": "torch.load", "f": "x.pt", "weights_only": False}
    ),
    "a function that a module of this package imports": lambda c: c.update(
        model={"_target_": "diffusion_lab.runs.load.instantiate", "config": dict(CALL)}
    ),
    "a class of Hydra": lambda c: c.update(space={"_target_": "hydra.utils.get_method", "path": "os.system"}),
    "a target in capitals": lambda c: c.update(space={"_target_": "OS.mkdir", "path": MARK}),
    "a target that is a list": lambda c: c.update(space={"_target_": ["os.mkdir"], "path": MARK}),
    "a logger in the sampler": lambda c: c["sampler"].update(
        logger={"_target_": "diffusion_lab.training.WandbRun", "folder": MARK, "project": "evil"}
    ),
    "a trainer in the space": lambda c: c["space"].update(
        trainer={"_target_": "lightning.Trainer", "default_root_dir": MARK}
    ),
    "a callback in the guard": lambda c: c["guard"].update(
        callbacks={"x": {"_target_": "diffusion_lab.callbacks.SaveLast", "folder": MARK, "every_n_steps": 1}}
    ),
    "arguments without names": lambda c: c["data"]["store"].update(_args_=[None, "/etc"]),
    "an autoencoder of another account": lambda c: c.update(space={
        "_target_": "diffusion_lab.latents.Latents",
        "autoencoder": {"_target_": "diffusers.AutoencoderKL.from_pretrained",
                        "pretrained_model_name_or_path": "evil/vae"}}),
    "an autoencoder with code": lambda c: c.update(space={
        "_target_": "diffusion_lab.latents.Latents",
        "autoencoder": {"_target_": "diffusers.AutoencoderKL.from_pretrained", "trust_remote_code": True,
                        "pretrained_model_name_or_path": "stabilityai/sd-vae-ft-ema"}}),
}  # fmt: skip
"""Changes of a config, by what they name."""

OF_TRAINING: dict[str, Callable[[dict[str, Any]], object]] = {
    "a function as a callback": lambda c: c["callbacks"].update(more=dict(CALL)),
    "a function in a callback": lambda c: c["callbacks"]["save_last"].update(more=dict(CALL)),
    "a function as the trainer": lambda c: c.update(trainer=dict(CALL)),
}
"""Changes of parts that only training builds."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with classes."""
    folder = tmp_path_factory.mktemp("own")
    done = run("train.py", *TINY, "conditioning=label", "data.max_images=300", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def strange(own: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run in another folder, which is not recorded."""
    folder = tmp_path / "strange"
    shutil.copytree(own, folder)
    assert not trust.is_recorded(folder)
    yield folder
    assert not (tmp_path / MARK).exists()


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    edit(config)
    text = yaml.safe_dump(json.loads(json.dumps(config)))  # without aliases
    file.write_text(text.replace(MARK, str(folder.parent / MARK)))


def in_process(folder: Path) -> None:
    load_module(folder)


def command(*words: str) -> Callable[[Path], None]:
    """Return a function that runs a command with the words, in which FOLDER is the strange folder, and raises."""

    def call(folder: Path) -> None:
        place = {"FOLDER": str(folder), "OUT": str(folder.parent / "out"), "OWN": str(folder.parent / "own")}
        given = [word.format(**place) for word in words]
        done = run(*given)
        assert "Traceback" not in done.stderr
        if done.returncode:
            raise UserError(done.stderr.splitlines()[-1])

    return call


WAYS = {
    "load_module": in_process,
    "sample": command("sample.py", "run={FOLDER}", "num_images=1", "hydra.run.dir={OUT}"),
    "evaluate": command("evaluate.py", "run={FOLDER}", "num_samples=10", "hydra.run.dir={OUT}"),
    "resume": command("train.py", "resume={FOLDER}", "trainer.max_steps=3"),
    "fork": command("train.py", "resume={FOLDER}", "fork=true", "trainer.max_steps=3", "hydra.run.dir={OUT}"),
    "guide": command("sample.py", "run={OWN}", "guide={FOLDER}", "guidance_scale=2", "num_images=1",
                     "hydra.run.dir={OUT}"),
    "cascade": command("sample.py", "run={OWN}", "cascade=[{FOLDER}]", "num_images=1", "hydra.run.dir={OUT}"),
    "reconstruct_ema": command("reconstruct_ema.py", "run={FOLDER}", "length=0.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_target_of_another_kind_is_neither_imported_nor_called(name: str, strange: Path) -> None:
    change(strange, HOSTILE[name])
    with pytest.raises(UserError, match=r"^`trust` must name the packages whose code .*config\.yaml would run, but "):
        load_config(strange)


def cases() -> Iterator[Any]:
    for way in WAYS:
        for number, name in enumerate([*HOSTILE, *OF_TRAINING]):
            if name in HOSTILE or way in ("resume", "fork"):
                few = number == len(HOSTILE) or (number == 0 and way != "load_module")
                yield pytest.param(way, name, marks=[] if few else [pytest.mark.full], id=f"{way}, {name}")


@pytest.mark.parametrize(("way", "name"), list(cases()))
def test_no_command_calls_what_a_strange_folder_names(way: str, name: str, own: Path, strange: Path) -> None:
    shutil.copytree(own, strange.parent / "own")
    change(strange, (HOSTILE | OF_TRAINING)[name])
    with pytest.raises(UserError, match=r"`trust` must name the packages .*; if you know who wrote this folder"):
        WAYS[way](strange)


def test_looking_at_a_strange_folder_calls_nothing(strange: Path) -> None:
    for edit in (HOSTILE | OF_TRAINING).values():
        change(strange, edit)
    for words in (["compare.py", f"numbers=[{strange}]"], ["sweep.py", "status", str(strange.parent)]):
        assert "Traceback" not in run(*words, f"hydra.run.dir={strange.parent}/out").stderr


def test_trust_names_the_package(strange: Path) -> None:
    change(strange, lambda c: c["callbacks"].update(more=dict(CALL)))
    change(strange, lambda c: c["model"].update(more={"_target_": "evil_package.f"}))
    with pytest.raises(UserError, match=r"model\.more names evil_package\.f; .*add trust=\[evil_package\]\.$"):
        load_config(strange)
    assert load_config(strange, trust=["evil_package"]).model.more._target_ == "evil_package.f"
    with pytest.raises(UserError, match=r"`trust` must be a list of packages \(trust=\[my_project\]\), got 'a-b'"):
        load_config(strange, trust=["a-b"])


def test_a_run_is_recorded_outside_of_its_folder_until_its_config_changes(own: Path, tmp_path: Path) -> None:
    assert trust.is_recorded(own)
    assert list(Path(os.environ["XDG_STATE_HOME"], "diffusion_lab", "runs").glob("*.json"))
    copied = tmp_path / "copied"
    shutil.copytree(own, copied)
    assert not trust.is_recorded(copied)
    trust.record(copied)
    assert trust.is_recorded(copied)
    with (copied / "overrides.yaml").open("a") as file:
        file.write("- seed=0\n")
    assert not trust.is_recorded(copied)
    trust.record(copied)
    change(copied, lambda config: config.update(seed=3))
    assert not trust.is_recorded(copied)


def test_a_state_folder_that_cannot_be_written_means_no_record(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    trust.record(own)
    assert not trust.is_recorded(own)


def test_a_strange_folder_resumes_to_the_bit_with_the_loggers_and_paths_of_the_user(
    own: Path, strange: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(own, mine)
    trust.record(mine)
    change(
        strange,
        lambda c: c["logger"].update(
            wandb={"_target_": "diffusion_lab.training.WandbRun", "folder": "/", "project": "evil", "entity": "evil"}
        ),
    )
    change(
        strange,
        lambda c: c["callbacks"].update(
            more={"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": str(tmp_path / MARK)}
        ),
    )
    change(strange, lambda c: c["callbacks"]["save_last"].update(folder=str(tmp_path / MARK)))
    change(strange, lambda c: c["callbacks"]["restore_on_divergence"].update(folder="relative/../.."))
    change(
        strange,
        lambda c: c["trainer"].update(
            strategy={"_target_": "os.mkdir", "path": MARK}, profiler="advanced", plugins=[dict(CALL)]
        ),
    )
    overrides = strange / "overrides.yaml"
    hostile = ["hydra.callbacks.x._target_=os.mkdir", f"+hydra.callbacks.x.path={tmp_path / MARK}", "logger=wandb",
               "hydra.searchpath=[/]", "++trainer.profiler=advanced", "+note=${oc.env:HOME}"]  # fmt: skip
    overrides.write_text(overrides.read_text() + "".join(f"- {json.dumps(word)}\n" for word in hostile))
    for folder in (mine, strange):
        done = run("train.py", f"resume={folder}", "trainer.max_steps=4")
        assert done.returncode == 0, done.stderr
    assert "so these settings come from the command line and not from its config.yaml: " in done.stderr
    assert (
        "left out: hydra.callbacks.x._target_, hydra.callbacks.x.path, logger, trainer.profiler, note; " in done.stderr
    )
    first, second = (torch.load(folder / "checkpoints" / "last.ckpt") for folder in (mine, strange))
    assert first["global_step"] == second["global_step"] == 4
    assert all(torch.equal(tensor, second["state_dict"][name]) for name, tensor in first["state_dict"].items())
    saved = yaml.safe_load((strange / "config.yaml").read_text())
    assert list(saved["logger"]) == ["csv"]
    assert saved["callbacks"]["save_last"]["folder"] == str(strange / "checkpoints")
    assert "more" not in saved["callbacks"]
    assert "strategy" not in saved["trainer"]
    assert trust.is_recorded(strange)  # it holds nothing any more that the user has not typed


def test_the_same_words_typed_again_need_no_record(tmp_path: Path) -> None:
    words = [*TINY, "conditioning=label", "data.max_images=300", "logger=tensorboard", "+callbacks.more._target_=" +
             "lightning.pytorch.callbacks.LearningRateMonitor", f"hydra.run.dir={tmp_path}/run"]  # fmt: skip
    assert run("train.py", *words, XDG_STATE_HOME=str(tmp_path / "one machine")).returncode == 0
    done = run("train.py", *words, "trainer.max_steps=3", XDG_STATE_HOME=str(tmp_path / "another"))
    assert done.returncode == 0, done.stderr
    assert "not recorded" not in done.stderr
    assert list(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["logger"]) == ["csv", "tensorboard"]


def test_a_saved_config_with_an_interpolation_or_a_tag_is_refused_in_one_sentence(strange: Path) -> None:
    file = strange / "config.yaml"
    text = file.read_text()
    for line, reason in (
        ("note: ${oc.env:HOME}", r"must contain plain values only, got '\$\{oc\.env:HOME\}' at note"),
        ("note: !!python/object/apply:os.system [id]", "contains the tag tag:yaml.org,2002:python/object/apply"),
        ("note: !!binary aGk=", "contains the tag"),
        ("a: &x [1, 2]\nb: *x", "repeats the node x by an alias"),
        (f"a: {':'.join(['59'] * 1500)}.5", "contains a number of more than 300 digits"),  # in base 60
        (f"a: {':'.join(['59'] * 200_000)}", "contains a number of more than 300 digits"),
        ("note: [", "cannot be read"),
    ):
        file.write_text(f"{text}{line}\n")
        for way in (WAYS["sample"], WAYS["resume"]) if "python" in line else (in_process,):
            with pytest.raises(UserError, match=reason):
                way(strange)


def test_secrets_are_stored_as_null_and_come_from_the_environment_again(tmp_path: Path) -> None:
    words = [*TINY, "data.max_images=300", "sweep.name=${oc.env:MY_API_TOKEN}", f"hydra.run.dir={tmp_path}/run"]
    done = run("train.py", *words, MY_API_TOKEN="s3cret-value")
    assert done.returncode == 0, done.stderr
    assert "config.yaml has null for the value of a secret environment variable at sweep.name." in done.stderr
    assert "sweep.name=${oc.env:MY_API_TOKEN}" in (tmp_path / "run" / "overrides.yaml").read_text()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(b"s3cret-value" in path.read_bytes() for path in files)
    again = run("train.py", f"resume={tmp_path}/run", "trainer.max_steps=3", MY_API_TOKEN="s3cret-value")
    assert again.returncode == 0, again.stderr
    wrong = run("train.py", f"resume={tmp_path}/run", "seed=s3cret-value", MY_API_TOKEN="s3cret-value")
    assert "got ***" in wrong.stderr
    assert "s3cret" not in wrong.stderr


def test_every_class_in_conf_is_accepted_at_its_place() -> None:
    found = 0
    for file in sorted(CONF.glob("*/*.yaml")):
        if file.parent.name == "hydra":
            continue
        content = yaml.safe_load(file.read_text()) or {}
        named = {file.stem: content} if file.parent.name == "metrics" else content
        is_global = "# @package _global_" in file.read_text() or file.parent.name == "experiment"
        node = content if is_global else {file.parent.name: named}
        found += len(str(content).split("'_target_'")) - 1
        assert foreign_targets(node) == [], file
    assert found > 90


def test_accepted_classes_exist() -> None:
    from hydra.utils import get_object

    for names in ACCEPTED.values():
        for name in names:
            if not name.startswith("diffusers"):
                assert callable(get_object(name)), name


@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "samples", "more", "train.log", ".lock", ".hydra"])
def test_a_strange_folder_with_a_link_out_of_it_is_not_written_to(name: str, strange: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    if (strange / name).is_dir():
        shutil.move(strange / name, outside / name)
    elif (strange / name).exists():
        (outside / name).write_bytes((strange / name).read_bytes())
        (strange / name).unlink()
    else:
        (outside / name).mkdir()
    (strange / name).symlink_to(outside / name)
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    done = run("train.py", f"resume={strange}", "trainer.max_steps=3")
    assert f"must not contain links out of it, got {strange / name}" in done.stderr.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


def test_hydra_writes_nothing_through_a_link_of_a_strange_folder(strange: Path, tmp_path: Path) -> None:
    shutil.rmtree(strange / ".hydra")
    (tmp_path / "outside").mkdir()
    (strange / ".hydra").symlink_to(tmp_path / "outside")
    assert run("train.py", *TINY, f"hydra.run.dir={strange}").returncode == 1
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("name", ["train.log", ".lock"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_file_that_a_resumed_run_could_not_write_is_named(
    name: str, make: Callable[[Path], None], strange: Path
) -> None:
    (strange / name).unlink()
    make(strange / name)
    done = run("train.py", f"resume={strange}", "trainer.max_steps=3")
    assert f"must contain regular files only, got {strange / name}" in done.stderr.splitlines()[-1]


def test_a_link_of_wandb_to_its_log_is_no_reason_to_refuse_a_moved_run(strange: Path, tmp_path: Path) -> None:
    logs = strange / "wandb" / "offline-run-20260101_000000-abc" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "cache" / "core-debug.log")
    assert run("train.py", f"resume={strange}", "trainer.max_steps=3").returncode == 0


@pytest.mark.parametrize("name", ["sweep.md", "multirun.yaml", "seed-1/.hydra"])
def test_a_strange_sweep_is_not_continued_through_links(name: str, strange: Path, tmp_path: Path) -> None:
    outside, sweep = tmp_path / "outside", tmp_path / "sweep"
    outside.mkdir()
    shutil.copytree(strange, sweep / "seed-1", ignore=shutil.ignore_patterns(".hydra"))
    (sweep / name).symlink_to(outside, target_is_directory=True)
    done = run("train.py", "-m", *TINY, "seed=1,2", f"hydra.sweep.dir={sweep}")
    assert f"must not contain links out of it, got {sweep / name}" in done.stderr.splitlines()[-1]
    assert not list(outside.iterdir())
    assert not (sweep / "seed-2").exists()


FLAGS = ["--experimental-rerun=config.pickle", "--config-dir=.", "-cd", "--cfg=job", "--multirun", "--config-name=x"]
NOT_KEPT = [
    *FLAGS,
    "+logger@callbacks.x=wandb",
    "+model.more={_target_: os.mkdir}",
    "+trainer.model_registry=evil/x",
    "callbacks.x._target_=diffusion_lab.training.WandbRun",
    "+note='${${a}.env:HOME}'",
    "callbacks.save_last.folder=x/../../y",
    "+note=glob(*)",
    "logger =wandb",
    "a=b=\nc",
    "run_folder=other",
    "data.path=relative",
    "+data.store={image_root: relative}",
    "callbacks.save_last.folder=relative",
    "features.weights=relative.pt",
    "space.autoencoder.pretrained_model_name_or_path=evil/vae",
    "+space.autoencoder.cache_dir=relative",
    "+space.autoencoder.trust_remote_code=true",
    "+data.store._args_=[1]",
    f"a={'[' * 500}{']' * 500}",
]
"""Overrides that a strange folder may not add to a command line."""


@pytest.mark.parametrize("override", NOT_KEPT, ids=lambda override: override[:60])
def test_an_override_that_acts_is_left_out(override: str) -> None:
    assert kept_overrides(["seed=3", override, "model.channels=8"]) == ["seed=3", "model.channels=8"]


def test_a_pickle_that_a_saved_flag_names_is_not_loaded(strange: Path, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / MARK),)

    (strange / "config.pickle").write_bytes(pickle.dumps(Call()))
    flag = f"--experimental-rerun={os.path.relpath(strange, ROOT)}/config.pickle"
    with (strange / "overrides.yaml").open("a") as file:
        file.write(f"- {json.dumps(flag)}\n")
    done = run("train.py", f"resume={strange}", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "left out: --experimental-rerun;" in done.stderr


def test_a_network_with_more_parts_than_its_checkpoint_is_refused_before_it_is_built(strange: Path) -> None:
    change(strange, lambda config: config["model"].update(num_blocks=10**9))
    with pytest.raises(UserError, match=r"it has more than 15,240 parts, but the checkpoint has 262 tensors"):
        load_module(strange)


@pytest.mark.parametrize(
    "parts",
    [{"optimizer_states": [{"state": {}, "param_groups": [{}]}]}, {"loops": {"fit_loop": "x"}},
     {"state_dict": None}, *(pytest.param(parts, marks=pytest.mark.full)
                             for parts in ({"ImageDataModule": [1]}, {"global_step": -1}))],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_with_other_parts_is_refused_in_one_sentence(parts: dict[str, Any], strange: Path) -> None:
    file = strange / "checkpoints" / "last.ckpt"
    (strange / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    torch.save(torch.load(file) | parts, file)
    done = run("train.py", f"resume={strange}", "trainer.max_steps=3")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the run cannot be resumed" in done.stderr.splitlines()[-1]


NEVER_ENDING = ("config.yaml", "overrides.yaml", "status.json", "class_names.json", ".slurm_job")


@pytest.mark.parametrize("name", with_representatives({name: name for name in NEVER_ENDING}, NEVER_ENDING[:2]))
def test_a_file_of_a_run_that_never_ends_is_not_opened(name: str, strange: Path) -> None:
    (strange / name).unlink(missing_ok=True)
    os.mkfifo(strange / name)
    done = run("sample.py", f"run={strange}", "num_images=1", f"hydra.run.dir={strange.parent}/out")
    assert "Traceback" not in done.stderr
    assert done.returncode == (name == "config.yaml")
    resumed = run("train.py", f"resume={strange}", "trainer.max_steps=3")
    assert "Traceback" not in resumed.stderr
    assert resumed.returncode == 1
    (strange / name).unlink(missing_ok=True)


def test_ids_of_slurm_and_of_wandb_in_a_strange_folder_are_no_options(strange: Path) -> None:
    from diffusion_lab.training.loggers import _run_id

    (strange / "status.json").unlink()
    (strange / ".slurm_job").write_text("--help")
    assert status.job_id(strange) is None
    (strange / ".slurm_job").write_text("12_3")
    assert status.job_id(strange) == "12_3"
    (strange / "wandb_id").write_text("../../*")
    assert (name := _run_id(strange / "wandb_id")).isalnum()
    assert _run_id(strange / "wandb_id") == name


def test_the_status_of_a_strange_sweep_with_a_config_that_cannot_be_read_is_one_sentence(strange: Path) -> None:
    status = json.loads((strange / "status.json").read_text())
    (strange / "status.json").write_text(json.dumps({**status, "state": "running"}))
    (strange / "config.yaml").write_text("model: !!python/name:os.system\n")
    done = run("sweep.py", "status", str(strange.parent))
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*config\.yaml must contain plain values only, .*\n", done.stderr)


def test_a_sweep_does_not_resolve_the_overrides_of_a_strange_run(strange: Path, tmp_path: Path) -> None:
    words = ["seed=1", "+note=${oc.env:HOME}", "+more='${${a}.env:HOME}'", "--experimental-rerun=x", "a=choice(1,2)"]
    (strange / "overrides.yaml").write_text(yaml.safe_dump(words))
    assert saved_overrides(strange) == ["seed=1"]


def test_links_to_the_output_of_slurm_in_a_moved_run_do_not_prevent_resuming(strange: Path) -> None:
    for name in ("slurm_17.out", "slurm_17_3.err"):
        (strange / name).symlink_to("../.submitit/17/17_0_log.out")
    require_plain_folder(strange)
    (strange / "train.log").unlink(missing_ok=True)
    (strange / "train.log").symlink_to("../.submitit/17/17_0_log.out")
    with pytest.raises(UserError, match=r"must not contain links out of it, got .*train\.log"):
        require_plain_folder(strange)


@pytest.mark.parametrize("key", ["hydra.run.dir", "output_folder"])
def test_images_are_not_written_through_links_of_a_strange_folder(key: str, tmp_path: Path) -> None:
    folder, own = tmp_path / "strange", tmp_path / "own"
    folder.mkdir()
    own.mkdir()
    (folder / "images").symlink_to(own)
    require_plain_run_folder([f"{key}={folder}"])  # a folder that no command has written
    (folder / "images.json").write_text("{}")
    with pytest.raises(UserError, match=r"must not contain links out of it, got .*images"):
        require_plain_run_folder([f"{key}={folder}"])


@pytest.mark.parametrize(
    "seeds", ["[]", "[[0, 1000000000000], [1000000000000, 0]]", "[[-5, 0]]", "[[0.5, 2]]", "[" * 100_000, None]
)
def test_a_record_of_images_with_other_content_names_no_images(seeds: str | None, tmp_path: Path) -> None:
    file = tmp_path / image_job.RECORD
    text = '{"run": "r", "checkpoint": "c", "step": 1, "settings": "s", "seeds": %s}'
    file.write_text(text % "[[3, 5]]")
    record = image_job.read_record(tmp_path)
    assert record is not None
    assert record.all_seeds() == {3, 4}
    file.unlink()
    if seeds is None:
        os.mkfifo(file)
    else:
        file.write_text(text % seeds)
    assert image_job.read_record(tmp_path) is None


@pytest.mark.parametrize("name", ["metrics.csv", ".slurm_job"])
def test_a_log_of_any_size_is_not_read_into_the_memory(name: str, strange: Path) -> None:
    with (strange / name).open("wb") as file:
        file.truncate(2**43)  # takes no space on the disk
    assert status.job_id(strange) is None
    with pytest.raises(UserError, match=rf"must have at most [\d.,]+ GB, got .*{name} with 8,796.1 GB"):
        require_plain_folder(strange)
