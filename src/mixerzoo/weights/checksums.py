"""SHA-256 hashes that are known in advance: of what ships with the package, and of released files once seen.

``assets/checksums.json`` maps a file name of ``assets``, the URL of an official file, or ``hf-hub:`` and a repository
to a hash. The tests marked ``network`` add those of released files when they first run where these can be reached.
"""

from __future__ import annotations

import json
from pathlib import Path

CHECKSUMS_FILE = Path(__file__).parent.parent / "assets" / "checksums.json"


def known_checksum(origin: str) -> str | None:
    """The hash that a file is known to have, or None."""
    content: dict[str, str] = json.loads(CHECKSUMS_FILE.read_text(encoding="utf-8"))
    return content.get(origin)
