"""Published scores beside measured ones: which data is which, what is here, and what stays empty."""

import json

import pytest
from helpers import TINY, randomise
from PIL import Image

import mixerzoo
from mixerzoo.errors import DataError, HubUnreachableError, ModelNameError
from mixerzoo.inference import paper_table as table_file
from mixerzoo.inference.class_masks import synsets
from mixerzoo.inference.evaluate import evaluate_folder
from mixerzoo.inference.paper_table import METRICS, local_weights, paper_table, recognise, scorable
from mixerzoo.weights.official import entry_folder
from mixerzoo.zoo import CIFAR10_LABELS, WEIGHTS

COMMIT = "0" * 40


def folder_of(root, classes, file="image.png"):
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (i % 256, 128, 255 - i % 256)).save(root / name / file, format="PNG")
    return root


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(table_file, "local_weights", lambda tag: None)


def test_every_published_metric_is_known():
    published = {score.metric for row in WEIGHTS.values() for score in row.scores}
    assert published - METRICS.keys() == {"average of 5 tasks"}


def test_recognising_data(tmp_path):
    one_k = synsets("imagenet-1k")
    expected = {
        "CIFAR-10": folder_of(tmp_path / "cifar" / "test", CIFAR10_LABELS).parent,
        "ImageNet-R": folder_of(tmp_path / "r", synsets("imagenet-r")),
        "ImageNet-A": folder_of(tmp_path / "a", synsets("imagenet-a")),
        "ImageNet-V2": folder_of(tmp_path / "v2", map(str, range(1000))),
        "ImageNet-Sketch": folder_of(tmp_path / "sketch", one_k, "sketch_0.JPEG"),
        "ImageNet": folder_of(tmp_path / "imagenet" / "val", one_k, "ILSVRC2012_val_00000001.JPEG").parent,
    }
    assert {name: recognise(folder) for name, folder in expected.items()} == {name: name for name in expected}
    (tmp_path / "r" / one_k[0]).mkdir()
    with pytest.raises(DataError, match="none of the datasets"):
        recognise(tmp_path / "r")


@pytest.mark.usefixtures("no_weights")
def test_without_weights_every_measured_cell_is_empty():
    found = paper_table()
    scores = {(row.name, score.metric) for row in WEIGHTS.values() for score in row.scores}
    assert {(row.name, row.metric) for row in found.rows} == scores
    order = [*METRICS, "average of 5 tasks"]
    for name in WEIGHTS:
        metrics = [row.metric for row in found.rows if row.name == name]
        assert metrics == sorted(metrics, key=order.index)
    assert all(row.measured is None and row.num_images is None for row in found.rows)
    cells = {(row.name, row.metric): row for row in found.rows}
    both = cells["mixer_b16.goog_in1k", "ImageNet top-1"]
    assert (both.paper, both.timm, both.stated) == (76.44, 76.616, None)
    assert cells["mixer_b16.sam_in1k", "ImageNet top-1"].paper == 77.4
    own = cells["mixer_ti4_32.cifar10", "CIFAR-10 top-1"]
    assert (own.paper, own.timm) == (None, None)
    assert own.stated == next(s.percent for s in WEIGHTS["mixer_ti4_32.cifar10"].scores if s.metric == own.metric)
    lines = str(found).splitlines()
    assert len(lines) == len(found.rows) + 1
    assert lines[0].split() == ["weights", "metric", "paper", "timm", "stated", "here", "measured", "images"]
    assert len({line.find("76.44") for line in lines if "76.44" in line}) == 1
    assert "mixer_b16.goog_in1k" in found.missing[0]
    assert "ImageNet-V2" in found.missing[1]
    assert "average of 5 tasks" in found.missing[2]
    unlisted = {name for name, row in WEIGHTS.items() if not row.scores}
    reasons = [reason for reason in found.missing if reason.startswith("No row for ")]
    named = [name for reason in reasons for name in reason.partition(":")[0].removeprefix("No row for ").split(", ")]
    assert sorted(named) == sorted(unlisted)
    assert next(reason for reason in reasons if "goog_in21k" in reason).endswith(
        "nothing was given that has their classes (ImageNet-R)."
    )


def test_which_data_the_weights_can_be_scored_on():
    """Of ImageNet-21k's label sets, one lacks a class of ImageNet-1k and nine the other; all of R's are in both."""
    assert scorable(WEIGHTS["mixer_ti4_32.cifar10"]) == ("CIFAR-10",)
    assert set(scorable(WEIGHTS["mixer_b32.sam_in1k"])) == {name for name, _ in METRICS.values()} - {"CIFAR-10"}
    assert scorable(WEIGHTS["mixer_l16.goog_in21k"]) == ("ImageNet-R",)
    assert scorable(WEIGHTS["mixer_b16.miil_in21k"]) == ("ImageNet-R",)


@pytest.mark.usefixtures("no_weights")
def test_every_tag_that_the_data_can_measure_has_rows(tmp_path):
    """Also those of which nothing is published; and a tag that is asked for by name and has none is explained."""
    validation = folder_of(tmp_path / "val", synsets("imagenet-1k"), "ILSVRC2012_val_00000001.JPEG")
    v2 = folder_of(tmp_path / "v2", map(str, range(1000)))
    found = paper_table([v2, validation])
    measurable = ["ImageNet top-1", "ImageNet top-5", "ImageNet ReaL", "ImageNet V2 top-1"]
    for name in ("mixer_s32.gsam_in1k", "mixer_b32.sam_in1k", "mixer_b16.sam_in1k"):
        assert [row.metric for row in found.rows if row.name == name] == measurable
        assert name in found.missing[0]
    assert {row.name for row in found.rows} == {n for n, row in WEIGHTS.items() if "-21k" not in row.label_set}
    rendition = folder_of(tmp_path / "r", synsets("imagenet-r"))
    alone = paper_table([rendition], model="mixer_b16.goog_in21k")
    assert [row.metric for row in alone.rows] == ["ImageNet R top-1"]
    nothing = paper_table([validation], model="mixer_b16.goog_in21k")
    assert nothing.rows == ()
    assert nothing.missing[-1].startswith("No row for mixer_b16.goog_in21k: ")


def test_the_built_in_weights_are_measured(tmp_path):
    folder = folder_of(tmp_path / "cifar" / "test", CIFAR10_LABELS).parent
    found = paper_table([folder], model="mixer_ti4_32.cifar10")
    alone = evaluate_folder(mixerzoo.create_model("mixer_ti4_32.cifar10", pretrained=True), folder).accuracy
    measured = {row.metric: (row.measured, row.num_images) for row in found.rows}
    assert measured == {
        "CIFAR-10 top-1": (100 * alone.top1, 10),
        "CIFAR-10 top-5": (100 * alone.top5, 10),
    }
    assert found.missing == ()


def test_weights_in_the_caches_are_found_without_a_request(tmp_path, monkeypatch):
    """As huggingface_hub and the converter leave them; nothing is asked of anybody."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a request was made"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    row, official = WEIGHTS["mixer_b16.goog_in1k"], WEIGHTS["mixer_b16.sam_in1k"]
    repository = tmp_path / "hub" / ("models--" + row.hub_id.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    assert local_weights(row) is None
    file = repository / "snapshots" / COMMIT / "model.safetensors"
    file.write_bytes(b"weights")
    assert local_weights(row) == file
    assert local_weights(official) is None
    entry = entry_folder(official.npz_url)
    (entry / "model.safetensors").write_bytes(b"converted")
    record = {
        "source_url": official.npz_url, "source_size": 1, "source_sha256": "", "checked": {}, "result_size": 9,
        "result_sha256": "", "converter": 1, "mixerzoo": "", "date": "",
    }  # fmt: skip
    (entry / "provenance.json").write_text(json.dumps(record))
    assert local_weights(official) == entry / "model.safetensors"
    built_in = WEIGHTS["mixer_ti4_32.cifar10"]
    assert local_weights(built_in).is_file()


def test_each_dataset_fills_its_own_rows(tmp_path, monkeypatch):
    """Small models in the place of the large ones: ImageNet-R and -A among their 200 classes."""
    model = randomise(mixerzoo.Mixer(**TINY | {"num_classes": 1000})).eval()
    large_model = randomise(mixerzoo.Mixer(**TINY | {"num_classes": 21843})).eval()
    asked = []

    def create(name, **arguments):
        asked.append((name, arguments))
        return large_model if "in21k" in name else model

    monkeypatch.setattr(table_file, "create_model", create)
    monkeypatch.setattr(
        table_file, "local_weights", lambda tag: tmp_path / tag.name if "b16.goog" in tag.name else None
    )
    folders = {
        "ImageNet R top-1": folder_of(tmp_path / "r", synsets("imagenet-r")),
        "ImageNet A top-1": folder_of(tmp_path / "a", synsets("imagenet-a")),
        "ImageNet top-1": folder_of(tmp_path / "val", synsets("imagenet-1k")),
    }
    found = paper_table(folders.values())
    file = str(tmp_path / "mixer_b16.goog_in1k")
    assert asked[0] == ("mixer_b16.goog_in1k", {"pretrained": True, "pretrained_cfg_overlay": {"file": file}})
    cells = {row.metric: row for row in found.rows if row.name == "mixer_b16.goog_in1k"}
    for metric, folder in folders.items():
        expected = evaluate_folder(model, folder)
        assert cells[metric].measured == 100 * expected.accuracy.top1, metric
        assert cells[metric].num_images == len(expected.labels)
    assert cells["ImageNet top-5"].measured is not None
    assert cells["ImageNet ReaL"].measured is None  # the files do not bear their original names
    assert any("ReaL is not measured" in reason for reason in found.missing)
    assert cells["ImageNet Sketch top-1"].measured is None
    assert asked[1][0] == "mixer_b16.goog_in21k"
    large = [row for row in found.rows if row.name == "mixer_b16.goog_in21k"]
    assert [row.metric for row in large] == ["ImageNet R top-1"]
    assert large[0].measured is not None
    others = [row for row in found.rows if not row.name.startswith("mixer_b16.goog_in")]
    assert all(row.measured is None for row in others)


def test_what_fails_is_noted_and_the_rest_goes_on(tmp_path, monkeypatch):
    """A download that fails costs its rows, an unreadable image those of its data, and nothing else."""
    model = randomise(mixerzoo.Mixer(**TINY | {"num_classes": 1000})).eval()
    broken = folder_of(tmp_path / "a", synsets("imagenet-a"))
    (broken / synsets("imagenet-a")[100] / "image.png").write_bytes(b"no image")
    folders = [folder_of(tmp_path / "r", synsets("imagenet-r")), broken]
    asked = []

    def create(name, **arguments):
        asked.append(name)
        if name == "mixer_b16.goog_in1k":
            raise HubUnreachableError("the server cannot be reached")
        return model

    monkeypatch.setattr(table_file, "create_model", create)
    monkeypatch.setattr(table_file, "local_weights", lambda tag: tmp_path / "w" if "s32" in tag.name else None)
    found = paper_table(folders, download=True)
    measured = {(row.name, row.metric): row.num_images for row in found.rows if row.measured is not None}
    expected = [n for n, row in WEIGHTS.items() if row.label_set != "cifar-10" and n != "mixer_b16.goog_in1k"]
    assert measured == {(name, "ImageNet R top-1"): 200 for name in expected}
    assert asked == [name for name, row in WEIGHTS.items() if row.label_set != "cifar-10"]
    notes = [note for note in found.missing if "not measured" in note]
    assert notes[0].startswith("ImageNet-A is not measured: ")
    assert "image.png: not an image" in notes[0]
    assert notes[1] == "mixer_b16.goog_in1k is not measured: the server cannot be reached"
    assert len(notes) == 2


def test_mistakes(tmp_path):
    with pytest.raises(ModelNameError, match=r"no such weights\. Did you mean"):
        paper_table(model="mixer_b16.goog_in1")
    folder = folder_of(tmp_path / "cifar" / "test", CIFAR10_LABELS).parent
    with pytest.raises(DataError, match="are both CIFAR-10"):
        paper_table([folder, folder / "test"])
    with pytest.raises(DataError, match="There is no folder"):
        paper_table([tmp_path / "nowhere"])
