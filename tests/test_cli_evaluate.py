"""``mixerzoo evaluate`` as a user runs it: numbers, files, several processes, and mistakes."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import run_cli
from PIL import Image
from typer.testing import CliRunner

import mixerzoo
from mixerzoo.cli import app
from mixerzoo.cli import evaluate as evaluate_file
from mixerzoo.data.folder import open_folder
from mixerzoo.data.indexed import FolderImages
from mixerzoo.data.tar import write_shards
from mixerzoo.errors import MixerzooError, StorageError
from mixerzoo.inference.confusion_picture import draw_confusion, percent, top_confusions
from mixerzoo.inference.evaluate import evaluate_classes, evaluate_folder
from mixerzoo.inference.evaluation_report import class_table, confusion_matrix, per_class
from mixerzoo.zoo import CIFAR10_LABELS

MODEL = "mixer_ti4_32.cifar10"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eleven test images of three of CIFAR-10's classes, and two for training of each; colours, so not all alike."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, counts in (("test", (5, 4, 2)), ("train", (2, 2, 2))):
        for name, count in zip(("airplane", "frog", "truck"), counts, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                base = rng.integers(0, 200, (1, 1, 3))
                pixels = np.clip(base + rng.integers(0, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def expected(data):
    return evaluate_folder(mixerzoo.create_model(MODEL, pretrained=True), data)


def invoke(*args):
    """Run the command in this process: its result, or the error that it ends in."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, args)])
    if isinstance(result.exception, MixerzooError):
        return str(result.exception)
    assert result.exception is None, result.output
    return result


def test_accuracy_classes_and_pictures(data, expected, tmp_path):
    picture, table = tmp_path / "confusion.png", tmp_path / "classes.csv"
    done = run_cli(
        "evaluate", "--data", data, "--model", MODEL, "--per-class", "--confusion", picture, "--csv", table
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    accuracy = expected.accuracy
    assert first == f"top-1 {100 * accuracy.top1:.2f} %, top-5 {100 * accuracy.top5:.2f} % of 11 images"
    assert {line.split()[0] for line in rest[2:]} == {"airplane", "frog", "truck"}
    assert "3 classes of the 10 outputs, 10 compared" in done.stderr
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["class"], row["images"]) for row in rows] == [("airplane", "5"), ("frog", "4"), ("truck", "2")]
    hits = sum(float(row["top1"]) * int(row["images"]) for row in rows)
    assert hits == pytest.approx(11 * accuracy.top1, abs=1e-4)
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500


def test_json(data, expected):
    result = invoke("--data", data, "--model", MODEL, "--json", "--per-class", "--classes", "data", "--workers", 0)
    content = json.loads(result.stdout)
    assert content["num_images"] == 11
    assert content["compared_outputs"] == 3
    assert content["top5"] == 1.0  # of three classes
    assert content["top1"] >= expected.accuracy.top1
    assert [row["num_images"] for row in content["classes"]] == [5, 4, 2]


@pytest.mark.parametrize(("kind", "processes"), [((), 2), (("--few-shot", "2"), 2), (("--optimize",), 1)])
def test_other_ways_to_run_give_the_same(data, kind, processes):
    """Two processes (on an odd number of images) as one; an optimized model as the model, but for its rounding."""
    options = ["evaluate", "--data", str(data), "--model", MODEL, "--json", "--workers", "0", "--batch-size", "4"]
    alone = run_cli(*options, *(() if kind == ("--optimize",) else kind))
    assert alone.returncode == 0, alone.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    module = [*(launcher if processes > 1 else []), "-m", "mixerzoo"]
    done = subprocess.run([sys.executable, *module, *options, *kind], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("{") == alone.stdout.count("{")  # one process speaks
    one, other = json.loads(alone.stdout), json.loads(done.stdout)
    if "--optimize" in kind:
        assert "program: " in done.stderr
        assert abs(one["top1"] - other["top1"]) <= 1 / 11
    else:
        assert one == other


def test_shards(data, expected, tmp_path):
    """As the folder that they were made of; under torchrun each process reads its own."""
    pytest.importorskip("webdataset")
    write_shards(FolderImages(open_folder(data, ("test",))), tmp_path / "shards" / "test", images_per_shard=4)
    options = ["--data", tmp_path / "shards", "--model", MODEL, "--json", "--per-class"]
    one = json.loads(invoke(*options, "--workers", 0).stdout)
    assert (one["top1"], one["num_images"]) == (expected.accuracy.top1, 11)
    assert [row["num_images"] for row in one["classes"]] == [5, 4, 2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launcher, "mixerzoo", "evaluate", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == one
    for shard in (tmp_path / "shards" / "test").glob("*-000001.tar"):
        shard.write_bytes(shard.read_bytes()[:2000])
    assert "shard-000001.tar" in invoke(*options, "--workers", 0)


def test_a_result_survives_a_file_that_cannot_be_written(data, expected, tmp_path, monkeypatch):
    """The folder vanishes while the model runs."""
    target = tmp_path / "gone"
    target.mkdir()
    real = evaluate_file.evaluate_data

    def evaluating(*args, **kwargs):
        target.rmdir()
        target.write_text("a file now")
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluate_file, "evaluate_data", evaluating)
    for option in ("--csv", "--confusion"):
        name = "a.csv" if option == "--csv" else "a.png"
        options = ["--data", data, "--model", MODEL, "--workers", 0, option, target / name]
        result = CliRunner().invoke(app, ["evaluate", *map(str, options)])
        assert isinstance(result.exception, StorageError)
        assert result.stdout.startswith(f"top-1 {100 * expected.accuracy.top1:.2f} %")
        target.unlink()
        target.mkdir()


def test_top5_of_few_classes_is_left_out(data):
    result = invoke("--data", data, "--model", MODEL, "--classes", "data", "--workers", 0)
    assert re.fullmatch(r"top-1 \d+\.\d\d % of 11 images\n", result.stdout)


def test_few_shot_text(data):
    result = invoke("--data", data, "--model", MODEL, "--few-shot", 1, "--few-shot", 2, "--workers", 0)
    first, second = result.stdout.splitlines()
    assert first.startswith("1-shot top-1 ")
    assert second.startswith("2-shot top-1 ")
    assert second.endswith("of 11 images")
    values = second.partition("(")[2].partition(")")[0].split(", ")
    assert len(set(values)) == 1  # all there is of each class: every seed chooses the same


def test_multi_label(data, tmp_path):
    labels, table = data / "test" / "labels.csv", tmp_path / "classes.csv"
    labels.write_text("airplane/0.png,airplane,ship\nfrog/1.png,frog\ntruck/0.png\n")
    try:
        result = invoke(
            "--data", data, "--model", MODEL, "--multi-label", "--per-class", "--csv", table, "--workers", 0
        )
    finally:
        labels.unlink()
    assert result.stdout.startswith("mean average precision ")
    assert "(macro, 3 classes)" in result.stdout
    assert "7 classes have no image" in result.stderr
    rows = {row["class"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert list(rows) == list(CIFAR10_LABELS)
    assert rows["truck"]["average_precision"] == ""
    assert rows["ship"]["images"] == "1"


def test_the_papers_table(tmp_path):
    """Offline and with empty caches: the built-in weights are measured where their data is given, nothing else."""
    for i, name in enumerate(CIFAR10_LABELS):
        (tmp_path / "cifar" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * i, 99, 50)).save(tmp_path / "cifar" / "test" / name / "a.png")
    done = run_cli(
        "evaluate", "--table", "paper", "--data", tmp_path / "cifar", HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1"
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    measured = [line for line in lines if line[0] == "mixer_ti4_32.cifar10"]
    assert [line[-1] for line in measured] == ["10", "10"]
    paper = next(line for line in lines if line[0] == "mixer_l16.goog_in1k" and "top-1" in line)
    assert paper == ["mixer_l16.goog_in1k", "ImageNet", "top-1", "71.76", "72.08"]
    assert "note: Weights that are not on this machine: " in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", MODEL], "one --data FOLDER"),
        (["--data", "{data}"], "--model NAME"),
        (["--data", "{data}", "--data", "{data}", "--model", MODEL], "one --data FOLDER"),
        (["--data", "{data}/nowhere", "--model", MODEL], "There is no folder"),
        (["--data", "{data}", "--model", MODEL, "--split", "val"], "no folder named val"),
        (["--data", "{data}", "--model", "mixer_b17"], "mixer_b17"),
        (
            ["--data", "{data}", "--model", MODEL, "--real"],
            "ReaL labels need a model with ImageNet-1k's classes; this one has 10",
        ),
        (["--data", "{data}", "--model", MODEL, "--few-shot", "3"], "Class airplane .* only 2 images; 3 shots"),
        (["--data", "{data}", "--model", MODEL, "--few-shot", "1", "--l2", "0"], "l2=0.0 must be"),
        (["--data", "{data}", "--model", MODEL, "--few-shot", "1", "--multi-label"], "--few-shot does not go together"),
        (["--data", "{data}", "--model", MODEL, "--multi-label", "--real"], "--multi-label does not go .* --real"),
        (["--data", "{data}", "--model", MODEL, "--multi-label"], r"looked for .*/test/labels\.csv.*such as: "),
        (["--data", "{data}", "--model", MODEL, "--optimize", "--amp"], "--amp is for a model as it is"),
        (["--data", "{data}", "--model", MODEL, "--csv", "{data}/nowhere/a.csv"], "there is no folder"),
        (["--data", "{data}", "--model", MODEL, "--csv", "{data}"], "--csv .* is a folder"),
        (["--data", "{data}", "--model", MODEL, "--csv", "{data}/a.txt"], r"--csv .* must end in \.csv"),
        (["--data", "{data}", "--model", MODEL, "--confusion", "{data}/a.jpg"], r"--confusion .* must end in \.png"),
        (["--data", "{data}", "--model", MODEL, "--csv", "/proc/a.csv"], r"--csv /proc/a\.csv cannot be written"),
        (["--data", "x-{{0..3}}.tar", "--model", MODEL], r"There is no shard x-0\.tar"),
        (["--data", "x.tar", "--model", MODEL, "--real"], r"--real takes image folders only, and x\.tar is none"),
        (["--data", "hf:a/b", "--model", MODEL, "--few-shot", "1"], "--few-shot takes image folders only"),
        (["--data", "hf:a/b", "--model", MODEL, "--multi-label"], "--multi-label takes image folders only"),
        (["--data", "hf:a/b", "--table", "paper"], "--table takes image folders only, and hf:a/b is none"),
        (["--data", "hf:/nowhere", "--model", MODEL], "no local path and no name"),
        (["--data", "{data}", "--model", MODEL, "--label-column", "y"], "Columns are for hf: data"),
        (["--data", "{data}", "--model", MODEL, "--download"], "--download is for --table"),
        (["--data", "{data}", "--model", MODEL, "--device", "tpu"], "--device tpu cannot be used"),
        (["--table", "papers"], "the only table is 'paper'"),
        (["--table", "paper", "--per-class"], "--table does not go together with --per-class"),
        (["--table", "paper", "--optimize"], "leave --optimize"),
        (["--table", "paper", "--data", "{data}"], "none of the datasets of the table"),
        (["--table", "paper", "--model", "mixer_b16"], "no such weights"),
    ],
)
def test_mistakes_are_one_sentence(data, options, message):
    said = invoke(*(option.format(data=data) for option in options), "--workers", 0)
    assert isinstance(said, str), said.output
    assert re.search(message, said), said
    assert len(said.splitlines()) == 1


def test_an_error_is_one_line_without_a_traceback(data, tmp_path):
    bad = tmp_path / "bad" / "test" / "cat"
    bad.mkdir(parents=True)
    (bad / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = run_cli("evaluate", "--data", tmp_path / "bad", "--model", MODEL)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "broken.jpg" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_scores_that_are_no_numbers_are_told(data, tmp_path):
    model = mixerzoo.create_model(MODEL, pretrained=True)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    mixerzoo.save_model(model, tmp_path / "model")
    result = invoke("--data", data, "--model", f"local-dir:{tmp_path / 'model'}", "--workers", 0)
    assert result.stdout == "top-1 0.00 %, top-5 0.00 % of 11 images\n"
    assert "the scores of 11 images, which count as wrong, are not finite" in result.stderr


def test_classes_and_confusions_agree(expected):
    counts = confusion_matrix(expected)
    assert counts.shape == (3, 4)
    assert counts.sum(dim=1).tolist() == [5, 4, 2]
    assert counts.diagonal().sum() == round(11 * expected.accuracy.top1)
    outside = ~torch.isin(expected.predicted, torch.tensor(expected.mask.outputs))
    assert counts[:, -1].sum() == outside.sum()
    for row, result in zip(counts, per_class(expected), strict=True):
        wrong = result.num_images - round(result.top1 * result.num_images)
        assert (result.confused_with is None) == (wrong == 0)
        assert result.num_confused <= wrong
        assert result.num_images == row.sum()


@pytest.mark.parametrize("classes", [1, 2, 30, 150, 333])
def test_pictures_of_any_number_of_classes(tmp_path, classes):
    generator = torch.Generator().manual_seed(0)
    wrong = torch.randint(0, 3, (classes, classes + 1), generator=generator)
    counts = wrong + 4 * classes * torch.eye(classes, classes + 1, dtype=torch.int64)
    counts[0] = 0  # a class without images
    path = tmp_path / "a.png"
    draw_confusion(counts, [f"class {'x' * (i % 40)} {i}" for i in range(classes)], "A title", path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 30).sum()
    assert (green > 100) == (classes > 1)


def test_shares_are_rounded_half_up():
    for share, text in ((1 / 8, "13"), (3 / 8, "38"), (0.285, "29"), (0.284, "28"), (1.0, "100"), (0.0, "0")):
        assert percent(share) == text
    assert [percent(share, 1) for share in (0.0025, 0.00949, 0.0005)] == ["0.3", "0.9", "0.1"]


def test_confusions_that_may_be_chance_are_not_picked_by_their_place():
    table = np.zeros((30, 30))
    table[np.arange(30), np.arange(30)] = 9
    table[0, 1:16], table[1, 2:20] = 1, 1
    table[2, 3], table[3, 2] = 7, 2
    pairs, more = top_confusions(table)
    assert pairs == [(2, 3, 7), (3, 2, 2)]
    assert more == 33
    table[1, 2:20] = 0
    pairs, more = top_confusions(table)  # all that there are
    assert len(pairs) == 17
    assert more == 0
    table[4:8, 8:20] = 3
    pairs, more = top_confusions(table)  # three are no chance
    assert [count for *_, count in pairs] == [7, *[3] * 19]
    assert more == 29 + 1 + 15
    assert top_confusions(np.eye(3)) == ([], 0)


def test_classes_without_images_have_no_accuracy():
    class Table(torch.nn.Module):
        num_classes = 3

        def forward(self, x):
            return x

    data = torch.utils.data.TensorDataset(torch.eye(3)[[0, 1]], torch.tensor([0, 2]))
    results = per_class(evaluate_classes(Table(), data, ["0", "1", "2"]))
    assert [result.top1 for result in results] == [1.0, None, 0.0]
    lines = class_table(results).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0", "1", "100.00", "%"],
        ["2", "1", "0.00", "%", "1", "(1)"],
        ["1", "0"],
    ]


def test_confusions_by_hand():
    """Foreign classes and scores that are no numbers stand in the last column, apart from the data's classes."""

    class Table(torch.nn.Module):
        num_classes = 4

        def forward(self, x):
            return x

    scores = torch.eye(4)[[3, 3, 1, 0, 2, 3, 3]]
    scores[6] = float("nan")
    data = torch.utils.data.TensorDataset(scores, torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    found = evaluate_classes(Table(), data, ["1", "3"])
    assert found.predicted.tolist() == [3, 3, 1, 0, 2, 3, -1]
    assert confusion_matrix(found).tolist() == [[1, 2, 0], [0, 1, 3]]
    first, second = per_class(found)
    assert (first.name, first.num_images, first.confused_with, first.num_confused) == ("1", 3, "3", 2)
    assert (second.top1, second.confused_with, second.num_confused) == (0.25, "0", 1)  # of equals the first
