"""Image files of every kind, whole and broken, written on the spot."""

import struct
import zlib

import numpy as np
from PIL import Image

from mixerzoo.data.images import MAX_PIXELS


def gradient(width=40, height=30, mode="RGB"):
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), np.full_like(x, 90)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def save(path, image, **kwargs):
    image.save(path, **kwargs)
    return path


def make_jpeg(p):
    return save(p / "a.jpg", gradient())


def make_png(p):
    return save(p / "a.png", gradient())


def make_webp(p):
    return save(p / "a.webp", gradient(), lossless=True)


def make_avif(p):
    return save(p / "a.avif", gradient())


def make_grey(p):
    return save(p / "grey.png", gradient(mode="L"))


def make_one_bit(p):
    return save(p / "bit.png", gradient(mode="1"))


def make_16_bit(p):
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    return save(p / "deep.png", Image.fromarray(values))


def make_16_bit_tiff(p):
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    return save(p / "deep.tiff", Image.fromarray(values))


def make_palette(p):
    return save(p / "palette.png", gradient().quantize(16))


def make_palette_with_transparency(p):
    return save(p / "clear.gif", gradient().quantize(16), transparency=0)


def make_cmyk(p):
    return save(p / "cmyk.jpg", gradient(mode="CMYK"))


def make_alpha(p):
    return save(p / "alpha.png", gradient(mode="RGBA"))


def make_grey_alpha(p):
    return save(p / "la.png", gradient(mode="LA"))


def make_animated(p):
    frames = [gradient(), gradient().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return save(p / "moving.gif", frames[0], save_all=True, append_images=frames[1:])


def make_one_pixel(p):
    return save(p / "dot.png", gradient(1, 1))


def make_wide(p):
    return save(p / "wide.png", gradient(20_000, 1))


def make_tall(p):
    return save(p / "tall.png", gradient(2, 9_000))


def make_exif(p):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    return save(p / "turned.jpg", gradient(), exif=exif)


def make_truncated(p):
    whole = make_jpeg(p).read_bytes()
    path = p / "cut.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    return path


def make_truncated_png(p):
    whole = make_png(p).read_bytes()
    path = p / "cut.png"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


def make_empty(p):
    (p / "empty.jpg").touch()
    return p / "empty.jpg"


def make_text(p):
    (p / "notes.jpg").write_text("this is no image\n" * 10)
    return p / "notes.jpg"


def make_bomb(p):
    """A valid PNG header that claims 60,000 x 60,000 pixels, in under a kilobyte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    (p / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return p / "bomb.png"


def make_large(p):
    """Between Pillow's warning and its error: refused too."""
    path = make_bomb(p)
    side = int(MAX_PIXELS**0.5) + 10
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


def make_float(p):
    return save(p / "float.tiff", Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)))


GOOD = [
    make_jpeg,
    make_png,
    make_webp,
    make_avif,
    make_grey,
    make_one_bit,
    make_16_bit,
    make_16_bit_tiff,
    make_palette,
    make_palette_with_transparency,
    make_cmyk,
    make_alpha,
    make_grey_alpha,
    make_animated,
    make_one_pixel,
    make_wide,
    make_tall,
    make_exif,
]
BAD = [make_truncated, make_truncated_png, make_empty, make_text, make_bomb, make_large, make_float]
