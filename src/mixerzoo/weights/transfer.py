"""What every download and upload shares: deadlines, and one sentence for everything that can go wrong on the way."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias, TypeVar

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from mixerzoo.errors import HubError, HubUnreachableError, MixerzooError, StorageError

# huggingface_hub 2 uses httpx2, 1.x httpx; since 1.30 it exports whichever it uses.
_httpx = getattr(huggingface_hub.utils, "httpx", None) or import_module("httpx")

REQUEST_TIMEOUT = 4.0
"""Seconds that one request for a file's metadata may wait for the server."""

REACH_DEADLINE = 4.5
"""Seconds after which a server counts as unreachable, name resolution and redirects included.

Loading a model asks for two files at most, so the user knows within ten seconds.
"""

DOWNLOAD_ATTEMPTS = 3
"""How often a download that breaks off is taken up again (newer clients also try on their own)."""

Task: TypeAlias = Literal["download", "upload"]

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_LOG_IN = "the token is missing, expired or lacks permission; log in with `hf auth login`"
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
def explained(what: str, server: str, task: Task) -> Iterator[None]:
    """Turn what the HTTP client and the file system raise into one sentence with a remedy.

    Args:
        what: What is being moved, for messages.
        server: Where from or to.
        task: How to speak of it.

    Raises:
        HubUnreachableError: The server does not answer, fails, or offline mode is on.
        StorageError: The file cannot be written on this machine.
        HubError: Everything else.
    """
    try:
        yield
    except MixerzooError:
        raise
    except (_httpx.HTTPError, _httpx.InvalidURL, OSError, RuntimeError) as error:  # RuntimeError: uploads, and hf_xet
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _answered(what, server, cause) from None
        if isinstance(error, OSError) and (error.errno in _STORAGE or error.filename is not None):
            where = f" ({error.filename})" if error.filename else ""
            raise StorageError(f"{what} cannot be stored: {error.strerror}{where}.") from None
        if "Consistency check failed" in str(error):
            raise HubUnreachableError(f"{what} broke off before its end; try again.") from None
        if refused := re.search(r"\b(401|403)\b", str(error)) if isinstance(error, RuntimeError) else None:
            raise HubError(f"{what}: {server} answered with status {refused[1]}; {_LOG_IN}.") from None
        raise HubUnreachableError(unreachable(what, server, error, task)) from None


def _answered(what: str, server: str, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code if error.response is not None else "an error"
    remedy = {401: _LOG_IN, 403: _LOG_IN, 404: "check the name"}.get(status, "try again later")
    message = f"{what}: {server} answered with status {status}; {remedy}."
    server_failed = isinstance(status, int) and (status >= 500 or status == 429)
    return HubUnreachableError(message) if server_failed else HubError(message)


def unreachable(what: str, server: str, error: BaseException, task: Task) -> str:
    """Say that a server cannot be reached, or that offline mode is on, and what helps."""
    missing = " is not in the cache and" if task == "download" else ":"
    if huggingface_hub.constants.is_offline_mode():
        return f"{what}{missing} HF_HUB_OFFLINE is set: unset it once to {task}."
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    instead = ", or load a local file with checkpoint_path= or a local-dir: name" if task == "download" else ""
    return f"{what}{missing} {server} cannot be reached ({reason}): check the network or proxy{instead}."


def own_version() -> str:
    """Version of this package, ``"0"`` when run from a source tree."""
    try:
        return version("mixerzoo")
    except PackageNotFoundError:
        return "0"
