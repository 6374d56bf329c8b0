"""Every kind of data by its name: what is read for training, what for evaluation, and what is refused."""

import dataclasses
import shutil

import pytest
import torch
from training import DATA_CONFIG, QUICK, options, write_data

import mixerzoo
from mixerzoo.data.folder import open_folder
from mixerzoo.data.indexed import FolderImages, IndexedSource
from mixerzoo.data.shards import ShardSource
from mixerzoo.data.source import Share
from mixerzoo.data.tar import write_shards
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.inference.evaluate import evaluate
from mixerzoo.train import DataName, train
from mixerzoo.train.data import open_data

PLAIN = dataclasses.replace(QUICK, epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "test"):
        write_shards(FolderImages(open_folder(folder, (split,), None)), root / split, images_per_shard=6)
    return root


def count(data):
    """Labels of all evaluation images."""
    return sorted(int(label) for _, label in data.evaluation)


def test_a_folder(folder):
    data = open_data(folder, PLAIN, DATA_CONFIG)
    assert isinstance(data.train, IndexedSource)
    assert (data.train.num_images, data.train.classes, data.num_classes) == (24, ["blue", "red"], 2)
    assert count(data) == [0] * 6 + [1] * 6


def test_a_part_is_held_out(folder):
    data = open_data(folder, dataclasses.replace(PLAIN, holdout=0.25), DATA_CONFIG)
    assert (data.train.num_images, len(count(data))) == (18, 6)


def test_a_folder_of_shards(shards):
    data = open_data(shards, PLAIN, DATA_CONFIG)
    assert isinstance(data.train, ShardSource)
    assert (data.train.num_images, data.train.classes, data.num_classes) == (24, ["blue", "red"], 2)
    assert count(data) == [0] * 6 + [1] * 6
    batch = next(data.train.micro_batches(Share(4), 0))
    assert batch.images.shape == (4, 3, 32, 32)


def test_a_pattern_of_shards_with_evaluation_elsewhere(shards, folder, tmp_path):
    pattern = str(shards / "train" / "shard-{000000..000003}.tar")
    data = open_data(DataName(pattern, str(shards / "test")), PLAIN, DATA_CONFIG)
    assert data.train.num_images == 24
    assert count(data) == [0] * 6 + [1] * 6
    assert open_data(pattern, PLAIN, DATA_CONFIG).evaluation is None
    held_out = open_data(pattern, dataclasses.replace(PLAIN, holdout=0.25), DATA_CONFIG)
    assert (held_out.train.num_images, len(count(held_out))) == (18, 6)
    shutil.copytree(shards / "test", tmp_path / "test")
    (tmp_path / "test" / "classes.txt").write_text("red\nblue\n")
    with pytest.raises(DataError, match="not those of the training split"):
        open_data(DataName(pattern, str(tmp_path / "test")), PLAIN, DATA_CONFIG)


def test_shards_without_names_need_a_number_of_classes(shards, tmp_path):
    shutil.copytree(shards / "train", tmp_path / "shards")
    for name in ("classes.txt", "classes.json"):
        (tmp_path / "shards" / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match="does not say how many classes it has: give their number"):
        train(PLAIN, tmp_path / "shards", options(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    accuracy = train(PLAIN, DataName(str(tmp_path / "shards"), num_classes=2), options(tmp_path / "run"))
    assert accuracy is None
    assert mixerzoo.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).num_classes == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set(folder, tmp_path, monkeypatch, streaming):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    name = f"hf:{folder}"
    data = open_data(DataName(name, streaming=streaming, num_images=24), PLAIN, DATA_CONFIG)
    assert (data.train.num_images, data.train.classes, data.num_classes) == (24, ["blue", "red"], 2)
    assert count(data) == [0] * 6 + [1] * 6
    stream = data.train.micro_batches(Share(4), 0)
    labels = torch.cat([next(stream).labels for _ in range(6)])
    assert labels.bincount().tolist() == [12, 12]
    if streaming:
        with pytest.raises(ConfigError, match="leave --streaming out"):
            open_data(
                DataName(name, streaming=True, num_images=24), dataclasses.replace(PLAIN, holdout=0.1), DATA_CONFIG
            )


def test_a_run_on_shards_learns_and_resumes(shards, tmp_path):
    recipe = dataclasses.replace(
        PLAIN, model="mixer_ti4_32", pretrained=True, epochs=3, batch_size=6, opt="momentum", lr=0.02, mixup=0.0,
        cutmix=0.0, ema_decay=0.0,
    )  # fmt: skip
    accuracy = train(recipe, shards, options(tmp_path / "run"))
    assert (accuracy.top1, accuracy.num_images) == (1.0, 12)
    again = train(recipe, shards, options(tmp_path / "run", resume=True))
    assert again == accuracy
    model = mixerzoo.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert evaluate(model, open_data(shards, recipe, DATA_CONFIG).evaluation) == accuracy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "There is no folder nowhere"),
        ("nowhere/train-{0..3}.tar", "There is no shard"),
        ("pipe:cat x.tar", "pipe"),
        ("hf:nowhere/at all", "nowhere"),
    ],
)
def test_data_that_is_not_there_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=message) as caught:
        open_data(name, PLAIN, DATA_CONFIG)
    assert "\n" not in str(caught.value)
