"""Reading image files of any kind into what the models take: RGB (or greyscale) PIL images of 8 bits a channel."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mixerzoo.errors import ImageError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp", ".avif"}
)
"""File name endings (lower case) that a folder scan takes for images."""

MAX_PIXELS = 89_478_485
"""Largest image that is decoded, in pixels (Pillow's own warning level: 256 MiB of RGB)."""


def load_image(path: str | Path, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Read one image file.

    The EXIF orientation is applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits, and of an
    animation the first frame is taken. The file is trusted with nothing: sizes are checked before pixels are decoded.

    Args:
        path: The file.
        mode: ``"RGB"`` or ``"L"`` (one channel).

    Returns:
        An image of that mode, of the file's (rotated) size.

    Raises:
        ImageError: The file is missing, empty, not an image, truncated, or larger than :data:`MAX_PIXELS`. The
            message begins with the file's name.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not an image file.") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}).") from None
    return decode_image(data, str(path), mode)


def decode_image(data: bytes, name: str, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Decode the content of an image file by the same rules as :func:`load_image`.

    Args:
        data: The file's bytes.
        name: What to call it in messages.
        mode: ``"RGB"`` or ``"L"`` (one channel).

    Raises:
        ImageError: It is empty, not an image, truncated, or too large. The message begins with ``name``.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty.")
    return _decode(lambda: Image.open(io.BytesIO(data), formats=_formats()), mode, name)


def as_mode(image: Image.Image, mode: Literal["RGB", "L"], name: str) -> Image.Image:
    """Bring an image in memory into ``mode`` by the same rules as :func:`load_image`.

    Raises:
        ImageError: It has no pixels, too many, or cannot be decoded. The message begins with ``name``.
    """
    return _decode(lambda: image.copy(), mode, name)


def _decode(open_image: Callable[[], Image.Image], mode: Literal["RGB", "L"], name: str) -> Image.Image:
    try:
        with open_image() as image:
            width, height = image.size
            if not 0 < width * height <= MAX_PIXELS:
                raise ImageError(f"{name}: {width} x {height} pixels; 1 to {MAX_PIXELS:,} pixels are decoded.")
            image.load()
            return _to_mode(ImageOps.exif_transpose(image), mode, name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format that is read ({', '.join(_formats())}).") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: the image is too large; at most {MAX_PIXELS:,} pixels are decoded.") from None
    except Exception as error:  # Pillow's decoders raise whatever they run into in damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: damaged or truncated ({reason}).") from None


@cache
def _formats() -> tuple[str, ...]:
    """The wanted formats that this Pillow was built with; others, such as EPS, start programs or are exotic."""
    Image.init()
    wanted = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
    return tuple(name for name in wanted if name in Image.OPEN)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List image files: files as given, folders searched recursively for :data:`IMAGE_SUFFIXES` in sorted order.

    Raises:
        ImageError: A path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise ImageError(f"{path}: there is no such file or folder.")
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not inside:
            raise ImageError(f"{path}: the folder has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        found += inside
    return found


def _to_mode(image: Image.Image, mode: Literal["RGB", "L"], name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no defined range; convert the file to 8 or 16 bits.")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(f"{name}: 32-bit pixels beyond 0..65535; convert the file to 8 or 16 bits.")
        image = Image.fromarray((values / 257.0 + 0.5).astype(np.uint8))  # 65535 -> 255
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(mode)
