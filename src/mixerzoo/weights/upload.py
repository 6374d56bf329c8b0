"""Folders to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from mixerzoo.errors import HubError
from mixerzoo.weights import network

_SENT = ("config.json", "model.safetensors", "README.md", "metrics.jsonl")


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload with mixerzoo",
) -> str:
    """Upload a folder in one commit, creating the repository if need be; what the Hub has is not sent again.

    Args:
        folder: Weights, configuration, card and logs are sent, training checkpoints stay behind.
        repo_id: ``"organisation/name"``.
        private: Whether a new repository is private.
        token: Access token; None for the one of `hf auth login`.
        revision: Branch; None for the main one.
        message: First line of the commit.

    Returns:
        The repository's address.

    Raises:
        HubError: Anything that went wrong; the message names the repository and the remedy.
    """
    api = huggingface_hub.HfApi(token=token, library_name="mixerzoo", library_version=network.own_version())
    with _explained(f"The upload to {repo_id}"):
        network.within(network.REACH_DEADLINE * 4, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=list(_SENT),
        )
    return hub_address(repo_id)


def hub_address(repo_id: str) -> str:
    """Where people find a repository."""
    return f"{huggingface_hub.constants.ENDPOINT}/{repo_id}"


def uploaded_sha256(repo_id: str, filename: str, *, token: str | None = None) -> str | None:
    """SHA-256 of a large file that the Hub has, or None if it does not have it."""
    api = huggingface_hub.HfApi(token=token)
    with _explained(f"The repository {repo_id}"):
        try:
            found = api.get_paths_info(repo_id, [filename])
        except RepositoryNotFoundError:
            return None
    for entry in found:
        if isinstance(entry, huggingface_hub.hf_api.RepoFile) and entry.lfs is not None:
            return str(entry.lfs.sha256)
    return None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    endpoint = huggingface_hub.constants.ENDPOINT
    with network.explained(what, endpoint):
        try:
            yield
        except HFValidationError as error:
            raise HubError(f"{what}: {str(error).splitlines()[0]} Write it as organisation/name.") from None
        except RepositoryNotFoundError:
            raise HubError(
                f"{what}: {endpoint} does not let you write there; log in with `hf auth login` and a token that may "
                "write, and check the organisation's name."
            ) from None
