"""The settings in tables of runs, for runs of an earlier version and evaluations of them."""

import csv
import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from diffusion_lab.evaluation import VariationalBound
from diffusion_lab.fingerprints import describe
from diffusion_lab.process import CosineSchedule, FixedSmall, GaussianProcess
from diffusion_lab.runs.settings.measured import is_used
from diffusion_lab.runs.settings.used import UsedSettings
from diffusion_lab.runs.tables.comparable import write_and_print_table
from diffusion_lab.runs.tables.table import short_paths

RUNS = Path(__file__).parents[2] / "earlier_runs" / "v0_3"


def table(folders: list[Path], output: Path) -> list[dict[str, str]]:
    """Return the table of some folders, whose metric values may differ in all fields."""
    allowed = ["schedule", "weights", "reference", "label", "guidance_scale", "sampler", "seed"]
    write_and_print_table(folders, output, "numbers", allowed=allowed)
    with (output / "numbers.csv").open() as file:
        return list(csv.DictReader(file))


def evaluation(folder: Path, run: str) -> Path:
    """Copy an evaluation of the run `plain` as one of another run."""
    shutil.copytree(RUNS / "evaluated", folder)
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(record | {"run": str(RUNS / run)}))
    return folder


def test_a_default_choice_of_a_run_is_shown_next_to_the_choices_of_other_runs(tmp_path: Path) -> None:
    rows = table([RUNS / "plain", RUNS / "edm"], tmp_path)
    shown = ("run", "schedule", "times", "time_grid", "sampler.num_steps", "ema")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        ("plain", "linear", "uniform", "uniform", "20", "ramped"),  # steps with which its distance was measured
        ("edm", "edm", "log_normal_sigma", "karras", "3", "power"),
    ]
    assert [row["folder"] for row in rows] == [str(RUNS / "plain"), str(RUNS / "edm")]
    assert not {"trained", "training_step"} & set(rows[0])


def test_settings_without_an_effect_and_repeated_settings_have_no_columns(tmp_path: Path) -> None:
    overrides = (RUNS / "plain" / ".hydra" / "overrides.yaml").read_text()
    assert "trainer.log_every_n_steps" in overrides
    columns = set(table([RUNS / "plain", RUNS / "edm"], tmp_path)[0])
    assert not columns & {
        "trainer.log_every_n_steps",
        "trainer.max_steps",
        "callbacks.sample_images.num_images",
        "run_folder",
    }
    assert not {column for column in columns if column.startswith(("process.", "schedule.beta", "data.datamodule."))}


def test_evaluations_show_the_settings_in_which_their_trained_runs_differ(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / run, run) for run in ("plain", "class_conditional")]
    rows = table(folders, tmp_path / "table")
    shown = ("run", "trained", "schedule", "prediction", "conditioning", "optimizer.weight_decay")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        ("plain", "plain", "linear", "epsilon", "none", "0"),
        ("class_conditional", "class_conditional", "cosine", "v", "label", "0.01"),
    ]


def test_a_setting_that_an_evaluation_also_has_is_named_after_the_trained_run(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / run, run) for run in ("plain", "class_conditional")]
    rows = table(folders, tmp_path / "table")
    assert [row["trained.seed"] for row in rows] == ["0", "3"]
    assert "seed" not in rows[0]  # seed 0 of the samples, by default


def test_an_evaluation_without_its_own_sampler_shows_the_sampler_of_the_run(tmp_path: Path) -> None:
    swept = RUNS / "evaluations" / "sampler-ancestral_sampler.num_steps-2"
    ancestral = tmp_path / "ancestral"
    shutil.copytree(swept, ancestral)
    record = json.loads((ancestral / "metrics.json").read_text())
    (ancestral / "metrics.json").write_text(json.dumps(record | {"run": str(RUNS / "plain")}))
    rows = table([ancestral, evaluation(tmp_path / "default", "plain")], tmp_path / "table")
    assert [(row["sampler"], row["sampler.num_steps"]) for row in rows] == [("ancestral", "2"), ("ddim", "4")]


def test_a_run_beside_an_evaluation_shows_the_sampler_that_measured_its_distance(tmp_path: Path) -> None:
    ancestral = tmp_path / "ancestral"
    shutil.copytree(RUNS / "evaluations" / "sampler-ancestral_sampler.num_steps-2", ancestral)
    rows = table([RUNS / "plain", ancestral], tmp_path / "table")
    assert [(row["sampler"], row["sampler.num_steps"]) for row in rows] == [("ddim", "20"), ("ancestral", "2")]


def test_paths_are_relative_to_the_deepest_folder_that_contains_all() -> None:
    a, b, c = Path("logs/evaluate/a"), Path("logs/evaluate/b/0_x"), Path("logs/train/c")
    assert list(short_paths([a]).values()) == ["a"]
    assert list(short_paths([a, b]).values()) == ["a", "b/0_x"]
    assert list(short_paths([a, b, c]).values()) == ["evaluate/a", "evaluate/b/0_x", "train/c"]


def test_the_features_of_an_evaluation_replace_those_that_its_run_was_trained_with(tmp_path: Path) -> None:
    for run, trained, evaluated in (("a", "inception", "efficientnet"), ("b", "dinov2", "null")):
        shutil.copytree(RUNS / "plain", tmp_path / run)
        evaluation(tmp_path / f"of_{run}", str(tmp_path / run))
        for folder, before, after in ((run, "fashion_cnn", trained), (f"of_{run}", "null", evaluated)):
            hydra = tmp_path / folder / ".hydra" / "hydra.yaml"
            hydra.write_text(hydra.read_text().replace(f"features: {before}", f"features: {after}"))
    rows = table([tmp_path / "of_a", tmp_path / "of_b"], tmp_path / "table")
    assert [row["features"] for row in rows] == ["fashion_cnn", "fashion_cnn"]  # of the fingerprints
    assert "trained.features" not in rows[0]


def test_an_evaluation_without_config_files_shows_the_settings_of_its_fingerprint(tmp_path: Path) -> None:
    swept = tmp_path / "swept"
    shutil.copytree(RUNS / "evaluations" / "sampler-ancestral_sampler.num_steps-2", swept)
    (swept / ".hydra" / "overrides.yaml").write_text("- sampler=ancestral\n- sampler.num_steps=2\n- metrics=[fid]\n")
    record = json.loads((swept / "metrics.json").read_text())
    (swept / "metrics.json").write_text(json.dumps(record | {"run": str(RUNS / "plain")}))
    held = evaluation(tmp_path / "held", "plain")  # as with output_folder
    shutil.rmtree(held / ".hydra")
    (held / "config.yaml").unlink(missing_ok=True)
    record = json.loads((held / "metrics.json").read_text())
    for number in record["numbers"]:
        number["fingerprint"].get("sampler", {})["num_steps"] = 5
    (held / "metrics.json").write_text(json.dumps(record))
    rows = {row["run"]: row for row in table([swept, held], tmp_path / "table")}
    assert (rows["held"]["sampler"], rows["held"]["sampler.num_steps"]) == ("ddim", "5")  # the run has 4 steps
    assert "metrics" not in rows["held"]


def test_a_setting_that_follows_another_setting_by_default_is_shown_with_its_value(tmp_path: Path) -> None:
    folders = []
    for name, given in (("typed", ["metrics.kid.subset_size=10"]), ("default", [])):
        folders.append(evaluation(tmp_path / name, "plain"))
        kid = {"subset_size": 10 if given else "${num_samples}"}
        config = OmegaConf.load(folders[-1] / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.merge(config, {"metrics": {"kid": kid}, "num_samples": 30}),
                       folders[-1] / ".hydra" / "config.yaml")  # fmt: skip
        (folders[-1] / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in given) or "[]")
    assert [row["metrics.kid.subset_size"] for row in table(folders, tmp_path / "table")] == ["10", "30"]


def with_numbers(folder: Path, start: str, **changes: object) -> Path:
    """Keep the metric values whose names start with `start`, and change fields of their fingerprints."""
    record = json.loads((folder / "metrics.json").read_text())
    kept = [number for number in record["numbers"] if number["name"].startswith(start)]
    for number in kept:
        number["fingerprint"] |= changes
    (folder / "metrics.json").write_text(json.dumps(record | {"numbers": kept}))
    return folder


def with_overrides(folder: Path, *overrides: str) -> Path:
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))
    return folder


def test_a_folder_that_an_evaluation_wrote_elsewhere_shows_the_settings_in_the_folder_of_the_command(
    tmp_path: Path,
) -> None:
    job, output = evaluation(tmp_path / "job", "plain"), tmp_path / "output"
    output.mkdir()
    record = json.loads((job / "metrics.json").read_text())
    (output / "metrics.json").write_text(json.dumps(record | {"job": str(job)}))
    with_overrides(job, "batch_size=100", "callbacks.x=typed")
    other = with_overrides(evaluation(tmp_path / "other", "plain"), "callbacks.x=3")
    rows = table([output, other], tmp_path / "table")
    assert [(row["batch_size"], row["callbacks.x"]) for row in rows] == [("100", "typed"), ("100", "3")]


def test_an_evaluation_without_config_files_shows_weights_and_number_of_images_of_its_fingerprints(
    tmp_path: Path,
) -> None:
    bare = evaluation(tmp_path / "bare", "plain")
    shutil.rmtree(bare / ".hydra")
    given = with_overrides(evaluation(tmp_path / "given", "plain"), "weights=raw", "metrics.bound.num_images=10")
    with_numbers(given, "", weights={"kind": "raw"})
    rows = table([bare, given], tmp_path / "table")
    assert [(row["weights"], row["metrics.bound.num_images"]) for row in rows] == [("main", "10"), ("raw", "10")]


def test_an_evaluation_without_samples_shows_no_settings_of_samples(tmp_path: Path) -> None:
    sampled = evaluation(tmp_path / "sampled", "plain")
    with_overrides(sampled, "num_samples=20", "sampler=ddim", "sampler.num_steps=4", "features=fashion_cnn")
    bound = with_numbers(with_overrides(evaluation(tmp_path / "bound", "plain"), "num_samples=20"), "bits_bound")
    shown = ("num_samples", "sampler", "sampler.num_steps", "features")
    rows = table([sampled, bound], tmp_path / "table")
    assert [tuple(row[name] for name in shown) for row in rows] == [("20", "ddim", "4", "fashion_cnn"), ("",) * 4]
    assert rows[0]["bits_bound_train_10"] == rows[1]["bits_bound_train_10"] != ""


def test_the_sampler_of_a_reconstruction_is_used(tmp_path: Path) -> None:
    bare = with_numbers(evaluation(tmp_path / "bare", "plain"), "reconstruction")
    shutil.rmtree(bare / ".hydra")
    given = with_overrides(evaluation(tmp_path / "given", "plain"), "sampler=ddim", "num_samples=20")
    rows = table([bare, given], tmp_path / "table")
    assert [(row["sampler"], row["num_samples"]) for row in rows] == [("ddim", ""), ("ddim", "20")]


def test_the_time_grid_is_used_by_the_bound_of_a_respaced_chain_only() -> None:
    process = GaussianProcess(CosineSchedule(20))
    bounds = [VariationalBound(process, FixedSmall(), num_steps=number) for number in (None, 5)]
    fingerprints = [{"metric": describe(bound, omit=("process",))} for bound in bounds]
    assert [is_used("time_grid", [each]) for each in fingerprints] == [False, True]


def test_references_are_followed_and_a_setting_that_refers_to_itself_is_unknown() -> None:
    values = {"a": "${b}", "b": "${c.d}", "c.d": 1e-3, "x": "${y}", "y": "${x}", "z": "${z}", "text": "${a}_${b}"}
    used = UsedSettings({}, values, values)
    assert [used.text(key) for key in values] == ["0.001", "0.001", "0.001", None, None, None, None]
