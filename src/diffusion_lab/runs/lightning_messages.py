"""Messages of Lightning that do not apply to this framework."""

import logging
import warnings


def silence_lightning() -> None:
    """Filter out Lightning's startup messages, and its warnings that do not apply to this framework."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are gathered from memory
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")  # runs of one rank need no srun
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode.*")  # the EMA networks are never trained
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # Hydra writes to the run folder first
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # raised inside Lightning
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # 1 x 1 convolutions
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
