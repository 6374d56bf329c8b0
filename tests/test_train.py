"""The training loop and whole runs: learning, resuming after a kill, and what a user does wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from helpers import assert_same_state, run_cli
from safetensors.torch import load_file
from torch.utils.data import Dataset, Subset
from training import QUICK, datasets, options, small_model, write_data

import mixerzoo
from mixerzoo.data.folder import EVAL_SPLITS, open_folder
from mixerzoo.errors import DataError, TrainingError
from mixerzoo.inference.evaluate import eval_batches, evaluate
from mixerzoo.train.checkpoint import load_checkpoint
from mixerzoo.train.loop import fit
from mixerzoo.train.run import evaluate_folder, train
from mixerzoo.weights.save import write_atomically


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_run_learns_and_leaves_its_files(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=25, lr=5e-3, mixup=0.0, cutmix=0.0, ema_decay=0.5)
    model = small_model(recipe)
    accuracy = fit(model, recipe, *datasets(folder, recipe), options(tmp_path))
    assert accuracy.top1 == 1.0
    assert accuracy.num_images == 12
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == list(range(1, 26))
    assert records[-1]["top1"] == 1.0
    assert records[-1]["train_loss"] < records[0]["train_loss"]


def test_the_average_is_what_remains(folder, tmp_path):
    model = small_model()
    fit(model, QUICK, *datasets(folder, QUICK), options(tmp_path))
    state, final = load_checkpoint(tmp_path), model.state_dict()
    assert all(torch.equal(final[n], t) for n, t in state["ema"].items())
    assert any(not torch.equal(final[n], t) for n, t in state["model"].items())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path, ema):
    recipe = dataclasses.replace(QUICK, epochs=4, ema_decay=ema)
    whole = small_model(recipe)
    fit(whole, recipe, *datasets(folder, recipe), options(tmp_path / "whole"))

    class StopError(Exception):
        pass

    class StopsAfterTwo(Dataset):
        def __init__(self):
            self.calls = 0
            self.inner = datasets(folder, recipe)[1]

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, i):
            self.calls += 1
            if self.calls > 2 * len(self.inner):  # in the third evaluation
                raise StopError
            return self.inner[i]

    train, test = datasets(folder, recipe)
    parts = tmp_path / "parts"
    with pytest.raises(StopError):
        fit(small_model(recipe), recipe, train, StopsAfterTwo(), options(parts))
    assert load_checkpoint(parts)["epoch"] == 3  # saved before it was evaluated
    resumed = small_model(recipe)
    fit(resumed, recipe, train, test, options(parts, resume=True))
    assert_same_state(resumed, whole)
    again = small_model(recipe)
    assert fit(again, recipe, train, test, options(parts, resume=True)).num_images == 12  # nothing left to do
    assert_same_state(again, whole)


def test_evaluation_may_be_left_out(folder, tmp_path):
    train, _ = datasets(folder, QUICK)
    assert fit(small_model(), QUICK, train, None, options(tmp_path)) is None
    assert "top1" not in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


def test_an_existing_run_is_not_overwritten(folder, tmp_path):
    data = datasets(folder, QUICK)
    fit(small_model(), QUICK, *data, options(tmp_path))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run: add --resume"):
        fit(small_model(), QUICK, *data, options(tmp_path))
    other = dataclasses.replace(QUICK, lr=0.5)
    with pytest.raises(TrainingError, match=r"another recipe \(lr 0.001 -> 0.5\)"):
        fit(small_model(), other, *data, options(tmp_path, resume=True))
    wider = mixerzoo.Mixer.from_config(dataclasses.replace(small_model().config, num_classes=3))
    with pytest.raises(TrainingError, match=r"another model \(num_classes 2 -> 3\)"):
        fit(wider, QUICK, *data, options(tmp_path, resume=True))
    fewer = Subset(data[0], range(16))
    with pytest.raises(TrainingError, match=r"another training split \(num_images 24 -> 16"):
        fit(small_model(), QUICK, fewer, data[1], options(tmp_path, resume=True))
    renamed = datasets(folder, QUICK)[0]
    renamed.classes = ["azure", "red"]
    with pytest.raises(TrainingError, match=r"another training split \(classes .*azure"):
        fit(small_model(), QUICK, renamed, data[1], options(tmp_path, resume=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 no zip"])
def test_a_damaged_checkpoint_is_named(folder, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt"):
        fit(small_model(), QUICK, *datasets(folder, QUICK), options(tmp_path, resume=True))


def test_a_foreign_checkpoint_is_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        load_checkpoint(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, opt="sgd", lr=1e30, clip_grad=0.0, warmup_epochs=0.0, mixup=0.0, cutmix=0.0)
    with pytest.raises(TrainingError, match=r"The loss is .*lower lr.*No epoch was finished"):
        fit(small_model(), recipe, *datasets(folder, recipe), options(tmp_path))


def test_gradients_are_clipped(folder, tmp_path):
    """With plain SGD a step is at most lr times the largest norm."""
    recipe = dataclasses.replace(
        QUICK, epochs=1, batch_size=24, opt="momentum", momentum=0.0, lr=1.0, warmup_epochs=0.0, weight_decay=0.0,
        ema_decay=0.0, clip_grad=1e-3, drop_path_rate=0.0,
    )  # fmt: skip
    model = small_model(recipe)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    fit(model, recipe, *datasets(folder, recipe), options(tmp_path))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert 0 < (after - before).norm() <= 1.01e-3


def test_mixup_and_compile_are_used_when_asked_for(folder, tmp_path, monkeypatch):
    targets, compiled = [], []
    criterion = torch.nn.CrossEntropyLoss.forward

    def spy(self, logits, target):
        targets.append(target)
        return criterion(self, logits, target)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", spy)
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    recipe = dataclasses.replace(QUICK, epochs=1, label_smoothing=0.0)
    fit(small_model(), recipe, datasets(folder, recipe)[0], None, options(tmp_path / "a", compile=True))
    assert targets[0].shape == (8, 2)
    assert any(((t > 0.01) & (t < 0.99)).any() for t in targets)
    assert len(compiled) == 1
    targets.clear()
    plain = dataclasses.replace(recipe, mixup=0.0, cutmix=0.0)
    fit(small_model(), plain, datasets(folder, plain)[0], None, options(tmp_path / "b"))
    assert targets[0].dtype == torch.int64
    assert len(compiled) == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, workers, split):
    root = write_data(tmp_path / "data")
    bad = root / split / "red" / "3.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        fit(small_model(), QUICK, *datasets(root, QUICK), options(tmp_path / "run", workers=workers))
    assert str(caught.value).startswith(f"{bad}: not an image")
    assert "\n" not in str(caught.value)


def test_too_little_data(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, batch_size=100)
    with pytest.raises(DataError, match="24 images, fewer than one batch of 100"):
        fit(small_model(), recipe, *datasets(folder, recipe), options(tmp_path))


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# whole runs


def test_train_leaves_a_folder_that_predicts(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=2, batch_size=12)
    accuracy = train(recipe, folder, options(tmp_path, weights_dtype=torch.float16))
    assert accuracy.num_images == 12
    name = f"local-dir:{tmp_path}"
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model = mixerzoo.create_model(name, pretrained=True)
    assert model.config.drop_path_rate == recipe.drop_path_rate
    assert mixerzoo.labels(model) == ["blue", "red"]
    (prediction, *_) = mixerzoo.predict(model, folder / "test" / "blue")
    assert set(prediction.labels) == {"blue", "red"}
    assert abs(evaluate_folder(name, folder, options(tmp_path)).top1 - accuracy.top1) <= 1 / 12  # float16


def test_train_is_a_function_of_its_seed(folder, tmp_path):
    recipe = dataclasses.replace(QUICK, epochs=1, batch_size=12)
    for run in ("a", "b"):
        train(recipe, folder, options(tmp_path / run))
    train(dataclasses.replace(recipe, seed=1), folder, options(tmp_path / "c"))
    a, b, c = ((tmp_path / run / "model.safetensors").read_bytes() for run in "abc")
    assert a == b
    assert a != c


def test_evaluation_needs_the_models_classes(folder, tmp_path):
    with pytest.raises(DataError, match=r"airplane, .* were expected"):
        evaluate_folder("mixer_ti4_32", folder, options(tmp_path))


def test_command_line_train_kill_resume_and_evaluate(folder, tmp_path):
    """A real run, killed without warning in its second epoch or later, taken up, and its weights evaluated."""
    out = tmp_path / "run"
    command = [
        "train", "--data", str(folder), "--out", str(out), "--workers", "0", "--set", "epochs=200",
        "--set", "batch_size=8", "--set", "opt=adamw", "--set", "lr=1e-3",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "mixerzoo", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )
    deadline = time.monotonic() + 100
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    finished = load_checkpoint(out)["epoch"]
    assert finished >= 1
    assert not (out / "model.safetensors").exists()
    refused = run_cli(*command)
    assert refused.returncode == 1
    assert "add --resume" in refused.stderr
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    state["epoch"] = 199  # as if 199 epochs were done: one is left
    torch.save(state, out / "checkpoint.pt")
    resumed = run_cli(*command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 200: loss" in resumed.stdout + resumed.stderr
    assert f"model: local-dir:{out}" in resumed.stdout
    evaluated = run_cli("train", "--data", folder, "--eval-only", "--model", f"local-dir:{out}", "--workers", 0)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "of 12 images" in evaluated.stdout
    top1 = resumed.stdout.split("top-1 ")[-1].split(" %")[0]
    assert f"top-1 {top1} %" in evaluated.stdout


def test_built_in_checkpoint_keeps_its_word_on_real_photographs(shared_data, tmp_path):
    """Every tenth image of the real test split: the stated accuracy within four standard errors."""
    row = mixerzoo.zoo.WEIGHTS["mixer_ti4_32.cifar10"]
    (stated,) = [s.percent / 100 for s in row.scores if s.metric == "CIFAR-10 top-1"]
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            if member.name.removeprefix("./").startswith("test/") and member.name.endswith("7.jpg"):
                archive.extract(member, tmp_path, filter="data")
    model = mixerzoo.create_model("mixer_ti4_32", pretrained=True)
    dataset = open_folder(tmp_path, EVAL_SPLITS, mixerzoo.create_transform(model), mixerzoo.labels(model))
    accuracy = evaluate(model, eval_batches(dataset))
    assert accuracy.num_images == 1000
    assert abs(accuracy.top1 - stated) < 4 * (stated * (1 - stated) / 1000) ** 0.5
