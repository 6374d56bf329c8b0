"""Reading files from ordinary web servers as they arrive; a connection that breaks is taken up where it ended."""

from __future__ import annotations

import time
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import PurePosixPath
from types import TracebackType
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from mixerzoo.errors import DataError

ATTEMPTS = 5
"""How often a request is made before the file is given up; what arrives in between starts the count anew."""

FIRST_WAIT_S = 0.5
"""Seconds before the second attempt; the wait doubles with each attempt."""

TIMEOUT_S = 60.0
"""Seconds that a server may be silent."""

_WORTH_REPEATING = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_url(location: str) -> bool:
    """Whether it is an ``http`` or ``https`` address."""
    return urlsplit(location).scheme.lower() in ("http", "https")


def url_name(url: str) -> str:
    """The last part of the path; what follows it (which may hold access tokens) is left out."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


class MissingError(DataError):
    """The server says that there is no such file."""


class RemoteFile:
    """The bytes of a file on a web server, from its first to its last.

    Args:
        url: ``http`` or ``https``. Redirects are followed, to these two only.

    Raises:
        MissingError: While reading: the server answers 404 or 410.
        DataError: While reading: the server refuses, fails several times in a row, or has another file meanwhile.
    """

    def __init__(self, url: str):
        self.url, self.name = url, url_name(url)
        self.position = 0
        self._response: HTTPResponse | None = None
        self._size: int | None = None
        self._version = ""

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        if self._response is not None:
            self._response.close()
        self._response = None

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end of the file."""
        failures = 0
        while (data := self._attempt(size, last=failures + 1 == ATTEMPTS)) is None:
            time.sleep(FIRST_WAIT_S * 2**failures)
            failures += 1
        self.position += len(data)
        return data

    def _attempt(self, size: int, *, last: bool) -> bytes | None:
        """The bytes, or None if another attempt is worth it."""
        try:
            if self._response is None:
                self._response = self._connect()
            data = self._response.read(size)
            if not data and self._size is not None and self.position < self._size:
                raise ConnectionError(f"the connection ended after {self.position:,} of {self._size:,} bytes")
        except (OSError, HTTPException) as error:
            self.close()
            self._explain(error, last=last)
            return None
        return data

    def _connect(self) -> HTTPResponse:
        headers = {"Accept-Encoding": "identity", "User-Agent": "mixerzoo"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
        response: HTTPResponse = _opener().open(Request(self.url, headers=headers), timeout=TIMEOUT_S)  # noqa: S310
        version, size = response.headers.get("ETag", ""), response.headers.get("Content-Length", "")
        start = self.position if response.status == 206 else 0
        total = start + int(size) if size.isdigit() else None
        if self.position and (version, total) != (self._version, self._size):
            response.close()
            raise DataError(f"{self.name} changed on the server while it was read: start again.")
        self._version, self._size = version, total
        if start < self.position:  # the server knows no ranges
            _discard(response, self.position)
        return response

    def _explain(self, error: OSError | HTTPException, *, last: bool) -> None:
        """Raise unless another attempt is worth it."""
        if isinstance(error, HTTPError):
            error.close()
            if error.code in (404, 410):
                raise MissingError(f"{self.name} is not on the server {_server(self.url)} ({error.code}).") from None
            if error.code not in _WORTH_REPEATING:
                raise DataError(f"{self.name}: the server {_server(self.url)} refuses it ({error.code}).") from None
        if last:
            reason = getattr(error, "reason", None) or error
            raise DataError(
                f"{self.name} cannot be read from {_server(self.url)} after {ATTEMPTS} attempts ({reason}): check the "
                "connection and start again."
            ) from None


def fetch(url: str, limit: int = 1 << 24) -> bytes | None:
    """A small file's content, or None if the server has no such file.

    Raises:
        DataError: It cannot be read, or has more than ``limit`` bytes.
    """
    content = b""
    with suppress(MissingError), RemoteFile(url) as file:
        while piece := file.read(1 << 16):
            content += piece
            if len(content) > limit:
                raise DataError(f"{file.name} has more than {limit:,} bytes.")
        return content
    return None


def _discard(response: HTTPResponse, count: int) -> None:
    while count:
        piece = response.read(min(count, 1 << 20))
        if not piece:
            raise ConnectionError("the connection ended")
        count -= len(piece)


def _server(url: str) -> str:
    return urlsplit(url).hostname or url


def _opener() -> OpenerDirector:
    """Speaks HTTP and nothing else: no local files, no FTP, whatever a redirect says."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        HTTPHandler,
        HTTPSHandler,
        HTTPDefaultErrorHandler,
        HTTPRedirectHandler,
        HTTPErrorProcessor,
        UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
