"""Google's released Flax files: downloaded once, converted once, kept as safetensors with a record of their origin.

A cache entry is a folder with ``model.safetensors`` and ``provenance.json``; the record is written last, so an entry
without one is unfinished, whatever killed the process that made it. Entries are made under a lock, one process at a
time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from mixerzoo.atomic import write_atomically
from mixerzoo.config import MixerConfig
from mixerzoo.errors import HubError, StorageError, WeightsError
from mixerzoo.weights import hub, transfer
from mixerzoo.weights.checksums import file_digest, known_checksum
from mixerzoo.weights.download import download
from mixerzoo.weights.files import WEIGHTS_FILE, write_tensors
from mixerzoo.weights.google import read_npz
from mixerzoo.weights.sizes import config_of, differences

RECORD_FILE = "provenance.json"
CONVERTER = 1
"""Version of the conversion; entries of another version are made anew."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a converted file comes from.

    Attributes:
        source_url: The official file.
        source_size: Its bytes.
        source_sha256: Its hash, as downloaded.
        checked: Hashes that the server announced and the download had, by algorithm.
        result_size: Bytes of the safetensors file.
        result_sha256: Its hash, as written.
        converter: Version of the conversion.
        mixerzoo: Version of the package.
        date: When, UTC.
    """

    source_url: str
    source_size: int
    source_sha256: str
    checked: dict[str, str]
    result_size: int
    result_sha256: str
    converter: int
    mixerzoo: str
    date: str


def official_weights(url: str, name: str, *, stored: MixerConfig, cache_dir: str | Path | None = None) -> Path:
    """Return the converted form of an official file, downloading and converting it the first time.

    Args:
        url: The ``.npz`` file.
        name: The weights' name, for messages.
        stored: The sizes that the weights are known to have.
        cache_dir: Where files are kept; None for huggingface_hub's assets cache.

    Raises:
        HubUnreachableError: The server does not answer and the cache does not have the weights.
        HubError: The download failed or arrived damaged.
        StorageError: The cache cannot be written.
        WeightsError: The file is not the checkpoint that it should be. Nothing of it stays in the cache.
    """
    folder = entry_folder(url, cache_dir)
    if read_record(folder, url) is not None:
        _sweep(folder)  # of a process that was killed after it wrote the record
    else:
        with _locked(folder, name):
            if read_record(folder, url) is None:  # nobody else made it while we waited
                _make_entry(folder, url, name, stored)
    return folder / WEIGHTS_FILE


def _sweep(folder: Path) -> None:
    """Remove downloads that a finished entry does not need any more."""
    for part in folder.glob("*.part"):
        part.unlink()


def entry_folder(url: str, cache_dir: str | Path | None = None) -> Path:
    """The cache entry of an official file: one folder a URL, readable and unique."""
    stem = Path(urlsplit(url).path).stem
    return hub.assets_folder("official", f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:12]}", cache_dir)


def read_record(folder: Path, url: str) -> Provenance | None:
    """The record of a finished entry of this converter, or None; a file of another size is not finished."""
    try:
        record = Provenance(**json.loads((folder / RECORD_FILE).read_text()))
        size = (folder / WEIGHTS_FILE).stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    fits = (record.source_url, record.converter, record.result_size) == (url, CONVERTER, size)
    return record if fits else None


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            warnings.warn(f"Waiting for another process that is converting {name}.", UserWarning, stacklevel=2)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"The weights of {name} cannot be stored: {error}.") from None
    try:
        yield
    finally:
        lock.release()


def _make_entry(folder: Path, url: str, name: str, stored: MixerConfig) -> None:
    for leftover in folder.glob(".*.tmp"):  # of a process that was killed; we hold the lock
        leftover.unlink()
    source, announced = download(url, folder, f"The official Flax file of {name}")
    source_sha256, known = file_digest(source), known_checksum(url)
    if known not in (None, source_sha256):
        source.unlink()
        raise HubError(
            f"{url} is another file (SHA-256 {source_sha256}) than the {name} that mixerzoo knows ({known}): it was "
            "replaced there; update mixerzoo, or report it."
        )
    try:
        tensors = read_npz(source)
        found = config_of(tensors, source, act=stored.act, img_size=stored.image_hw)
        if wrong := differences(found, stored):
            raise WeightsError(f"{url} does not hold the weights of {name}: {', '.join(wrong)}.")
    except Exception:  # whatever is wrong with it would be wrong with it the next time
        source.unlink()
        raise
    target = folder / WEIGHTS_FILE
    write_tensors(tensors, target)
    record = Provenance(
        source_url=url,
        source_size=source.stat().st_size,
        source_sha256=source_sha256,
        checked=dict(announced.digests),
        result_size=target.stat().st_size,
        result_sha256=file_digest(target),
        converter=CONVERTER,
        mixerzoo=transfer.own_version(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    write_atomically(folder / RECORD_FILE, lambda path: path.write_text(text))
    _sweep(folder)
