"""Progress of Lightning's training loops in a checkpoint, from which a resumed run finds its next batch."""

from typing import Any


def set_step(step: int, accumulate_grad_batches: int, fit_loop: dict[str, Any]) -> None:
    """Set the state of Lightning's loops to the end of the last batch of `step`. Training is a single epoch."""
    num_batches = step * accumulate_grad_batches
    batches = {"ready": num_batches, "started": num_batches, "processed": num_batches, "completed": num_batches - 1}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.batch_progress"].update(total=dict(batches), current=dict(batches), is_last_batch=False)
    fit_loop["epoch_progress"].update(total=dict(epoch), current=dict(epoch))
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1


def finish_epoch(fit_loop: dict[str, Any]) -> None:
    """Let a run that resumes from a checkpoint of an epoch end start with the next epoch.

    If the checkpoint was written after the last batch of an epoch, Lightning starts the next epoch. If the checkpoint
    was written at the epoch end, Lightning 2.6 first trains on another batch in the same epoch. Therefore the second
    state is replaced by the first.
    """
    batches, epochs = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]
    if batches["is_last_batch"] and epochs["current"]["processed"] > epochs["current"]["completed"]:
        for part in ("total", "current"):
            batches[part]["completed"] -= 1
            epochs[part]["processed"] -= 1
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
