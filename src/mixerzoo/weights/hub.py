"""Files from the Hugging Face Hub, with the user told within ten seconds when it cannot be reached."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mixerzoo.errors import HubError, HubUnreachableError, StorageError
from mixerzoo.weights import transfer
from mixerzoo.weights.checksums import file_digest


def split_revision(repo: str) -> tuple[str, str]:
    """``"org/name@revision"`` -> (``"org/name"``, revision); the revision is ``"main"`` if none is given."""
    repo_id, _, revision = repo.partition("@")
    return repo_id, revision or "main"


def fetch(repo: str, filename: str, *, cache_dir: str | Path | None = None) -> Path:
    """Return a local copy of a file of a Hub repository, downloading it if the server has a newer one or we have none.

    A server that cannot be reached, or that fails, is no error while the cache has the file. A file whose SHA-256 is
    not the one that the server announced is removed from the cache; each file is hashed once.

    Args:
        repo: ``"org/name"`` or ``"org/name@revision"`` (branch, tag or commit).
        filename: Path of the file in the repository.
        cache_dir: The Hub cache; None for huggingface_hub's own (``HF_HOME``).

    Raises:
        HubUnreachableError: The server cannot be reached, or offline mode is on, and the file is not in the cache.
        StorageError: The cache cannot be written.
        HubError: Anything else that went wrong. Messages name repository, file and remedy.
    """
    repo_id, revision = split_revision(repo)
    what = f"{filename} of the Hub repository {repo_id}" + (f" at {revision}" if revision != "main" else "")
    path, announced = _newest(repo_id, filename, revision, cache_dir, what)
    _check_once(path, announced or announced_sha256(path), what, cache_dir)
    return path


def _newest(
    repo_id: str, filename: str, revision: str, cache_dir: str | Path | None, what: str
) -> tuple[Path, str | None]:
    """The file in the cache, downloaded if need be, and what the server says of its content if it was asked."""
    found = cached(f"{repo_id}@{revision}", filename, cache_dir)
    if found is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return found, None  # a commit never changes
    try:
        with _explained(what):
            metadata = _ask_server(repo_id, filename, revision)
    except HubUnreachableError:
        if found is not None:
            return found, None
        raise
    path = _download(repo_id, filename, revision, cache_dir, what)
    return path, metadata.etag if metadata.commit_hash == path.parent.name else None


def announced_sha256(path: Path) -> str | None:
    """What the server said of a file in the cache: content is named after its ETag, a large file's SHA-256."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def cached(repo: str, filename: str, cache_dir: str | Path | None = None) -> Path | None:
    """The file of ``"org/name[@revision]"`` in the cache, or None; no request is made."""
    repo_id, revision = split_revision(repo)
    try:
        found = huggingface_hub.try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir, revision=revision)
    except HFValidationError:
        return None  # the request that follows reports the malformed name
    return Path(found) if isinstance(found, str) else None


def discard(path: Path) -> None:
    """Remove a damaged file from the Hub cache, so that the next attempt downloads it anew.

    The cache's files are links to content that may be linked once more; the whole chain goes.
    """
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _ask_server(repo_id: str, filename: str, revision: str) -> huggingface_hub.HfFileMetadata:
    """One request without retries, within the deadline: is the server there, and what does it say of the file?"""
    url = huggingface_hub.hf_hub_url(repo_id, filename, revision=revision)
    return transfer.within(
        transfer.REACH_DEADLINE,
        lambda: huggingface_hub.get_hf_file_metadata(url, timeout=transfer.REQUEST_TIMEOUT),
    )


def _download(repo_id: str, filename: str, revision: str, cache_dir: str | Path | None, what: str) -> Path:
    """Download into the Hub cache; what broke off is taken up again where it ended."""
    for attempt in range(1, transfer.DOWNLOAD_ATTEMPTS + 1):
        try:
            with _explained(what):
                path = huggingface_hub.hf_hub_download(
                    repo_id,
                    filename,
                    revision=revision,
                    cache_dir=cache_dir,
                    etag_timeout=transfer.REQUEST_TIMEOUT,
                    library_name="mixerzoo",
                    library_version=transfer.own_version(),
                )
            break
        except HubUnreachableError:
            if attempt == transfer.DOWNLOAD_ATTEMPTS:
                raise
    return Path(path)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with a remedy."""
    endpoint = huggingface_hub.constants.ENDPOINT
    with transfer.explained(what, endpoint, "download"):
        try:
            yield
        except GatedRepoError:
            raise HubError(
                f"{what} is gated: accept its terms at {endpoint}, then log in with `hf auth login`."
            ) from None
        except RevisionNotFoundError:
            raise HubError(f"{what}: {endpoint} has no such revision; check the name behind the @.") from None
        except RepositoryNotFoundError:
            raise HubError(
                f"{what}: {endpoint} has no such repository, or it is private; check the name, or log in with "
                "`hf auth login`."
            ) from None
        except LocalEntryNotFoundError as error:
            raise HubUnreachableError(transfer.unreachable(what, endpoint, error, "download")) from None
        except EntryNotFoundError:
            raise HubError(
                f"{what}: the repository has no such file; mixerzoo loads config.json and model.safetensors."
            ) from None
        except HFValidationError as error:
            raise HubError(
                f"{what}: {str(error).splitlines()[0]} Write it as hf-hub:organisation/name[@revision]."
            ) from None


def assets_folder(kind: str, entry: str, cache_dir: str | Path | None = None) -> Path:
    """A folder of ours, ``mixerzoo/<kind>/<entry>``, created if need be.

    It lies in huggingface_hub's assets cache, or in ``cache_dir`` where one is given.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        return huggingface_hub.cached_assets_path("mixerzoo", kind, entry, assets_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise StorageError(f"The cache folder for {entry} cannot be created ({str(error).splitlines()[0]}).") from None


def _check_once(path: Path, expected: str | None, what: str, cache_dir: str | Path | None) -> None:
    """Compare a file with the SHA-256 that the server announced, unless an earlier load did, and note that.

    The note holds the file's size and time: a file that was exchanged is hashed again, and so is one whose download
    was killed before its hash was known, or that another program put there. Small files have another kind of ETag;
    they are parsed and checked.
    """
    if expected is None or not re.fullmatch(r"[0-9a-f]{64}", expected):
        return
    status = path.stat()
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    with suppress(OSError, ValueError):
        note = assets_folder("verified", expected, cache_dir) / "note.json"
        if json.loads(note.read_text()) == seen:
            return
    actual = file_digest(path)
    if actual != expected:
        discard(path)
        raise HubError(
            f"{what} is damaged (SHA-256 {actual[:12]}..., the server announced {expected[:12]}...) and was removed "
            "from the cache: try again."
        )
    with suppress(OSError):  # where the cache cannot be written the file is hashed every time
        note = assets_folder("verified", expected, cache_dir) / "note.json"
        note.write_text(json.dumps(seen))
