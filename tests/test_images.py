"""Reading image files of every kind, whole and broken."""

import numpy as np
import pytest
from image_files import (
    gradient,
    make_16_bit,
    make_16_bit_tiff,
    make_animated,
    make_avif,
    make_exif,
    make_jpeg,
    make_palette_with_transparency,
    make_png,
    make_truncated_png,
    make_webp,
    save,
)
from PIL import Image

from mixerzoo.data.images import as_mode, decode_image, find_images, load_image
from mixerzoo.errors import ImageError


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged metadata
def test_random_damage_never_escapes_as_another_error(tmp_path):
    """Flip and cut bytes of several formats: an image or an ImageError, nothing else."""
    rng, refused = np.random.default_rng(0), 0
    for make in (
        make_avif,
        make_jpeg,
        make_png,
        make_webp,
        make_palette_with_transparency,
        make_16_bit_tiff,
        make_exif,
    ):
        whole = make(tmp_path).read_bytes()
        target = tmp_path / f"damaged{make(tmp_path).suffix}"
        for _ in range(40):
            data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for position in rng.integers(0, len(data), size=3):
                data[position] = rng.integers(256)
            target.write_bytes(data)
            try:
                mode = load_image(target).mode
            except ImageError:
                refused += 1
            else:
                assert mode == "RGB"
    assert refused > 20


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged metadata
def test_damaged_metadata_is_an_image_or_one_line(tmp_path):
    whole = make_exif(tmp_path).read_bytes()
    start = whole.index(b"Exif")
    path = tmp_path / "damaged.jpg"
    for position in range(start, start + 40):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        message = ""
        try:
            load_image(path)
        except ImageError as error:
            message = str(error)
        assert "\n" not in message


def test_formats_that_start_programs_are_not_opened(tmp_path):
    path = tmp_path / "script.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ImageError, match="not an image in a format that is read"):
        load_image(path)


def test_images_in_memory_follow_the_same_rules(tmp_path):
    for make in (make_exif, make_16_bit, make_palette_with_transparency, make_png):
        path = make(tmp_path)
        with Image.open(path) as image:
            in_memory = as_mode(image, "RGB", "it")
        assert np.array_equal(np.asarray(in_memory), np.asarray(load_image(path)))
    with pytest.raises(ImageError, match=r"^it: 0 x 5 pixels"):
        as_mode(Image.new("RGB", (0, 5)), "RGB", "it")
    with Image.open(make_truncated_png(tmp_path)) as cut, pytest.raises(ImageError, match=r"^it: damaged or truncated"):
        as_mode(cut, "RGB", "it")


def test_bytes_follow_the_same_rules(tmp_path):
    for make in (make_exif, make_16_bit, make_palette_with_transparency, make_webp):
        path = make(tmp_path)
        decoded = decode_image(path.read_bytes(), "it", "L")
        assert decoded.mode == "L"
        assert np.array_equal(np.asarray(decoded), np.asarray(load_image(path, "L")))
    with pytest.raises(ImageError, match=r"^it: the file is empty"):
        decode_image(b"", "it")
    with pytest.raises(ImageError, match=r"^it: damaged or truncated"):
        decode_image(make_truncated_png(tmp_path).read_bytes(), "it")
    with pytest.raises(ImageError, match=r"^it: not an image in a format"):
        decode_image(b"GIF? no", "it")


def test_orientation_is_applied(tmp_path):
    turned = load_image(make_exif(tmp_path))
    assert turned.size == (30, 40)
    expected = gradient().transpose(Image.Transpose.ROTATE_270)
    difference = np.abs(np.asarray(turned).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() < 4  # JPEG


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    for make in (make_16_bit, make_16_bit_tiff):
        values = np.asarray(load_image(make(tmp_path), "L")).astype(int).ravel()
        assert values[0] == 0
        assert values[-1] == 255
        assert np.abs(values - np.linspace(0, 255, values.size)).max() <= 1


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    loaded = load_image(save(tmp_path / "clear.png", image))
    assert loaded.getpixel((0, 0)) == (10, 20, 30)
    assert loaded.getpixel((3, 3)) == (255, 255, 255)


def test_animation_gives_its_first_frame(tmp_path):
    loaded = np.asarray(load_image(make_animated(tmp_path))).astype(int)
    assert np.abs(loaded - np.asarray(gradient()).astype(int)).mean() < 12  # palette
    assert loaded[:, 0, 0].mean() < loaded[:, -1, 0].mean()


def test_opaque_images_are_untouched(tmp_path):
    assert np.array_equal(np.asarray(load_image(make_png(tmp_path))), np.asarray(gradient()))


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path / "absent.jpg")


def test_find_images(tmp_path):
    (tmp_path / "b").mkdir()
    names = ["z.jpg", "b/a.PNG", "b/c.webp", "skip.txt"]
    for name in names:
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "b/a.PNG", tmp_path / "b/c.webp", tmp_path / "z.jpg"]
    assert find_images([tmp_path / "skip.txt"]) == [tmp_path / "skip.txt"]  # a file as given
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="no images"):
        find_images([tmp_path / "none"])
    with pytest.raises(ImageError, match="no such file"):
        find_images([tmp_path / "absent"])
