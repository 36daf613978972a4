"""Values that the files of conf/ compute: ${name:arguments}. Importing this makes them known to OmegaConf."""

import re
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion_lab.config import overrides
from diffusion_lab.distributed import launch, slurm_job
from diffusion_lab.paths import PACKAGE, ROOT


def _fastest_cpu_precision() -> str:
    """bf16-mixed on processors that multiply bfloat16 themselves (1.5 to 1.8 times faster), else 32-true."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "32-true"
    return "bf16-mixed" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) else "32-true"


def _fastest_precision() -> str:
    """bf16-mixed where there is a GPU, else that of `_fastest_cpu_precision`."""
    return "bf16-mixed" if any(Path("/dev").glob("nvidia[0-9]*")) else _fastest_cpu_precision()


def _all_steps(schedule: DictConfig) -> int:
    """The number of steps of a table; a thousand, as the papers take, for a continuous schedule."""
    return len(schedule.betas) if "betas" in schedule else int(schedule.get("num_timesteps", 1000))


def _answers(channels: int, variance: DictConfig) -> int:
    """Channels of a network's answer: the prediction's, and as many again for a learned variance."""
    return channels * (2 if str(variance["_target_"]).rpartition(".")[2].startswith("Learned") else 1)


def _label_rows(labels: DictConfig) -> int | None:
    """Rows of a table of label embeddings: one a class, and the null label's; none without classes."""
    return labels.num_classes + (labels.dropout > 0) if labels.num_classes else None


def _adm_multipliers(resolution: int) -> ListConfig:
    """Channel multipliers of the networks of Dhariwal & Nichol (2021), code; three levels for what is smaller."""
    known: dict[int, list[float]] = {
        512: [0.5, 1, 1, 2, 2, 4, 4],
        256: [1, 1, 2, 2, 4, 4],
        128: [1, 1, 2, 3, 4],
        64: [1, 2, 3, 4],
    }
    return OmegaConf.create(known.get(resolution, [1, 2, 3]))


def _interval(count: int, steps: int) -> int:
    """Steps between `count` moments of a run, and 5000 in a run without an end."""
    return max(1, steps // count) if steps > 0 else 5000


def _num_class_folders(path: str) -> int:
    """How many folders of images, one a class, a set has: in its train folder if there is one."""
    folder = Path(path).expanduser()
    if (folder / "train").is_dir():
        folder /= "train"
    if not folder.is_dir():
        return 0  # said later, with what was looked for
    return sum(child.is_dir() and not child.name.startswith(".") for child in folder.iterdir())


OmegaConf.register_new_resolver("root", lambda *parts: str(ROOT.joinpath(*parts)), replace=True)
OmegaConf.register_new_resolver("embedded", lambda name: str(PACKAGE / "data" / "embedded" / name), replace=True)
OmegaConf.register_new_resolver("fastest_cpu_precision", _fastest_cpu_precision, replace=True)
OmegaConf.register_new_resolver("fastest_precision", _fastest_precision, replace=True)
OmegaConf.register_new_resolver("processes_here", lambda: launch.num_local_ranks() or "auto", replace=True)
OmegaConf.register_new_resolver("num_nodes", launch.num_nodes, replace=True)
OmegaConf.register_new_resolver("share_of", lambda share, steps: int(share * steps), replace=True)
OmegaConf.register_new_resolver("interval", _interval, replace=True)
OmegaConf.register_new_resolver("at_most", min, replace=True)
OmegaConf.register_new_resolver("first", lambda group: next(iter(group.values())), replace=True)
OmegaConf.register_new_resolver("all_steps", _all_steps, replace=True)
OmegaConf.register_new_resolver("answers", _answers, replace=True)
OmegaConf.register_new_resolver("eighth", lambda side: side // 8, replace=True)
OmegaConf.register_new_resolver("label_rows", _label_rows, replace=True)
OmegaConf.register_new_resolver("adm_multipliers", _adm_multipliers, replace=True)
OmegaConf.register_new_resolver("num_class_folders", _num_class_folders, replace=True)
OmegaConf.register_new_resolver("job_name", slurm_job.job_name, replace=True)
OmegaConf.register_new_resolver("sweep_folder", overrides.sweep_folder_name, replace=True)
OmegaConf.register_new_resolver("run_folder_name", overrides.run_folder_name, replace=True)
