"""Predictions: what comes out, for which images, and what is refused."""

import numpy as np
import pytest
import torch
from image_files import BAD, GOOD, gradient, make_png, make_truncated_png
from PIL import Image

import mixerzoo
from mixerzoo.data.images import find_images, load_image
from mixerzoo.errors import ConfigError, ImageError


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


def test_one_image_or_several_files_or_folders(tmp_path, model):
    path = make_png(tmp_path)
    alone = [next(mixerzoo.predict(model, one)) for one in (path, str(path), Image.open(path))]
    assert len({p.probabilities for p in alone}) == 1
    assert [p.source for p in mixerzoo.predict(model, tmp_path)] == [str(path)]
    mixed = list(mixerzoo.predict(model, [tmp_path, gradient(), path]))
    assert [p.source for p in mixed] == [str(path), "1", str(path)]
    assert list(mixerzoo.predict(model, [])) == []
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="no images"):
        list(mixerzoo.predict(model, tmp_path / "none"))


def test_predicts_in_evaluation_mode_and_restores_the_flag():
    model = mixerzoo.create_model("mixer_ti4_32", pretrained=True, drop_rate=0.9).train()
    images = [gradient(), gradient()]
    first, second = mixerzoo.predict(model, images), mixerzoo.predict(model, images)
    interleaved = [next(first), next(second), next(first), next(second)]
    assert len({p.probabilities for p in interleaved}) == 1  # no dropout
    assert model.training


def test_the_example_photograph_is_recognised(model, root):
    (prediction,) = mixerzoo.predict(model, root / "examples" / "cat.png")
    assert prediction.labels[0] == "cat"


def test_broken_images_in_memory_do_not_stop_the_others(tmp_path, model):
    with Image.open(make_truncated_png(tmp_path)) as image:
        empty, cut, good = mixerzoo.predict(model, [Image.new("RGB", (0, 3)), image, gradient()])
    assert empty.error.startswith("image 0: 0 x 3 pixels")
    assert cut.error.startswith("image 1: damaged or truncated")
    assert good.error is None


def test_wrappers_are_named(model):
    with pytest.raises(ConfigError, match=r"not a Sequential; of a wrapper .* give the model inside"):
        mixerzoo.predict(torch.nn.Sequential(model), gradient())


def test_wrong_arguments_are_refused_at_the_call(model):
    for name in ("top_k", "batch_size", "threads"):
        with pytest.raises(ConfigError, match=name):
            mixerzoo.predict(model, gradient(), **{name: 0})
    for arguments in ({"num_classes": 0}, {"global_pool": ""}):
        with pytest.raises(ConfigError, match="no class scores"):
            mixerzoo.predict(mixerzoo.create_model("mixer_ti4_32", **arguments), gradient())
    with pytest.raises(ConfigError, match="4 channels"):
        mixerzoo.predict(mixerzoo.create_model("mixer_ti4_32", in_chans=4), gradient())


def test_real_photographs(shared_data, model):
    photos = find_images([shared_data / "photos"])
    predictions = list(mixerzoo.predict(model, photos, top_k=1))
    assert len(predictions) == len(photos) == 12
    assert all(p.error is None for p in predictions)


def test_an_optimized_model_predicts_what_the_model_predicts(tmp_path, model):
    fast = mixerzoo.optimize(model, dtype=torch.float32, compile=False)
    images = [gradient(64, 48), gradient(20, 90)]
    assert mixerzoo.labels(fast) == mixerzoo.labels(model)
    fast.save(tmp_path / "fast")
    for other in (fast, mixerzoo.load_optimized(tmp_path / "fast")):
        for expected, found in zip(mixerzoo.predict(model, images), mixerzoo.predict(other, images), strict=True):
            assert found.labels == expected.labels
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
