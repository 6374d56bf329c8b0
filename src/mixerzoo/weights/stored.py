"""Which file on this machine holds certain weights, and which hash it should have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.models import PretrainedCfg

from mixerzoo.weights import hub
from mixerzoo.weights.checksums import file_digest, known_checksum
from mixerzoo.weights.files import WEIGHTS_FILE
from mixerzoo.weights.official import entry_folder, read_record


@dataclass(frozen=True)
class StoredFile:
    """A file of weights.

    Attributes:
        path: Where it is.
        sha256: Its hash now.
        expected: The hash that it should have, or None where nobody ever said.
        authority: Who says so.
        origin: Where it came from: the package, a file, ``hf-hub:`` and a repository, or a URL.
        origin_sha256: Hash of what came from there; another than ``sha256`` where that was converted.
        origin_known: The hash that this package knows of that origin, or None.
    """

    path: Path
    sha256: str
    expected: str | None
    authority: str
    origin: str
    origin_sha256: str
    origin_known: str | None = None


def stored_file(cfg: PretrainedCfg, cache_dir: str | Path | None) -> StoredFile | None:
    """Find and hash the file that was mapped for a model whose ``pretrained_cfg`` this is; None if it is gone."""
    if cfg.file:
        path = Path(cfg.file)
        path = path / WEIGHTS_FILE if path.is_dir() else path
        digest = file_digest(path)
        return StoredFile(path, digest, known_checksum(path.name), "the package", str(path), digest)
    if cfg.hf_hub_id:
        cached = hub.cached(cfg.hf_hub_id, WEIGHTS_FILE, cache_dir)
        if cached is not None:
            digest, origin = file_digest(cached), f"hf-hub:{cfg.hf_hub_id}"
            announced = hub.announced_sha256(cached)
            return StoredFile(cached, digest, announced, "the Hub", origin, digest, known_checksum(origin))
    if cfg.url:
        folder = entry_folder(cfg.url, cache_dir)
        record = read_record(folder, cfg.url)
        if record is not None:
            path = folder / WEIGHTS_FILE
            return StoredFile(
                path,
                file_digest(path),
                record.result_sha256,
                "its provenance record",
                cfg.url,
                record.source_sha256,
                known_checksum(cfg.url),
            )
    return None
