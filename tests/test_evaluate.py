"""Counting correct predictions: ties, numbers that are none, folders, ReaL labels, and several processes."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, randomise
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from training import small_model, write_data

import mixerzoo
from mixerzoo.data.folder import open_folder
from mixerzoo.data.indexed import FolderImages
from mixerzoo.data.naming import hub_name, kind_of, shard_place
from mixerzoo.data.tar import write_shards
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.inference.evaluate import evaluate, evaluate_classes, evaluate_data, evaluate_folder
from mixerzoo.inference.real_labels import real_accuracy, real_labels
from mixerzoo.inference.scoring import EvalOptions, judge


class Table(nn.Module):
    """What goes in comes out."""

    def forward(self, x):
        return x


def test_evaluate_counts():
    falling = [6.0, 5, 4, 3, 2, 1]
    logits = torch.tensor([[0.9, 0.1, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0.2], falling, falling])
    labels = torch.tensor([0, 0, 5, 4])
    model = Table().train()
    accuracy = evaluate(model, TensorDataset(logits, labels), batch_size=3)
    assert (accuracy.top1, accuracy.top5, accuracy.num_images) == (0.25, 0.75, 4)
    assert model.training
    assert accuracy.in_words(6) == "top-1 25.00 %, top-5 75.00 % of 4 images"
    assert accuracy.in_words(5) == "top-1 25.00 % of 4 images"
    two = evaluate(model, TensorDataset(logits[:, :2], torch.tensor([0, 0, 0, 1])))
    assert (two.top1, two.top5) == (0.5, 1.0)
    with pytest.raises(DataError, match="no images"):
        evaluate(model, TensorDataset(logits[:0], labels[:0]))
    with pytest.raises(DataError, match=r"label 5, but the model's 2 outputs"):
        evaluate(model, TensorDataset(logits[:, :2], labels))
    for bad in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            evaluate(model, TensorDataset(logits, labels), **bad)


@pytest.mark.parametrize("amp", [False, True])
def test_autocast_is_what_was_asked_for(amp):
    seen = []

    class Layer(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    evaluate(Layer(4, 3), TensorDataset(torch.randn(2, 4), torch.tensor([0, 1])), amp=amp)
    assert seen == [torch.bfloat16 if amp else torch.float32]


def test_of_equal_scores_the_first_class_is_ahead():
    """A head of zeros does not get credit for every class."""
    labels = torch.arange(10)
    accuracy = evaluate(Table(), TensorDataset(torch.zeros(10, 10), labels))
    assert (accuracy.top1, accuracy.top5) == (0.1, 0.5)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (500, 7), generator=generator).float()  # ties everywhere
    labels = torch.randint(0, 7, (500,), generator=generator)
    predicted, place = judge(scores, labels)
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(predicted, order[:, 0])
    assert torch.equal(place, (order == labels[:, None]).int().argmax(dim=1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_count_as_wrong_and_are_reported(bad):
    scores = torch.tensor([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
    scores[1, 0], scores[2, 1] = bad, bad
    accuracy = evaluate(Table(), TensorDataset(scores, torch.tensor([0, 0, 0])))
    assert (accuracy.top1, accuracy.top5, accuracy.num_images, accuracy.num_invalid) == (1 / 3, 1 / 3, 3, 2)


def test_a_folder_and_its_classes_in_another_order(tmp_path):
    """The same images under names in another order than the outputs: found by name, so the result is the same."""
    folder, model = write_data(tmp_path / "data"), randomise(small_model()).eval()
    plain = evaluate_folder(model, folder)
    assert plain.accuracy.num_images == 12
    assert plain.mask.how == "in order, the model's classes have no names"
    model.pretrained_cfg, model.pretrained_head = {"label_names": ["red", "blue"], "num_classes": 2}, True
    swapped = evaluate_folder(model, folder, options=EvalOptions(batch_size=5, workers=1))
    assert swapped.accuracy.top1 == pytest.approx(1 - plain.accuracy.top1)
    assert swapped.mask.outputs == (1, 0)
    assert torch.equal(swapped.predicted, plain.predicted)
    inside = evaluate_folder(model, folder / "test")  # class folders without a split around them
    assert inside.accuracy == swapped.accuracy
    for wrong, message in (
        ({"split": "holdout"}, "no folder named holdout"),
        ({"data": tmp_path / "nowhere"}, "no folder .*nowhere"),
        ({"data": folder / "test" / "red"}, "no folder named test or val or validation"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_folder(model, **({"data": folder} | wrong))
    (folder / "test").rename(folder / "other")  # only train/ is left: never to be taken for the test split
    with pytest.raises(DataError, match=r"no folder named test .*--split train"):
        evaluate_folder(model, folder)


def test_grey_models_and_others(tmp_path):
    folder = write_data(tmp_path / "data")
    sizes = TINY | {"num_classes": 2}
    assert evaluate_folder(mixerzoo.Mixer(**sizes, in_chans=1), folder).accuracy.num_images == 12
    with pytest.raises(ConfigError, match="takes 4 channels"):
        evaluate_folder(mixerzoo.Mixer(**sizes, in_chans=4), folder)
    with pytest.raises(DataError, match="no classification head"):
        evaluate_folder(mixerzoo.Mixer(**sizes | {"num_classes": 0}), folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_and_never_left_out(tmp_path, workers):
    folder = write_data(tmp_path / "data")
    (folder / "test" / "red" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"red/3\.png: not an image") as caught:
        evaluate_folder(small_model(), folder, options=EvalOptions(workers=workers))
    assert len(str(caught.value).splitlines()) == 1


def test_an_optimized_model(tmp_path):
    folder, model = write_data(tmp_path / "data"), randomise(small_model()).eval()
    fast = mixerzoo.optimize(model, dtype=torch.float32, compile=False)
    found = evaluate_folder(fast, folder)
    assert torch.equal(found.predicted, evaluate_folder(model, folder).predicted)


def test_labels_beyond_the_names():
    model = mixerzoo.Mixer(**TINY | {"num_classes": 2})
    data = TensorDataset(torch.zeros(1, 3, 32, 32), torch.tensor([2]))
    with pytest.raises(DataError, match="a label 2; its classes are 0 to 1"):
        evaluate_classes(model, data, ["a", "b"])


def test_labels_without_names_are_numbers_of_outputs():
    """Those that do not occur are no classes of the data; the model's own names are the titles."""

    model = Table()
    model.num_classes = 6
    model.pretrained_cfg = {"label_names": ["5", "4", "3", "2", "1", "0"], "num_classes": 6}
    scores = torch.eye(6)[[4, 1, 1, 0]]
    for data in (
        TensorDataset(scores, torch.tensor([4, 1, 4, 1])),
        Uneven([(s, y) for s, y in zip(scores, [4, 1, 4, 1], strict=True)]),
    ):
        found = evaluate_classes(model, data, None)
        assert (found.accuracy.top1, found.accuracy.num_images) == (0.5, 4)
        assert found.classes == ("1", "4")
        assert found.mask.outputs == (1, 4)
        assert found.mask.titles[4] == "1"
        assert found.labels.tolist() == [1, 0, 1, 0]
        assert found.predicted.tolist() == [4, 1, 1, 0]
    with pytest.raises(DataError, match="a label 6; its classes are 0 to 5"):
        evaluate_classes(model, TensorDataset(scores[:1], torch.tensor([6])), None)
    with pytest.raises(ConfigError, match="have no names"):
        evaluate_classes(model, data, None, restrict=True)


def packed(folder, out, images_per_shard=5):
    """The test split as tar shards."""
    pytest.importorskip("webdataset")
    write_shards(FolderImages(open_folder(folder, ("test",))), out, images_per_shard=images_per_shard)
    return out


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("named", [True, False])
def test_shards_count_as_their_folder(tmp_path, named, channels):
    folder, model = write_data(tmp_path / "data"), mixerzoo.Mixer(**TINY | {"num_classes": 2, "in_chans": channels})
    expected = evaluate_folder(randomise(model).eval(), folder)
    shards = packed(folder, tmp_path / "shards" / "test")
    assert len(list(shards.glob("*.tar"))) == 3
    if not named:
        (shards / "classes.txt").unlink()
    places = (str(shards), str(shards.parent), f"{shards}/shard-{{000000..000002}}.tar")
    for place, workers in zip(places, (0, 1, 2), strict=True):
        found = evaluate_data(model, place, options=EvalOptions(batch_size=3, workers=workers))
        assert found.accuracy == expected.accuracy
        assert found.classes == (("blue", "red") if named else ("0", "1"))
        assert sorted(found.predicted.tolist()) == sorted(expected.predicted.tolist())
    assert evaluate_data(model, str(shards.parent), split="test").accuracy == expected.accuracy
    with pytest.raises(ConfigError, match="have no split 'val'"):
        evaluate_data(model, places[2], split="val")
    with pytest.raises(ConfigError, match="Columns are for hf: data"):
        evaluate_data(model, places[0], label_column="label")
    assert evaluate_data(model, str(folder)).accuracy == expected.accuracy


def test_what_a_name_stands_for(tmp_path):
    folder = write_data(tmp_path / "data")
    (folder / "test" / "left_here.tar").touch()
    assert kind_of(str(folder), ("test",)) == "folder"
    shards = tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    (shards / "train" / "a.tar").touch()
    assert kind_of(str(shards), ("train",)) == "shards"
    assert kind_of(str(shards), ("test",)) == "folder"  # no test split, and never the training split instead
    (shards / "train" / ".cache").mkdir()
    assert shard_place(str(shards), ("test", "train")) == str(shards / "train")
    assert kind_of("https://example.org/a/x-{0..3}.tar?key=1") == "shards"
    assert kind_of("hf:owner/name.tar") == "hub"
    assert hub_name("hf:owner/name") == "hf:owner/name"
    assert hub_name(f"hf:{shards}") == str(shards)


def test_a_data_set_in_the_hubs_form(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder, model = write_data(tmp_path / "data"), randomise(small_model()).eval()
    expected = evaluate_folder(model, folder)
    files = sorted((folder / "test").glob("*/*.png"))
    content = {
        "img": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [int(file.parent.name == "red") for file in files],
        "number": [int(file.parent.name == "red") for file in files],
    }
    kinds = {"img": datasets.Image(), "number": datasets.Value("int64")}
    try:
        for place, label in (("named", datasets.ClassLabel(names=["blue", "red"])), ("plain", datasets.Value("int64"))):
            (tmp_path / place).mkdir()
            rows = datasets.Dataset.from_dict(content, features=datasets.Features(kinds | {"label": label}))
            rows.to_parquet(tmp_path / place / "validation-00000-of-00001.parquet")
        where = f"hf:{tmp_path / 'named'}"
        found = evaluate_data(model, where)
        assert found.accuracy == expected.accuracy
        assert torch.equal(found.predicted, expected.predicted)
        assert found.classes == ("blue", "red")
        assert evaluate_data(model, where, split="validation").accuracy == expected.accuracy
        plain = evaluate_data(model, f"hf:{tmp_path / 'plain'}", label_column="number", image_column="img")
        assert plain.accuracy == expected.accuracy
        assert plain.classes == ("0", "1")
        with pytest.raises(DataError, match=r"no split 'holdout': it has .*validation.*--split"):
            evaluate_data(model, where, split="holdout")
    finally:
        datasets.enable_progress_bars()


def test_real_labels_of_twenty_files(tmp_path):
    """Twenty validation images under their original names, two of them without ReaL labels, counted by hand."""
    published = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json"))
    empty = [i for i, classes in enumerate(published) if not classes][:2]
    numbers = sorted({*range(2, 20), *empty})[:20]
    assert sum(not published[i] for i in numbers) == 2
    model = randomise(mixerzoo.Mixer(**TINY | {"num_classes": 1000})).eval()
    folder = tmp_path / "val" / "n01440764"
    folder.mkdir(parents=True)
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG", format="PNG")
    transform = mixerzoo.create_transform(model)
    tensors = [transform(Image.open(path)) for path in sorted(folder.iterdir())]
    with torch.no_grad():
        best = [int(model(tensor[None]).argmax()) for tensor in tensors]
    # Random weights are never right: a ReaL label is put where the model looks, for every third image.
    altered = {number: list(published[number]) for number in numbers}
    for place in range(0, len(numbers), 3):
        if altered[numbers[place]]:
            altered[numbers[place]].append(best[place])
    hits = counted = 0
    for number, answer in zip(numbers, best, strict=True):
        if altered[number]:
            counted += 1
            hits += answer in altered[number]
    assert 0 < hits < counted == 18
    table = list(real_labels())
    for number in numbers:
        table[number] = tuple(altered[number])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixerzoo.inference.real_labels.real_labels", lambda: tuple(table))
        found = evaluate_folder(model, tmp_path, real=True)
    assert (found.real.top1, found.real.num_images) == (hits / counted, 18)
    assert found.accuracy.num_images == 20
    (folder / "ILSVRC2012_val_00000003.JPEG").rename(folder / "somewhere.JPEG")
    with pytest.raises(DataError, match=r"somewhere\.JPEG is not named as an image of ImageNet's validation set"):
        evaluate_folder(model, tmp_path, real=True)


def test_real_labels_go_through_the_outputs():
    """A model whose outputs stand in another order is scored the same."""
    files = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(100)]
    first = [classes[0] if classes else 0 for classes in real_labels()[:100]]
    identity, reverse = list(range(1000)), list(range(999, -1, -1))
    right = real_accuracy(files, first, identity)
    assert right == real_accuracy(files, [reverse[c] for c in first], reverse)
    assert (right.top1, right.num_images) == (1.0, sum(bool(c) for c in real_labels()[:100]))
    assert real_accuracy(files, [-1] * 100, identity).top1 == 0.0
    for name in ("ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG", "val_1.JPEG"):
        with pytest.raises(DataError, match="not named"):
            real_accuracy([name], [0], identity)


class Uneven(IterableDataset):
    """A stream that only some processes have a share of."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def test_a_stream_is_counted_too():
    scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    accuracy = evaluate(Table(), Uneven(list(zip(scores, labels, strict=True))), batch_size=3)
    assert (accuracy.top1, accuracy.num_images) == (0.75, 4)
    with pytest.raises(DataError, match="no images"):
        evaluate(Table(), Uneven([]))


class Numbered(Dataset):
    """Images that are known by their number, and may be read only as often as they should be."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Damaged(Numbered):
    """One image of these cannot be read."""

    def __init__(self, data, index):
        super().__init__(data.images, data.labels)
        self.index = index

    def __getitem__(self, index):
        if index == self.index:
            raise DataError(f"image {index} is damaged.")
        return super().__getitem__(index)


def several(images=11, classes=5):
    generator = torch.Generator().manual_seed(0)
    model = randomise(mixerzoo.Mixer(**TINY | {"num_classes": classes})).eval()
    data = torch.randn(images, 3, 32, 32, generator=generator)
    return model, Numbered(data, torch.randint(0, classes, (images,), generator=generator))


JOB = """
import json, sys, warnings
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
import torch
from torch.distributed.fsdp import fully_shard
from test_evaluate import Damaged, Numbered, Uneven, several
from mixerzoo.errors import DataError, MixerzooError
from training import small_model
from helpers import randomise
from mixerzoo.distributed import job
from mixerzoo.inference.evaluate import evaluate, evaluate_classes, evaluate_data
from mixerzoo.inference.scoring import EvalOptions, agreed, collect
order = []
def fetch(world, fails):
    order.append(world.rank)
    if world.rank in fails:
        raise DataError("not by process %d" % world.rank)
    return world.rank
def error_of(run):
    try:
        return run()
    except MixerzooError as error:
        return str(error)
with job() as world:
    model, data = several()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    result = {{"accuracy": vars(evaluate(model, data, world=world, batch_size=4)), "calls": world.gather(len(calls))}}
    options = EvalOptions(world, batch_size=4)
    found = evaluate_classes(model, data, list("abcde"), options=options)
    result["labels"], result["predicted"] = found.labels.tolist(), found.predicted.tolist()
    scores, targets = collect(model, data, options, what="scores")
    result["scores"], result["targets"] = scores.tolist(), targets.tolist()
    one = Numbered(data.images[:1], data.labels[:1])
    result["one"] = vars(evaluate(model, one, world=world, batch_size=4))
    samples = [data[i] for i in range(11)]
    shares = {{"most": (samples[:9], samples[9:]), "all": ([], samples)}}
    for name, share in ((name, each[world.rank]) for name, each in shares.items()):
        result[name] = vars(evaluate(model, Uneven(share), world=world, batch_size=4))
        result[name + "_scores"] = collect(model, Uneven(share), options, what="scores")[0].tolist()
    sharded, _ = several()
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    result["sharded"] = vars(evaluate(sharded, data, world=world, batch_size=4))
    result["sharded_stream"] = vars(evaluate(sharded, Uneven(samples if world.rank else []), world=world, batch_size=4))
    # What one process cannot read, both give up on, and go on together with what comes next.
    late = Uneven(samples[:9] if world.is_first else samples[9:] + [(samples[0][0], torch.tensor(99))])
    result["errors"] = [
        error_of(lambda: evaluate(model, Damaged(data, 5), world=world, batch_size=2)),
        error_of(lambda: evaluate(sharded, Damaged(data, 9), world=world, batch_size=2)),
        error_of(lambda: evaluate_classes(model, late, list("abcde"), options=options)),
        error_of(lambda: agreed(world, lambda: fetch(world, [1]))),
        error_of(lambda: agreed(world, lambda: fetch(world, [0]), first_alone=True)),
    ]
    result["order"] = world.gather(order)
    result["own"] = world.gather(agreed(world, lambda: fetch(world, []), first_alone=True))
    small = randomise(small_model())
    result["shards"] = vars(evaluate_data(small, sys.argv[1], options=options).accuracy)
    result["one_shard"] = vars(evaluate_data(small, sys.argv[1] + "/shard-000000.tar", options=options).accuracy)
    results = world.gather(result)
    if world.is_first:
        print(json.dumps(results))
"""


def test_two_processes_count_what_one_counts(tmp_path):
    """Eleven images on two processes: one repeats an image, which counts for nothing, and both get the total.

    Also with parameters spread over both (every forward pass needs both), with a stream that ends early or is empty
    on one, and with fewer images than processes.
    """
    folder = write_data(tmp_path / "data")
    shards, script = packed(folder, tmp_path / "shards"), tmp_path / "job.py"
    script.write_text(JOB.format(tests=str(Path(__file__).parent)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(shards),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first == second
    model, data = several()
    alone = evaluate(model, data)
    assert 0 < alone.top1 < 1
    assert first["calls"] == [2, 2]
    assert first["errors"] == [
        "image 5 is damaged.",
        "image 9 is damaged.",
        "The data has a label 99; its classes are 0 to 4.",
        "not by process 1",
        "not by process 0",
    ]
    assert first["order"] == [[0, 0], [1]]  # where the first one fails, the other does not begin
    assert first["own"] == [0, 1]
    small = randomise(small_model())
    assert first["shards"] == vars(evaluate_folder(small, folder).accuracy)
    assert first["one_shard"]["num_images"] == 5  # all of them on one process
    for name in ("accuracy", "most", "all", "sharded", "sharded_stream"):
        assert first[name] == vars(alone), name
    assert first["one"] == vars(evaluate(model, Numbered(data.images[:1], data.labels[:1])))
    found = evaluate_classes(model, data, list("abcde"))
    assert first["labels"] == data.labels.tolist()
    assert first["predicted"] == found.predicted.tolist()
    assert first["targets"] == data.labels.tolist()
    with torch.no_grad():
        expected = model(data.images)
    for name in ("scores", "most_scores", "all_scores"):
        torch.testing.assert_close(torch.tensor(first[name]), expected, rtol=1e-5, atol=1e-6)
