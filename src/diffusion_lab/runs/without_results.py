"""The reason why the folder of a command contains no results, or is no run folder."""

from pathlib import Path

from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.settings.used import UsedSettings


def why_no_results(folder: Path) -> str:
    """Return the reason why the folder of a command has no metrics.json, for a message; "" if it is unknown."""
    status = run_status.observe(folder)
    if status is None:
        return ""
    if status.state == run_status.FINISHED:
        output = UsedSettings.read(folder).text("output_folder")
        is_elsewhere = output is not None and Path(output).resolve() != folder.resolve()
        return f"its results are in {output}, its output_folder" if is_elsewhere else ""
    ends = {run_status.FAILED: "it failed", run_status.INTERRUPTED: "it was interrupted"}
    again = ": start its command again" if status.is_over else ""
    return f"{ends.get(status.state, f'it is {status.text}')}{again}"


def why_no_run(folder: Path) -> str:
    """Return the reason why the folder of a command is no run folder, for a message; "" if it is unknown."""
    has_status = (folder / run_status.STATUS).exists()
    return "it ended before its first step: start its command again" if has_status else ""
