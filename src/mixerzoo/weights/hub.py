"""Files from the Hugging Face Hub, with the user told within ten seconds when it cannot be reached."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mixerzoo.errors import HubError, HubUnreachableError

_httpx = getattr(huggingface_hub.utils, "httpx", None) or import_module("httpx")  # clients before 1.30 have no choice

REQUEST_TIMEOUT = 4.0
"""Seconds that one request for a file's metadata may wait for the server."""

REACH_DEADLINE = 4.5
"""Seconds after which the server counts as unreachable, name resolution and redirects included.

A model needs two files at most, so the user knows within ten seconds.
"""

_T = TypeVar("_T")

DOWNLOAD_ATTEMPTS = 3
"""How often a download that breaks off is taken up again (newer clients also try on their own)."""


def split_revision(repo: str) -> tuple[str, str]:
    """``"org/name@revision"`` -> (``"org/name"``, revision); the revision is ``"main"`` if none is given."""
    repo_id, _, revision = repo.partition("@")
    return repo_id, revision or "main"


def fetch(repo: str, filename: str, *, cache_dir: str | Path | None = None) -> Path:
    """Return a local copy of a file of a Hub repository, downloading it if the server has a newer one or we have none.

    A server that cannot be reached, or that fails, is no error while the cache has the file. A freshly downloaded
    file whose SHA-256 is not the one that the server announced is removed from the cache.

    Args:
        repo: ``"org/name"`` or ``"org/name@revision"`` (branch, tag or commit).
        filename: Path of the file in the repository.
        cache_dir: The Hub cache; None for huggingface_hub's own (``HF_HOME``).

    Raises:
        HubUnreachableError: The server cannot be reached, or offline mode is on, and the file is not in the cache.
        HubError: Anything else that went wrong. Messages name repository, file and remedy.
    """
    repo_id, revision = split_revision(repo)
    what = f"{filename} of the Hub repository {repo_id}" + (f" at {revision}" if revision != "main" else "")
    cached = _in_cache(repo_id, filename, revision, cache_dir)
    if cached is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return cached  # a commit never changes
    try:
        with _explained(what):
            metadata = _ask_server(repo_id, filename, revision)
    except HubUnreachableError:
        if cached is not None:
            return cached
        raise
    path = _download(repo_id, filename, revision, cache_dir, what)
    if path != cached and metadata.commit_hash == path.parent.name:
        _verify(path, metadata.etag, what)
    return path


def discard(path: Path) -> None:
    """Remove a damaged file from the Hub cache, so that the next attempt downloads it anew.

    The cache's files are links to content that may be linked once more; the whole chain goes.
    """
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _in_cache(repo_id: str, filename: str, revision: str, cache_dir: str | Path | None) -> Path | None:
    try:
        found = huggingface_hub.try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir, revision=revision)
    except HFValidationError:
        return None  # the request that follows reports the malformed name
    return Path(found) if isinstance(found, str) else None


def _ask_server(repo_id: str, filename: str, revision: str) -> huggingface_hub.HfFileMetadata:
    """One request without retries, within the deadline: is the server there, and what does it say of the file?"""
    url = huggingface_hub.hf_hub_url(repo_id, filename, revision=revision)
    return _within(REACH_DEADLINE, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=REQUEST_TIMEOUT))


def _download(repo_id: str, filename: str, revision: str, cache_dir: str | Path | None, what: str) -> Path:
    """Download into the Hub cache; what broke off is taken up again where it ended."""
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            with _explained(what):
                path = huggingface_hub.hf_hub_download(
                    repo_id,
                    filename,
                    revision=revision,
                    cache_dir=cache_dir,
                    etag_timeout=REQUEST_TIMEOUT,
                    library_name="mixerzoo",
                    library_version=_own_version(),
                )
            break
        except HubUnreachableError:
            if attempt == DOWNLOAD_ATTEMPTS:
                raise
    return Path(path)


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Run ``call`` in a thread and give up on it after ``seconds``; name resolution has no timeout of its own."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # handed to the caller's thread
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a pool would wait for its threads at exit
    try:
        return outcome.result(seconds)
    except FutureTimeoutError:
        if outcome.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with a remedy."""
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        yield
    except GatedRepoError:
        raise HubError(f"{what} is gated: accept its terms at {endpoint}, then log in with `hf auth login`.") from None
    except RevisionNotFoundError:
        raise HubError(f"{what}: {endpoint} has no such revision; check the name behind the @.") from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{what}: {endpoint} has no such repository, or it is private; check the name, or log in with "
            "`hf auth login`."
        ) from None
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(_unreachable(what, endpoint, error)) from None
    except EntryNotFoundError:
        raise HubError(
            f"{what}: the repository has no such file; mixerzoo loads config.json and model.safetensors."
        ) from None
    except HFValidationError as error:
        raise HubError(
            f"{what}: {str(error).splitlines()[0]} Write it as hf-hub:organisation/name[@revision]."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        remedy = "try again later"
        if status in (401, 403):
            remedy = "the token is missing, expired or lacks permission; log in with `hf auth login`"
        elif status == 404:
            remedy = "check the name"
        message = f"{what}: {endpoint} answered with status {status}; {remedy}."
        server_failed = isinstance(status, int) and (status >= 500 or status == 429)
        raise (HubUnreachableError(message) if server_failed else HubError(message)) from None
    except (_httpx.HTTPError, _httpx.InvalidURL, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise HubError(f"{what} cannot be stored: {error.strerror} ({error.filename}).") from None
        if "Consistency check failed" in str(error):
            raise HubError(f"{what}: the download broke off before its end; try again.") from None
        raise HubUnreachableError(_unreachable(what, endpoint, error)) from None


def _unreachable(what: str, endpoint: str, error: BaseException) -> str:
    if huggingface_hub.constants.is_offline_mode():
        return f"{what} is not in the cache and HF_HUB_OFFLINE is set: unset it once to download the file."
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{what} is not in the cache and {endpoint} cannot be reached ({reason}): check the network or proxy, or load "
        "a local file with checkpoint_path= or a local-dir: name."
    )


def _verify(path: Path, announced: str | None, what: str) -> None:
    """Compare a file with the SHA-256 that the server announced as its ETag.

    Small files have another kind of ETag; they are parsed and checked.
    """
    if announced is None or not re.fullmatch(r"[0-9a-f]{64}", announced):
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    actual = digest.hexdigest()
    if actual != announced:
        discard(path)
        raise HubError(
            f"{what} arrived damaged (SHA-256 {actual[:12]}..., the server announced {announced[:12]}...) and was "
            "removed from the cache: try again."
        )


def _own_version() -> str:
    try:
        return version("mixerzoo")
    except PackageNotFoundError:  # run from a source tree
        return "0"
