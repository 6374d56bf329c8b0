"""Files from an ordinary web server, checked against everything that it says of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub.file_download import http_get
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

from mixerzoo.errors import HubError, HubUnreachableError
from mixerzoo.weights import transfer
from mixerzoo.weights.checksums import file_digest

_PLAIN = {"Accept-Encoding": "identity"}  # ranges and sizes are those of the file itself
_LENGTHS = {"crc32c": 4, "md5": 16, "sha256": 32}


@dataclass(frozen=True)
class Announced:
    """What a server says of a file before it sends it.

    Attributes:
        size: Bytes, or None.
        version: Changes with the content (the ETag), or empty.
        digests: Hexadecimal hashes by algorithm (``"crc32c"``, ``"md5"``, ``"sha256"``).
    """

    size: int | None
    version: str
    digests: Mapping[str, str]


def download(url: str, folder: Path, what: str) -> tuple[Path, Announced]:
    """Download a file, going on where an earlier attempt broke off, with a progress bar on a terminal.

    Args:
        url: ``http`` or ``https``.
        folder: Receives the file, named after the URL and the server's version of it, as ``*.part``: it is only a stage
            on the way to something else, and the caller removes it.
        what: What to call the file in messages.

    Returns:
        The file, and what the server said of it, all of which holds.

    Raises:
        HubUnreachableError: The server does not answer, or fails.
        HubError: The file does not exist there, cannot be stored, or arrived damaged (and was removed).
    """
    parts = urlsplit(url)
    server, name = f"{parts.scheme}://{parts.netloc}", Path(parts.path).name
    with transfer.explained(what, server, "download"):
        announced = transfer.within(transfer.REACH_DEADLINE, lambda: _ask(url))
    # Another version of the file on the server starts anew: the name tells versions apart.
    target = folder / f"{name}.{hashlib.sha256(announced.version.encode()).hexdigest()[:8]}.part"
    for attempt in range(1, transfer.DOWNLOAD_ATTEMPTS + 1):
        try:
            with transfer.explained(what, server, "download"), target.open("ab") as file:
                size = file.tell()
                if announced.size is None or size > announced.size:  # where it must end is not known: start anew
                    size = file.truncate(0)
                http_get(
                    url,
                    file,
                    resume_size=size,
                    headers=dict(_PLAIN),
                    expected_size=announced.size,
                    displayed_filename=name,
                )
            break
        except HubUnreachableError:
            if attempt == transfer.DOWNLOAD_ATTEMPTS:
                raise
    for algorithm, expected in announced.digests.items():
        actual = file_digest(target, algorithm)
        if actual != expected:
            target.unlink()
            raise HubError(
                f"{what} arrived damaged ({algorithm} {actual[:12]}..., the server announced {expected[:12]}...) and "
                "was removed: try again."
            )
    return target, announced


def _ask(url: str) -> Announced:
    """One request without retries: is the file there, and what does the server say of it?"""
    response = get_session().head(url, headers=_PLAIN, timeout=transfer.REQUEST_TIMEOUT, follow_redirects=True)
    if response.status_code in (405, 501):  # a server that does not say anything beforehand
        return Announced(None, "", {})
    hf_raise_for_status(response)
    length = response.headers.get("Content-Length", "")
    return Announced(
        size=int(length) if length.isdigit() else None,
        version=response.headers.get("ETag", ""),
        digests=_digests(response.headers),
    )


def _digests(headers: Mapping[str, str]) -> dict[str, str]:
    """Hashes in a server's answer: Google's ``x-goog-hash``, and the digests of RFC 9530 and its predecessor."""
    found: dict[str, str] = {}
    pairs = ",".join(headers.get(name, "") for name in ("x-goog-hash", "Repr-Digest", "Digest"))
    for pair in pairs.split(","):
        algorithm, _, encoded = pair.strip().partition("=")
        algorithm = algorithm.lower().replace("-", "")
        with suppress(binascii.Error):
            digest = base64.b64decode(encoded.strip(":"), validate=True)
            if len(digest) == _LENGTHS.get(algorithm):
                found[algorithm] = digest.hex()
    return found
