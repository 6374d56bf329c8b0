"""Hashing files, and the SHA-256 hashes known in advance: of what ships here, and of released files once seen.

``assets/checksums.json`` maps a file name of ``assets``, the URL of an official file, or ``hf-hub:`` and a repository
to a hash. The tests marked ``network`` add those of released files when they first run where these can be reached.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHECKSUMS_FILE = Path(__file__).parent.parent / "assets" / "checksums.json"


def known_checksum(origin: str) -> str | None:
    """The hash that a file is known to have, or None."""
    content: dict[str, str] = json.loads(CHECKSUMS_FILE.read_text(encoding="utf-8"))
    return content.get(origin)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hash a file with an algorithm of hashlib's or ``"crc32c"``; hexadecimal."""
    digest: Any
    if algorithm == "crc32c":
        from google_crc32c import Checksum  # here, because it warns on import where it has no compiled part

        digest = Checksum()
    else:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return str(digest.digest().hex())
