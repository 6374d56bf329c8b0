"""Made-up images as tar shards, to try a recipe's reading and training without its data."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mixerzoo.checks import check_integer
from mixerzoo.data.source import seed_of
from mixerzoo.data.tar import Written, write_shards

_CELL = 25  # pixels of a blob of colour
_GRAIN = 10.0  # standard deviation of the noise over it, of 255
_QUALITY = 90


class SyntheticImages:
    """JPEG files of blobs of colour under grain, each a function of seed and index; labels mean nothing.

    Args:
        images: How many.
        size: Width and height in pixels.
        classes: Number of classes.
        seed: Of pixels and labels.

    Raises:
        ConfigError: A number below 1.
    """

    def __init__(self, images: int, *, size: tuple[int, int], classes: int, seed: int):
        for name, value in (("images", images), ("width", size[0]), ("height", size[1]), ("classes", classes)):
            check_integer(name, value, minimum=1)
        self.images, self.size, self.num_classes, self.seed = images, size, classes, seed
        self.classes: list[str] | None = None

    def __len__(self) -> int:
        return self.images

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Decode one image."""
        with Image.open(BytesIO(self.original(index))) as image:
            return image.convert("RGB"), index % self.num_classes

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        return f"synthetic {index}"

    def original(self, index: int) -> bytes:
        """The JPEG file's bytes."""
        return _jpeg(seed_of(self.seed, index), *self.size)


def synthetic_shards(
    folder: str | Path,
    *,
    images: int = 512,
    size: tuple[int, int] = (500, 375),
    classes: int = 1000,
    seed: int = 0,
    images_per_shard: int = 32,
) -> Written:
    """Write made-up JPEG files as tar shards; pixels and file sizes are about those of ImageNet's photographs.

    Args:
        folder: Is created; may hold no shards yet.
        images: How many.
        size: Width and height in pixels.
        classes: Labels are from 0 to this, exclusive.
        seed: Of pixels and labels: the same seed writes the same images.
        images_per_shard: Images of each shard but the last; every reading process needs a shard.

    Raises:
        ConfigError: A number below 1.
        DataError: There are shards in ``folder`` already.
        StorageError: A file cannot be written.
    """
    data = SyntheticImages(images, size=size, classes=classes, seed=seed)
    return write_shards(data, folder, images_per_shard=images_per_shard)


@lru_cache(maxsize=1)  # whoever writes shards asks for the bytes right after the image
def _jpeg(seed: int, width: int, height: int) -> bytes:
    rng = np.random.default_rng(seed)
    cells = (-(-height // _CELL) + 1, -(-width // _CELL) + 1, 3)
    blobs = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(blobs, dtype=np.float32) + rng.normal(0.0, _GRAIN, (height, width, 1)).astype(np.float32)
    buffer = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
