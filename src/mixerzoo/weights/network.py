"""What every download shares: deadlines, hashes, and one sentence for everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
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
from huggingface_hub.errors import HfHubHTTPError

from mixerzoo.errors import HubError, HubUnreachableError, MixerzooError

_httpx = getattr(huggingface_hub.utils, "httpx", None) or import_module("httpx")  # clients before 1.30 have no choice

REQUEST_TIMEOUT = 4.0
"""Seconds that one request for a file's metadata may wait for the server."""

REACH_DEADLINE = 4.5
"""Seconds after which a server counts as unreachable, name resolution and redirects included.

Loading a model asks for two files at most, so the user knows within ten seconds.
"""

DOWNLOAD_ATTEMPTS = 3
"""How often a download that breaks off is taken up again (newer clients also try on their own)."""

_T = TypeVar("_T")


def within(seconds: float, call: Callable[[], _T]) -> _T:
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
def explained(what: str, server: str) -> Iterator[None]:
    """Turn what the HTTP client and the file system raise into one sentence with a remedy.

    Raises:
        HubUnreachableError: The server does not answer, fails, or offline mode is on.
        HubError: Everything else.
    """
    try:
        yield
    except MixerzooError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        remedy = "try again later"
        if status in (401, 403):
            remedy = "the token is missing, expired or lacks permission; log in with `hf auth login`"
        elif status == 404:
            remedy = "check the name"
        message = f"{what}: {server} answered with status {status}; {remedy}."
        server_failed = isinstance(status, int) and (status >= 500 or status == 429)
        raise (HubUnreachableError(message) if server_failed else HubError(message)) from None
    except (_httpx.HTTPError, _httpx.InvalidURL, OSError, RuntimeError) as error:  # RuntimeError: hf_xet's
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise HubError(f"{what} cannot be stored: {error.strerror} ({error.filename}).") from None
        if "Consistency check failed" in str(error):
            raise HubUnreachableError(f"{what}: the download broke off before its end; try again.") from None
        raise HubUnreachableError(unreachable(what, server, error)) from None


def unreachable(what: str, server: str, error: BaseException) -> str:
    """Say that a server cannot be reached, or that offline mode is on, and what helps."""
    if huggingface_hub.constants.is_offline_mode():
        return f"{what} is not in the cache and HF_HUB_OFFLINE is set: unset it once to download the file."
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{what} is not in the cache and {server} cannot be reached ({reason}): check the network or proxy, or load "
        "a local file with checkpoint_path= or a local-dir: name."
    )


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hash a file; hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def own_version() -> str:
    """Version of this package, ``"0"`` when run from a source tree."""
    try:
        return version("mixerzoo")
    except PackageNotFoundError:
        return "0"
