"""Data sets of Hugging Face's library from real local files: whole and streamed."""

import itertools

import pytest
import torch
from shard_files import png, same, value_and_noise, value_only, values

from mixerzoo.data import streaming
from mixerzoo.data.hub_datasets import open_hub_dataset, open_hub_stream
from mixerzoo.data.indexed import IndexedSource
from mixerzoo.data.source import Share
from mixerzoo.data.tar import read_tar, write_shards
from mixerzoo.errors import ConfigError, DataError, ImageError

datasets = pytest.importorskip("datasets")

COUNT = 48


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(start, stop):
    return {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(start, stop)],
        "label": [i % 3 for i in range(start, stop)],
        "extra": [str(i) for i in range(start, stop)],
    }


def features(**other):
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b", "c"]),
        "extra": datasets.Value("string"),
    }
    return datasets.Features(kinds | other)


def write(path, content, kinds=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(content, features=kinds or features()).to_parquet(path, batch_size=100)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Four Parquet files of twelve rows each."""
    for part in range(4):
        write(tmp_path / f"set/data/train-{part:05d}-of-00004.parquet", rows(12 * part, 12 * part + 12))
    return str(tmp_path / "set")


def stream(where, transform=value_and_noise, **options):
    return open_hub_stream(where, "train", transform, **{"num_images": COUNT, "buffer_size": 7} | options)


def take(source, share, count, first_step=0):
    return list(itertools.islice(source.micro_batches(share, first_step), count))


# With random access


def test_a_parquet_folder_has_random_access(folder):
    data = open_hub_dataset(folder, "train")
    assert len(data) == COUNT
    assert data.classes == ["a", "b", "c"]
    for index in (0, 13, 47):
        image, label = data.read(index)
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (index,) * 3
        assert label == index % 3
        assert data.original(index) == png(index)
    assert data.name(5) == f"{folder}[5]"
    batches = take(IndexedSource(data, value_only), Share(8), 6)
    assert sorted(values(batches)) == list(range(COUNT))


def test_an_image_folder(tmp_path):
    for name in ("cat", "dog"):
        for i in range(3):
            path = tmp_path / "set" / "train" / name / f"{name}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(10 * (name == "dog") + i))
    data = open_hub_dataset(str(tmp_path / "set"), "train")
    assert data.classes == ["cat", "dog"]
    assert sorted((data.read(i)[0].getpixel((0, 0))[0], data.read(i)[1]) for i in range(6)) == [
        (0, 0),
        (1, 0),
        (2, 0),
        (10, 1),
        (11, 1),
        (12, 1),
    ]
    source = open_hub_stream(str(tmp_path / "set"), "train", value_only, num_images=6)
    assert sorted(values(take(source, Share(3), 2))) == [0, 1, 2, 10, 11, 12]


def test_unusable_rows(tmp_path):
    content = rows(0, 6)
    content["image"][1] = {"bytes": b"no image", "path": None}
    content["image"][2] = None
    content["image"][3] = {"bytes": None, "path": str(tmp_path / "absent.png")}
    content["label"][4] = -1
    content["label"][5] = None
    where = write(tmp_path / "one.parquet", content)
    data = open_hub_dataset(where, "train")
    assert data.read(0)[1] == 0
    for index, reason in enumerate(
        ["not an image", "there is no image", "cannot be read", "label -1 is not", "no label"]
    ):
        with pytest.raises(ImageError, match=rf"one.parquet\[{index + 1}\]: .*{reason}"):
            data.read(index + 1)
    batches = take(open_hub_stream(where, "train", value_only, num_images=6), Share(2), 6)
    assert set(values(batches)) == {0}
    assert [sum(len(batch.faults) for batch in batches[e : e + 3]) for e in (0, 3)] == [5, 5]


def test_images_lie_only_in_places_that_are_read(tmp_path):
    content = rows(0, 2)
    content["image"][1] = {"bytes": None, "path": "ssh://somewhere/x.png"}
    data = open_hub_dataset(write(tmp_path / "one.parquet", content), "train")
    with pytest.raises(ImageError, match="none of the places that are read"):
        data.read(1)


def test_columns_are_found_or_named(tmp_path):
    content = rows(0, 3) | {"second": rows(0, 3)["image"], "number": [2, 1, 0]}
    kinds = features(second=datasets.Image(), number=datasets.Value("int16"))
    where = write(tmp_path / "one.parquet", content, kinds)
    with pytest.raises(DataError, match=r"several image columns \(image, second\).*give image_column"):
        open_hub_dataset(where, "train")
    assert open_hub_dataset(where, "train", image_column="second").classes == ["a", "b", "c"]
    plain = open_hub_dataset(where, "train", image_column="image", label_column="number")
    assert plain.classes is None
    assert [plain.read(i)[1] for i in range(3)] == [2, 1, 0]
    with pytest.raises(DataError, match=r"no column 'numbr'. Did you mean 'number'"):
        open_hub_dataset(where, "train", image_column="image", label_column="numbr")
    with pytest.raises(DataError, match="expected class indices"):
        open_hub_dataset(where, "train", image_column="image", label_column="extra")
    with pytest.raises(DataError, match="does not hold images"):
        open_hub_dataset(where, "train", image_column="number")
    text = datasets.Dataset.from_dict({"text": ["x"]})
    text.to_parquet(tmp_path / "text.parquet")
    for streaming_ in (open_hub_dataset, lambda *a: open_hub_stream(*a, value_only)):
        with pytest.raises(DataError, match=r"no column of type Image; it has text: give image_column"):
            streaming_(str(tmp_path / "text.parquet"), "train")


def test_what_is_not_there_is_one_sentence(folder, tmp_path, hub):
    for streaming_ in (open_hub_dataset, lambda *a: open_hub_stream(*a, value_only)):
        with pytest.raises(DataError, match=r"has no split 'test': it has '?train'?\.$"):
            streaming_(folder, "test")
        with pytest.raises(DataError, match="There is no file"):
            streaming_(str(tmp_path / "absent.parquet"), "train")
        with pytest.raises(DataError, match="no local path and no name"):
            streaming_("/no/such/place", "train")
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
        with pytest.raises(DataError, match=r"broken.parquet cannot be opened \([^\n]+\)\.$"):
            streaming_(str(tmp_path / "broken.parquet"), "train")
        with pytest.raises(
            DataError, match=r"^(There is no data set 'nobody/nothing'|nobody/nothing cannot be)[^\n]*$"
        ):
            streaming_("hf:nobody/nothing", "train")


def test_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"^nobody/nothing [^\n]*cannot be [^\n]*$"):
        open_hub_dataset("hf:nobody/nothing", "train")


def test_old_and_absent_libraries(folder, monkeypatch):
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ConfigError, match="may run code that comes with a data set"):
        open_hub_dataset(folder, "train")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixerzoo\[train\]'"):
        open_hub_dataset(folder, "train")


def test_shards_from_a_hub_dataset_keep_the_files(folder, tmp_path):
    written = write_shards(open_hub_dataset(folder, "train"), tmp_path / "out", images_per_shard=20)
    samples = [sample for path in written.shards for sample in read_tar(str(path))]
    assert {(sample.image, sample.label) for sample in samples} == {(png(i), i % 3) for i in range(COUNT)}


# Streamed


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 1), (2, 2)])  # 4, 2 or parts of 4 files
def test_every_image_once_an_epoch_over_all_readers(folder, world_size, workers):
    source = stream(folder)
    per_epoch = COUNT // world_size // 2
    ranks = [
        take(source, Share(2 * world_size, rank=r, world_size=world_size, seed=3, workers=workers), 2 * per_epoch)
        for r in range(world_size)
    ]
    epochs = []
    for epoch in range(2):
        batches = [b for rank in ranks for b in rank[epoch * per_epoch : (epoch + 1) * per_epoch]]
        assert sorted(values(batches)) == list(range(COUNT))
        assert all(torch.equal(b.labels, b.images[:, 0, 0, 0].long() % 3) for b in batches)
        epochs.append(values(batches))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_stream_is_the_same_bit_for_bit(folder, workers):
    write_to = f"{folder}/data/train-00001-of-00004.parquet"
    content = rows(12, 24)
    content["image"][5] = {"bytes": b"no image", "path": None}
    datasets.Dataset.from_dict(content, features=features()).to_parquet(write_to)
    source = stream(folder)
    share = Share(batch_size=30, accumulate=3, rank=1, world_size=2, seed=7, workers=workers)
    whole = take(source, share, 24)
    assert any(batch.faults for batch in whole)
    for step in (0, 1, 2, 5, 7):
        assert same(whole[3 * step :], take(source, share, 24 - 3 * step, first_step=step)), step


def test_skipped_rows_are_not_decoded(folder, monkeypatch):
    source = stream(folder, value_only)
    whole = take(source, Share(4), 30)
    decoded, decode = [], streaming.decode_image
    monkeypatch.setattr(streaming, "decode_image", lambda data, name: decoded.append(name) or decode(data, name))
    assert same(take(source, Share(4), 2, first_step=28), whole[28:])
    assert len(decoded) == 8


def test_files_of_unequal_length(tmp_path):
    for part, (start, stop) in enumerate([(0, 3), (3, 20), (20, 22), (22, 40)]):
        write(tmp_path / f"set/data/train-{part:05d}-of-00004.parquet", rows(start, stop))
    source = stream(str(tmp_path / "set"), num_images=40)
    ranks = [values(take(source, Share(2, rank=r, world_size=2), 400)) for r in range(2)]
    for epoch in range(20):  # who has short files reads them again, of long ones some rows are left out
        one, other = (set(rank[20 * epoch : 20 * epoch + 20]) for rank in ranks)
        assert not one & other
    assert set(ranks[0]) | set(ranks[1]) == set(range(40))


def test_a_single_file_serves_several_readers(tmp_path):
    where = write(tmp_path / "one.parquet", rows(0, 20))
    ranks = [values(take(stream(where, num_images=20), Share(2, rank=r, world_size=2), 10)) for r in range(2)]
    assert sorted(ranks[0] + ranks[1]) == list(range(20))


def test_the_number_of_images_is_stated_or_given(folder):
    source = stream(folder)
    assert source.num_images == COUNT
    assert source.classes == ["a", "b", "c"]
    with pytest.raises(DataError, match="does not say how many rows its split 'train' has: give num_images"):
        stream(folder, num_images=None)
    with pytest.raises(ConfigError, match="num_images=-1"):
        stream(folder, num_images=-1)
    with pytest.raises(DataError, match="3 images, fewer than its 4 readers"):
        take(stream(folder, num_images=3), Share(4, world_size=2, workers=2), 1)
    known = source.describe(Share(8))
    assert stream(folder, buffer_size=8).describe(Share(8)) != known
    assert source.describe(Share(8, workers=2)) != known


def test_a_file_that_breaks_off_is_one_sentence(folder):
    source = stream(folder)
    path = f"{folder}/data/train-00002-of-00004.parquet"
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"set cannot be read \([^\n]*\)\.$"):
        take(source, Share(8), 6)
