"""What kind of data a name stands for: an image folder, tar shards, or a data set of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mixerzoo.data.remote import is_url

Kind = Literal["folder", "shards", "hub"]

HUB = "hf:"
"""What names of the Hub begin with."""


def kind_of(where: str, splits: Sequence[str] = ()) -> Kind:
    """Tell the kind of data from its name, and from what lies there.

    Args:
        where: A folder, a path or ``http(s)`` address of tar shards with ranges in braces, or ``hf:...``.
        splits: The folders in it that may hold the data, in order of preference.
    """
    if where.startswith(HUB):
        return "hub"
    return "folder" if shard_place(where, splits) is None else "shards"


def shard_place(where: str, splits: Sequence[str] = ()) -> str | None:
    """Where the tar shards are: ``where`` itself, or the first folder of ``splits`` in it; None for no shards."""
    if is_url(where) or where.endswith(".tar"):
        return where
    place = next((Path(where) / split for split in splits if (Path(where) / split).is_dir()), Path(where))
    if not place.is_dir() or not any(place.glob("*.tar")):
        return None
    if any(path.is_dir() and not path.name.startswith(".") for path in place.iterdir()):
        return None  # with folders inside it is an image folder, in which someone left an archive
    return str(place)


def hub_name(where: str) -> str:
    """What the library ``datasets`` is asked for: without ``hf:`` if that is a place on this machine."""
    local = where.removeprefix(HUB)
    return local if Path(local).exists() else where
