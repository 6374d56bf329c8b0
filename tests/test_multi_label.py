"""Average precision: against its definition by loops, and on folders with a label file."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers import TINY, randomise
from PIL import Image

import mixerzoo
from mixerzoo.errors import DataError, WeightsError
from mixerzoo.inference.multi_label import (
    MultiLabelFolder,
    average_precision,
    evaluate_multi_label,
    multi_label_scores,
)
from mixerzoo.inference.scoring import EvalOptions

CLASSES = ["forest", "land, with gaps", "sea", "town", "unseen"]


def by_definition(scores, targets):
    """For each positive the precision among all that score at least as high; their mean. O(N^2)."""
    positives = [i for i, target in enumerate(targets) if target]
    if not positives:
        return None
    precisions = []
    for i in positives:
        above = [j for j in range(len(scores)) if scores[j] >= scores[i]]
        precisions.append(sum(targets[j] for j in above) / len(above))
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_against_the_definition(levels, share):
    """With few levels almost every score is tied."""
    generator = torch.Generator().manual_seed(levels)
    for images in (1, 2, 57):
        scores = torch.randint(0, levels, (images,), generator=generator) / levels
        targets = torch.rand(images, generator=generator) < share
        expected = by_definition(scores.tolist(), targets.int().tolist())
        actual = average_precision(scores, targets)
        assert actual == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_known_values():
    assert average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])) == pytest.approx(5 / 6)
    assert average_precision(torch.tensor([3.0, 2, 1]), torch.tensor([1, 1, 0])) == 1.0
    assert average_precision(torch.zeros(8), torch.tensor([1, 0, 0, 0, 0, 0, 1, 0])) == 0.25  # chance: no order at all
    assert average_precision(torch.tensor([1.0, 2.0]), torch.zeros(2)) is None
    assert average_precision(torch.zeros(0), torch.zeros(0)) is None


def test_only_the_order_matters():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-4, 5, (60,), generator=generator).double()
    targets = torch.rand(60, generator=generator) < 0.3
    value = average_precision(scores, targets)
    assert average_precision(scores.sigmoid(), targets) == value
    order = torch.randperm(60, generator=generator)
    assert average_precision(scores[order], targets[order]) == pytest.approx(value, abs=1e-15)
    large = 40.0 + scores  # whose sigmoids all round to 1 in float32
    assert average_precision(large, targets) == value
    assert average_precision(large.float().sigmoid(), targets) != value


def test_macro_and_micro():
    """The class without images is left out of the macro average, and its scores still compete in the micro one."""
    scores = torch.tensor([[2.0, 0.0, 9.0], [1.0, 3.0, 9.0], [0.0, 1.0, -9.0]])
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    found = multi_label_scores(scores, targets, ["a", "b", "c"])
    assert found.average_precision == (pytest.approx((1 + 2 / 3) / 2), pytest.approx(1 / 3), None)
    assert found.positives == (2, 1, 0)
    assert found.macro == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    assert found.micro == pytest.approx(by_definition(scores.flatten().tolist(), targets.flatten().tolist()))
    with pytest.raises(DataError, match="Not a single image"):
        multi_label_scores(scores, torch.zeros(3, 3), ["a", "b", "c"])


def labelled_folder(root, suffix=".png", channels=3, images=9):
    """Images of noise under root/test with some of the classes each, and their names."""
    generator = torch.Generator().manual_seed(3)
    (root / "test" / "deep").mkdir(parents=True)
    described = {}
    for i in range(images):
        name = f"deep/{i}{suffix}"
        if suffix == ".npy":
            np.save(root / "test" / name, torch.randn(channels, 32, 32, generator=generator).numpy())
        else:
            pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / "test" / name)
        described[name] = [c for c in CLASSES[:4] if torch.rand(1, generator=generator) < 0.5]
    described["deep/0" + suffix] = []
    return described


def write_csv(path, described):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([name, *classes] for name, classes in described.items())


def model_of(**sizes):
    model = randomise(mixerzoo.Mixer(**TINY | sizes))
    model.pretrained_cfg = {"label_names": CLASSES, "num_classes": 5, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model.pretrained_head = True
    return model


@pytest.mark.parametrize("form", ["csv", "csv with headings", "json"])
def test_a_folder(tmp_path, form):
    described, model = labelled_folder(tmp_path), model_of()
    if form == "json":
        (tmp_path / "test" / "labels.json").write_text(json.dumps(described))
    else:
        heading = {"File": ["labels"]} if "headings" in form else {}
        write_csv(tmp_path / "test" / "labels.csv", heading | described)
    found = evaluate_multi_label(model, tmp_path, options=EvalOptions(batch_size=4))
    transform = mixerzoo.create_transform(model)
    images = torch.stack([transform(Image.open(tmp_path / "test" / name)) for name in described])
    targets = torch.tensor([[name in classes for name in CLASSES] for classes in described.values()])
    with torch.no_grad():
        expected = multi_label_scores(model.eval()(images), targets, CLASSES)
    assert found == expected
    assert found.average_precision[4] is None
    assert found.num_images == 9
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    assert evaluate_multi_label(model, tmp_path, split="elsewhere") == expected
    assert evaluate_multi_label(model, tmp_path / "elsewhere") == expected


def test_more_channels_than_image_files_have(tmp_path):
    described, model = labelled_folder(tmp_path, ".npy", channels=12), model_of(in_chans=12)
    write_csv(tmp_path / "test" / "labels.csv", described)
    found = evaluate_multi_label(model, tmp_path)
    data = MultiLabelFolder(model, tmp_path)
    assert torch.equal(data[1][0], torch.from_numpy(np.load(tmp_path / "test" / "deep" / "1.npy")))
    assert found.num_images == 9
    for array in (np.zeros((3, 32, 32)), np.zeros((12, 32, 32), dtype=complex), np.array([{}], dtype=object)):
        np.save(tmp_path / "test" / "deep" / "1.npy", array, allow_pickle=True)
        with pytest.raises(DataError, match=r"deep/1\.npy: "):
            evaluate_multi_label(model, tmp_path)
    described = labelled_folder(tmp_path / "images")
    write_csv(tmp_path / "images" / "test" / "labels.csv", described)
    with pytest.raises(DataError, match=r"takes 12 channels, which only \.npy"):
        evaluate_multi_label(model, tmp_path / "images")


def test_mistakes(tmp_path):
    described, model = labelled_folder(tmp_path), model_of()
    with pytest.raises(
        DataError, match=r"/test/labels\.csv, .*/val/labels\.csv, .* such as: patches/1\.png,sea,beach$"
    ):
        evaluate_multi_label(model, tmp_path)
    labels_csv, labels_json = tmp_path / "test" / "labels.csv", tmp_path / "test" / "labels.json"
    for content, message in (
        ({"deep/99.png": ["sea"]}, "not there: .*99"),
        ({"deep/1.png": ["volcano"]}, "does not know: volcano"),
        ({}, "names no images"),
    ):
        write_csv(labels_csv, content)
        with pytest.raises(DataError, match=message):
            evaluate_multi_label(model, tmp_path)
    labels_csv.write_text("deep/1.png,sea\ndeep/1.png,sea\n")
    with pytest.raises(DataError, match="twice"):
        evaluate_multi_label(model, tmp_path)
    labels_csv.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        evaluate_multi_label(model, tmp_path)
    labels_csv.unlink()
    for content in ("[1]", '{"deep/1.png": "sea"}', "{"):
        labels_json.write_text(content)
        with pytest.raises(DataError, match=r"JSON|object from file names"):
            evaluate_multi_label(model, tmp_path)
    labels_json.write_text(json.dumps(described))
    unnamed = mixerzoo.Mixer(**TINY)
    with pytest.raises(DataError, match="names 4 classes, the model has 5 outputs without names"):
        evaluate_multi_label(unnamed, tmp_path)
    assert MultiLabelFolder(mixerzoo.Mixer(**TINY | {"num_classes": 4}), tmp_path).classes == CLASSES[:4]
    with torch.no_grad():
        model.head.bias[2] = float("nan")
    with pytest.raises(WeightsError, match="scores for 9 of 9 images are not finite"):
        evaluate_multi_label(model, tmp_path)
    (tmp_path / "test" / "deep" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"deep/3\.png: the file is empty"):
        evaluate_multi_label(model, tmp_path)
