"""Small labelled images, and tar shards of them, whole and broken."""

import io
import random
import tarfile

import numpy as np
import torch
from PIL import Image

from mixerzoo.data.images import decode_image
from mixerzoo.errors import ImageError


def png(value, size=4):
    """An image whose grey level says which it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def value_and_noise(image):
    """A transform that shows which image it got, and that draws from all three generators."""
    value = float(np.asarray(image)[0, 0, 0])
    return torch.tensor([value, random.random(), float(np.random.rand()), float(torch.rand(()))]).reshape(1, 2, 2)


def value_only(image):
    return torch.full((1, 1, 1), float(np.asarray(image)[0, 0, 0]))


class Numbers:
    """Images 0, 1, 2, ...: image i is of grey level i and of class i % 3."""

    def __init__(self, count, classes=("a", "b", "c"), corrupt=()):
        self.count, self.classes, self.corrupt = count, list(classes) if classes else None, set(corrupt)

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.corrupt:
            raise ImageError(f"{self.name(index)}: damaged.")
        return decode_image(png(index), "it"), index % 3

    def name(self, index):
        return f"number {index}"


def tar_bytes(members):
    """An archive of (name, content) in this order; a content of None makes a folder, a string a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def numbered(start, count):
    """The members of ordinary samples."""
    members = []
    for index in range(start, start + count):
        members += [(f"{index:04d}.png", png(index)), (f"{index:04d}.cls", str(index % 3).encode())]
    return members


def values(batches):
    return [int(v) for batch in batches for v in batch.images[:, 0, 0, 0]]


def same(one, other):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.faults == b.faults
        for a, b in zip(one, other, strict=True)
    )
