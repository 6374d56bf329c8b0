"""A Flax archive (``.npz``), read without believing it.

NumPy's pickle support is never used. Names, shapes and types of all arrays are taken from their headers before any data
is read, and every array is read to the end of its archive member, whose checksum :mod:`zipfile` verifies there.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mixerzoo.errors import ConfigError, DamagedFileError, WeightsError

MAX_EXPANSION = 100
"""Files that unpack to more than so many times their size are refused; weights hardly compress at all."""
_MAX_ARRAYS = 10_000
_LOCAL_HEADER = 30  # bytes before a member's name and extra field (PKWARE's APPNOTE.TXT, section 4.3.7)
_ENCRYPTED = 1


@dataclass(frozen=True)
class NpzArray:
    """One array of an archive, known by its header.

    Attributes:
        key: Its name in the archive, without ``.npy``.
        shape: Its shape.
        dtype: Its type.
        fortran: Whether its first axis varies fastest.
        offset: Bytes of the header.
        member: Its entry in the archive.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    member: zipfile.ZipInfo

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what reading an archive raises into one sentence.

    Raises:
        DamagedFileError: It is no whole archive of arrays.
        WeightsError: It is missing or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise WeightsError(f"There is no weights file {path}.") from None
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise DamagedFileError(f"{path} is not a whole .npz archive ({error}): fetch or write it again.") from None
    except (OSError, MemoryError) as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from None


def read_headers(archive: zipfile.ZipFile, path: Path) -> Iterator[NpzArray]:
    """The header of every array; no data is read."""
    members = archive.infolist()
    if len(members) > _MAX_ARRAYS:
        raise WeightsError(f"{path} holds {len(members)} arrays, far more than a Mixer has.")
    if sum(member.file_size for member in members) > MAX_EXPANSION * path.stat().st_size:
        raise WeightsError(f"{path} would unpack to more than {MAX_EXPANSION} times its size; weights never do.")
    seen = set()
    for member in members:
        key = member.filename.removesuffix(".npy")
        if key in seen or key == member.filename:
            raise WeightsError(
                f"{path}: {member.filename} is {'there twice' if key in seen else 'not an array (.npy)'}."
            )
        seen.add(key)
        with archive.open(member) as file:
            shape, fortran, dtype = _read_header(file, key, path)
            offset = file.tell()
        if dtype.hasobject:
            raise WeightsError(f"{path}: {key} is a pickled array, which could run code when read; it is refused.")
        yield NpzArray(key, shape, dtype, fortran, offset, member)


def _read_header(file: IO[bytes], key: str, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError):
        raise
    except Exception as error:  # NumPy parses headers with Python's own parser, which has many ways to fail
        raise DamagedFileError(f"{path}: {key} has no header that NumPy reads ({error}).") from None
    raise DamagedFileError(f"{path}: {key} is in version {version[0]}.{version[1]} of the .npy format.")


def read_tensor(
    archive: zipfile.ZipFile, array: NpzArray, shape: tuple[int, ...], scratch: np.ndarray[Any, Any], path: Path
) -> Tensor:
    """Read one array to the end of its archive member, and verify its checksum.

    Args:
        archive: The open archive.
        array: Which one.
        shape: Its shape without surplus axes.
        scratch: Bytes to read it into, at least as many as it has.
        path: What to call the file in messages.
    """
    if array.member.file_size != array.offset + array.num_bytes:
        raise DamagedFileError(f"{path}: {array.key} is not as long as its header says.")
    data = scratch[: array.num_bytes]
    if array.member.compress_type == zipfile.ZIP_STORED and not array.member.flag_bits & _ENCRYPTED:
        _read_stored(path, array, memoryview(data.data))
    else:
        with archive.open(array.member) as file:
            file.read(array.offset)
            _fill(file, memoryview(data.data), array.key)
    values = _to_float32(data.view(array.dtype))
    if array.fortran:  # the first axis varies fastest
        values = values.reshape(array.shape[::-1]).permute(*reversed(range(len(array.shape))))
    values = values.reshape(shape)
    if not all_finite(values):
        raise WeightsError(f"{path}: {array.key} holds NaN or infinite values.")
    if values.ndim == 4:
        values = values.permute(3, 2, 0, 1)  # (height, width, in, out) -> (out, in, height, width)
    elif values.ndim == 2:
        values = values.t()  # (in, out) -> (out, in)
    return values.clone(memory_format=torch.contiguous_format)


def _read_stored(path: Path, array: NpzArray, buffer: memoryview) -> None:
    """Read an uncompressed member straight from the file: zipfile's layers would cost as much as the disk."""
    member = array.member
    with path.open("rb", buffering=0) as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        file.seek(member.header_offset + _LOCAL_HEADER + name_length + extra_length)
        checksum = zlib.crc32(file.read(array.offset))
        _fill(file, buffer, array.key)
    if zlib.crc32(buffer, checksum) != member.CRC:
        raise zipfile.BadZipFile(f"bad CRC-32 of {array.key}")


def _fill(file: Any, buffer: memoryview, key: str) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise EOFError(f"{key} ends early")
        done += count


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, without a temporary as ``torch.isfinite`` makes."""
    return values.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values))


def _to_float32(values: np.ndarray[Any, Any]) -> Tensor:
    """Without a copy where it is float32 already."""
    if values.dtype == np.dtype("V2"):
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(values.astype(np.float32, copy=False))
