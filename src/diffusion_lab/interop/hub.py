"""Upload of an exported folder to the Hugging Face Hub."""

import re
from pathlib import Path

from diffusion_lab.errors import UserError


def require_hub(name: str) -> None:
    """Raise UserError for an invalid name of a repository, without a token, and if access to the hub is disabled."""
    import huggingface_hub
    from huggingface_hub import constants

    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", name) or len(name) > 96:
        raise UserError(f"`push` must be the name of a repository on the hub, such as me/my_model, got {name[:100]}.")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"`push` must be null if HF_HUB_OFFLINE disables the access to the hub, got {name}.")
    if huggingface_hub.get_token() is None:
        raise UserError(
            "`push` requires a token of the Hugging Face Hub (`hf auth login` or the environment variable HF_TOKEN), "
            f"got push={name} and no token."
        )


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload all files of a folder to a repository, which is created if it does not exist.  Returns its address.

    Raises UserError if the hub cannot be reached or refuses the upload.
    """
    from huggingface_hub import HfApi

    api, message = HfApi(), "Upload the export of a Diffusion Lab run"
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # errors of many kinds: of the network, of the hub and of its client
        raise UserError(
            f"the files of {folder} could not be uploaded to {name}: {' '.join(str(error).split())[:300].rstrip('.')}; "
            "the folder is complete."
        ) from error
    return str(repository)
