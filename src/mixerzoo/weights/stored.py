"""Which file on this machine holds certain weights, and which hash it should have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

from mixerzoo.weights import hub, network
from mixerzoo.weights.files import WEIGHTS_FILE
from mixerzoo.weights.official import entry_folder, read_record

_CHECKSUMS = Path(__file__).parent.parent / "assets" / "checksums.json"


@dataclass(frozen=True)
class StoredFile:
    """A file of weights.

    Attributes:
        path: Where it is.
        sha256: Its hash now.
        expected: The hash that it should have, or None where nobody ever said.
        authority: Who says so.
        origin: Where it came from.
        origin_sha256: Hash of the file that it was converted from, or None.
    """

    path: Path
    sha256: str
    expected: str | None
    authority: str
    origin: str
    origin_sha256: str | None = None


def stored_file(cfg: PretrainedCfg, *, source: str | None, cache_dir: str | Path | None) -> StoredFile | None:
    """Find and hash the file that :func:`mixerzoo.create_model` maps for ``cfg``; None if it is not there."""
    if cfg.file:
        path = Path(cfg.file)
        path = path / WEIGHTS_FILE if path.is_dir() else path
        known = known_checksums().get(path.name)
        return StoredFile(path, network.file_digest(path), known, "the package", str(path))
    if cfg.hf_hub_id and source != "npz":
        cached = hub.cached(cfg.hf_hub_id, WEIGHTS_FILE, cache_dir)
        if cached is not None:
            announced = hub.announced_sha256(cached)
            return StoredFile(cached, network.file_digest(cached), announced, "the Hub", f"hf-hub:{cfg.hf_hub_id}")
    if cfg.url:
        folder = entry_folder(cfg.url, cache_dir)
        record = read_record(folder, cfg.url)
        if record is not None:
            path = folder / WEIGHTS_FILE
            digest = network.file_digest(path)
            return StoredFile(
                path, digest, record.result_sha256, "its provenance record", cfg.url, record.source_sha256
            )
    return None


def known_checksums() -> dict[str, Any]:
    """SHA-256 by file name of what ships with the package, and by URL of released files as they were first seen."""
    content: dict[str, Any] = json.loads(_CHECKSUMS.read_text())
    return content
