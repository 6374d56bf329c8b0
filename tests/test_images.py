"""Image files of every kind, whole and broken, and what prediction makes of them."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import mixerzoo
from mixerzoo.data.images import MAX_PIXELS, find_images, load_image
from mixerzoo.data.transforms import MAX_ASPECT, LimitAspect
from mixerzoo.errors import ConfigError, ImageError


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


GOOD = [value for name, value in sorted(globals().items()) if name.startswith("make_")]


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


BAD = [make_truncated, make_truncated_png, make_empty, make_text, make_bomb, make_large, make_float]


@pytest.fixture(scope="module")
def model():
    return mixerzoo.create_model("mixer_ti4_32", pretrained=True).eval()


@pytest.mark.parametrize("make", GOOD)
def test_every_kind_of_image_gets_a_prediction(tmp_path, make, model):
    path = make(tmp_path)
    image = load_image(path)
    assert image.mode == "RGB"
    (prediction,) = mixerzoo.predict(model, [path], top_k=10)
    assert prediction.error is None
    assert prediction.source == str(path)
    assert sum(prediction.probabilities) == pytest.approx(1.0, abs=1e-4)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert set(prediction.labels) == set(mixerzoo.labels(model))


@pytest.mark.parametrize("make", BAD)
def test_broken_images_name_the_file_in_one_line(tmp_path, make, model):
    path = make(tmp_path)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    good = make_png(tmp_path)
    first, second = mixerzoo.predict(model, [path, good])
    assert first.error == str(caught.value)
    assert first.labels == ()
    assert second.error is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged metadata
def test_random_damage_never_escapes_as_another_error(tmp_path):
    """Flip and cut bytes of several formats: an image or an ImageError, nothing else."""
    rng, refused = np.random.default_rng(0), 0
    for make in (make_jpeg, make_png, make_webp, make_palette_with_transparency, make_16_bit_tiff, make_exif):
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


def test_long_images_are_cut_to_what_the_crop_sees():
    for size in [(1000, 10), (10, 1000)]:
        image = gradient(*size)
        cut = LimitAspect()(image)
        assert max(cut.size) == MAX_ASPECT * min(cut.size)
        left, top = (size[0] - cut.size[0]) // 2, (size[1] - cut.size[1]) // 2
        expected = image.crop((left, top, left + cut.size[0], top + cut.size[1]))
        assert np.array_equal(np.asarray(cut), np.asarray(expected))
    square = gradient(40, 30)
    assert LimitAspect()(square) is square


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


def test_order_and_batches_do_not_matter(tmp_path, model):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(7)]
    one_by_one = [next(mixerzoo.predict(model, [image])) for image in images]
    together = list(mixerzoo.predict(model, images, batch_size=3))
    assert [p.source for p in together] == [str(i) for i in range(7)]
    for a, b in zip(one_by_one, together, strict=True):
        assert a.labels == b.labels
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_prediction_is_the_models(tmp_path, model):
    image = gradient(64, 48)
    tensor = mixerzoo.create_transform(model)(image)
    with torch.no_grad():
        expected = model(tensor[None]).softmax(dim=-1)[0]
    (prediction,) = mixerzoo.predict(model, [image], top_k=1)
    assert prediction.probabilities[0] == pytest.approx(expected.max().item(), abs=1e-6)
    assert prediction.labels[0] == mixerzoo.labels(model)[int(expected.argmax())]


def test_unnamed_classes_and_grey_models():
    model = mixerzoo.create_model("mixer_ti4_32", pretrained=True, num_classes=3, in_chans=1)
    (prediction,) = mixerzoo.predict(model, [gradient()], top_k=9)
    assert sorted(prediction.labels) == ["0", "1", "2"]


def test_bad_arguments(model):
    for kwargs in ({"top_k": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            next(mixerzoo.predict(model, [gradient()], **kwargs))
    with pytest.raises(ConfigError, match="no classification head"):
        next(mixerzoo.predict(mixerzoo.create_model("mixer_ti4_32", num_classes=0), [gradient()]))
    with pytest.raises(ConfigError, match="4 channels"):
        next(mixerzoo.predict(mixerzoo.create_model("mixer_ti4_32", in_chans=4), [gradient()]))


def test_evaluation_transform_is_timms(tmp_path):
    """Same pixels as timm's own pipeline for the flagship's configuration."""
    import timm

    image = gradient(300, 260)
    ours = mixerzoo.create_transform("mixer_b16.goog_in1k")(image)
    theirs = timm.data.create_transform(
        input_size=(3, 224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875
    )(image)
    assert torch.equal(ours, theirs)
    assert ours.shape == (3, 224, 224)
    assert -1.0 <= ours.min() < ours.max() <= 1.0


def test_transform_follows_the_model():
    model = mixerzoo.create_model("mixer_b16", img_size=(64, 96), in_chans=1, device="meta")
    assert mixerzoo.create_transform(model)(gradient(mode="L")).shape == (1, 64, 96)
    training = mixerzoo.create_transform("mixer_b16.miil_in21k", is_training=True)
    tensor = training(gradient(300, 300))
    assert tensor.shape == (3, 224, 224)
    assert 0.0 <= tensor.min() < tensor.max() <= 1.0  # MIIL's range


def test_real_photographs(shared_data, model):
    photos = find_images([shared_data / "photos"])
    predictions = list(mixerzoo.predict(model, photos, top_k=1))
    assert len(predictions) == len(photos) == 12
    assert all(p.error is None for p in predictions)
