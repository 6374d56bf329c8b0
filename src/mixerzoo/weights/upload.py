"""Folders to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from mixerzoo.errors import HubError
from mixerzoo.weights import transfer
from mixerzoo.weights.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

_SENT = (CONFIG_FILE, WEIGHTS_FILE, "metrics.jsonl", "curves.png", "training.md", "training.json")
DEADLINE = 20.0
"""Seconds that a request that sends no files may take."""


def check_repo_id(repo_id: str) -> None:
    """Raise HubError unless ``repo_id`` is ``"organisation/name"``."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise HubError(f"{repo_id!r} is no repository's name: write it as organisation/name.")


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    keep_card: bool = False,
    commit_message: str = "Upload with mixerzoo",
) -> str:
    """Upload a folder in one commit, creating the repository if need be; what the Hub has is not sent again.

    Args:
        folder: Weights, configuration, card and logs are sent, training checkpoints stay behind.
        repo_id: ``"organisation/name"``.
        private: Whether a new repository is private.
        token: Access token; None for the one of `hf auth login`.
        revision: Branch; None for the main one.
        keep_card: Do not replace a model card that the repository has.
        commit_message: First line of the commit.

    Returns:
        The repository's address.

    Raises:
        HubError: Anything that went wrong; the message names the repository and the remedy.
    """
    check_repo_id(repo_id)
    api = huggingface_hub.HfApi(token=token, library_name="mixerzoo", library_version=transfer.own_version())
    with _explained(f"The upload to {repo_id}"):
        transfer.within(DEADLINE, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        has_card = keep_card and transfer.within(
            DEADLINE, lambda: api.file_exists(repo_id, CARD_FILE, revision=revision)
        )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            allow_patterns=[*_SENT] if has_card else [*_SENT, CARD_FILE],
        )
    return hub_address(repo_id)


def hub_address(repo_id: str) -> str:
    """Where people find a repository."""
    return f"{huggingface_hub.constants.ENDPOINT}/{repo_id}"


def uploaded_sha256(repo_id: str, filename: str, *, token: str | None = None) -> str | None:
    """SHA-256 of a large file that the Hub has, or None if it does not have it.

    Raises:
        HubError: The Hub cannot be asked.
    """
    check_repo_id(repo_id)
    api = huggingface_hub.HfApi(token=token)
    with _explained(f"The upload to {repo_id}"):
        try:
            found = transfer.within(DEADLINE, lambda: api.get_paths_info(repo_id, [filename]))
        except RepositoryNotFoundError:
            return None
    for entry in found:
        if isinstance(entry, huggingface_hub.hf_api.RepoFile) and entry.lfs is not None:
            return str(entry.lfs.sha256)
    return None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    endpoint = huggingface_hub.constants.ENDPOINT
    with transfer.explained(what, endpoint, "upload"):
        try:
            yield
        except RevisionNotFoundError:
            raise HubError(f"{what}: there is no such branch; create it on {endpoint} first.") from None
        except RepositoryNotFoundError:
            raise HubError(
                f"{what}: {endpoint} does not let you write there; log in with `hf auth login` and a token that may "
                "write, and check the organisation's name."
            ) from None
        except HFValidationError as error:
            raise HubError(f"{what}: {str(error).splitlines()[0]} The Hub wants names as organisation/name.") from None
        except ValueError as error:  # a card that the Hub does not accept, an answer that makes no sense
            reason = " ".join(str(error).split())
            raise HubError(f"{what} was refused: {reason}") from None
