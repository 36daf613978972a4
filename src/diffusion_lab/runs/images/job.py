"""The files that a job of sample, evaluate or edit writes: the images in its output folder, and its finished batches.

A record in the output folder names the images that the folder contains, so that images of different runs, seeds or
settings are never mixed in one folder.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import compilation
from diffusion_lab.config.compose import in_sweep
from diffusion_lab.config.saved_files import LARGEST_JSON
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.files.regular import read_regular
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.images.animations import ANIMATIONS

if TYPE_CHECKING:
    from diffusion_lab.generation.edited_images import EditedImages
    from diffusion_lab.generation.frame_images import FrameImages
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.reporting.image_files import ImageFiles

logger = logging.getLogger(__name__)

RECORD = "images.json"

LARGEST = 10**8
"""Number of images above which a record is considered damaged."""

OF_ALL_IMAGES = (*ANIMATIONS, "samples_*.npz", "npz_parts")
"""Glob patterns of files that contain several images, except the grid, which every job writes again."""

OUTPUT_SETTINGS = ("output_folder", "work_folder", "keep_images")
"""Settings that do not identify a job whose finished batches the same command reuses."""


@dataclass(frozen=True)
class Record:
    """Record of the images in a folder.

    run, checkpoint, step: network that generates the images.  settings: digest of all settings except the seeds.
    seeds: ranges of seeds, each with its first seed and the seed after the last.
    """

    run: str
    checkpoint: str
    step: int
    settings: str
    seeds: list[list[int]]

    def all_seeds(self) -> set[int]:
        return {seed for first, stop in self.seeds for seed in range(first, stop)}

    def __str__(self) -> str:
        first, last = self.seeds[0][0], self.seeds[-1][1] - 1
        return f"{self.run}, {self.checkpoint} at step {self.step:,}, seeds {first} to {last}"


@contextmanager
def image_job(
    config: DictConfig,
    images: "SeededImages | EditedImages | FrameImages",
    target: Target,
    step: int,
    seeds: Sequence[range],
    folder: Path,
) -> Iterator["ImageFiles"]:
    """Yield the files of the images of `seeds` in `folder`, while `images` uses its finished batches.

    seeds: seeds of the images, or indices of the results of an edit or of frames.

    The finished batches remain if the block raises, so that the same command can continue. Collective: enter the
    context on all ranks.
    Raises UserError if the folder contains images that are not the images of this job, or if another command uses it.
    """
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.fingerprints import digest
    from diffusion_lab.generation.batch_claims import BatchClaim
    from diffusion_lab.generation.grid_columns import num_columns
    from diffusion_lab.reporting.image_files import ImageFiles
    from diffusion_lab.runs.cost.sampling import print_sampling_cost

    precision, ranks, claim = compilation.precision_name(config.trainer), Ranks.current(), None
    settings = digest([str(target.folder), target.checkpoint.name, images.protocol(), precision])
    record = Record(str(target.folder), target.checkpoint.name, step, settings, [[s.start, s.stop] for s in seeds])
    images.folder = Path(config.work_folder) / images.identity(precision)[:16]
    columns = config.get("num_columns") or num_columns(images)
    files = ImageFiles(
        folder, num_pictures=config.num_pictures, num_columns=columns, png=config.save_png, npz=config.save_npz
    )
    with ExitStack() as stack:
        try:
            with ranks.raise_together():
                if ranks.rank == 0:
                    stack.enter_context(_used_alone(folder))
                    _take(folder, record)
                    claim = BatchClaim(images.folder, images.batch_files(seeds), _job(config, record))
                    stack.callback(claim.close)
        except ValueError as error:
            raise UserError(str(error)) from error
        files.prepare()
        if ranks.rank == 0:
            measures = bool(config.get("metrics"))
            print_sampling_cost(images, seeds, str(config.trainer.precision), measures=measures)
        yield files
        ranks.all_gather_object(None)  # wait until no rank reads the batches any more
        if claim is not None:
            claim.release(keep=config.keep_images)


def note_reused(images: "SeededImages | EditedImages | FrameImages", own_batches: Sequence[range]) -> None:
    """Log the number of images that are reused. Collective: call on all ranks.  own_batches: batches of this rank."""
    from diffusion_lab.distributed.collectives import Ranks

    num_own = sum(len(batch) for batch in own_batches if images.is_cached(batch))
    if num_cached := sum(Ranks.current().all_gather_object(num_own)):
        logger.info("%s images were generated before an interruption and are reused.", f"{num_cached:,}")


def generate_batches(
    images: "SeededImages | EditedImages | FrameImages", own_batches: Sequence[range], files: "ImageFiles", action: str
) -> None:
    """Generate and write the batches of this rank, with a progress bar.  Collective: call on all ranks."""
    from diffusion_lab.distributed.collectives import Ranks
    from diffusion_lab.reporting.progress import progress_bar

    with Ranks.current().raise_together(), progress_bar(action, sum(map(len, own_batches))) as advance:
        for batch in own_batches:
            files.add(batch, images.generate(batch))
            advance(len(batch))


def _job(config: DictConfig, record: Record) -> str:
    """Return an identifier of a job: the same if the same command is repeated."""
    from diffusion_lab.fingerprints import digest

    settings = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(k) for k in config if k not in OUTPUT_SETTINGS])
    )
    return digest([HydraConfig.get().job.name, settings, record.seeds])[:16]


@contextmanager
def _used_alone(folder: Path) -> Iterator[None]:
    """Lock an output folder outside of the folder of the command, which the command has locked.

    Raises ValueError if another command uses the folder.
    """
    if folder.resolve().is_relative_to(Path(HydraConfig.get().runtime.output_dir).resolve()):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(run_status.locked(folder))
        except run_status.FolderLockedError as error:
            raise ValueError(f"output_folder: {error}") from None
        yield


def _take(folder: Path, record: Record) -> None:
    """Remove the images that an earlier attempt of this job wrote to a folder, and write the record of the job.

    Raises ValueError if the folder contains other images.
    """
    found = [path for pattern in ("images/*.png", *OF_ALL_IMAGES) for path in sorted(folder.glob(pattern))]
    earlier = read_record(folder)
    if found and earlier is None and not in_sweep():  # the plan of a sweep has compared the settings
        raise ValueError(
            f"hydra.run.dir (or output_folder) must be a folder without other images, got {folder}, which contains "
            f"{found[0].relative_to(folder)} and has no {RECORD} that names its images; choose another folder."
        )
    if found and earlier is not None and not _is_same_job(earlier, record):
        raise ValueError(
            f"hydra.run.dir (or output_folder) must be a folder without other images, got {folder}, which contains "
            f"images of {earlier}, or with other settings; choose another folder."
        )
    seeds = record.all_seeds() if earlier is None else earlier.all_seeds()
    own = {f"{seed:06}.png" for seed in seeds}
    if earlier is not None:
        for name in ("samples.png", "conditions.png"):
            (folder / name).unlink(missing_ok=True)
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.parent == folder or path.name in own:
            path.unlink()
    with atomic_file(folder / RECORD) as partial:
        partial.write_text(json.dumps(asdict(record)) + "\n")


def _is_same_job(earlier: Record, record: Record) -> bool:
    """Return whether all images of an earlier job are generated again, possibly from a newer checkpoint."""
    return earlier.settings == record.settings and earlier.all_seeds() <= record.all_seeds()


def read_record(folder: Path) -> Record | None:
    """Return the record of the images in a folder; None if there is none that a job can have written."""
    try:
        content: dict[str, Any] = json.loads(read_regular(folder / RECORD, LARGEST_JSON))
        record = Record(**content)
        are_ranges = bool(record.seeds) and all(
            type(first) is type(stop) is int and 0 <= first < stop for first, stop in record.seeds
        )
        return record if are_ranges and sum(stop - first for first, stop in record.seeds) < LARGEST else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
