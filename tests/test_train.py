"""Recipes and the training loop: definitions, learning, resuming after a kill, and what a user does wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import run_cli
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mixerzoo
from mixerzoo.data.folder import EVAL_SPLITS, open_folder
from mixerzoo.data.transforms import Augmentation, eval_transform, train_transform
from mixerzoo.errors import ConfigError, DataError, TrainingError
from mixerzoo.inference.evaluate import evaluate
from mixerzoo.train.checkpoint import load_checkpoint, write_atomically
from mixerzoo.train.loop import RunOptions, fit, make_optimizer, make_scheduler
from mixerzoo.train.recipe import Recipe, get_recipe, list_recipes

DATA_CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 1.0,
    "crop_mode": "center",
}

QUICK = Recipe(
    model="mixer_ti4_32",
    epochs=3,
    batch_size=8,
    opt="adamw",
    lr=1e-3,
    warmup_epochs=1.0,
    augmentation=Augmentation(crop="pad", rand_augment="rand-m5-n1-mstd0.5-inc1"),
    mixup=0.2,
    cutmix=0.5,
    label_smoothing=0.1,
    drop_path_rate=0.1,
    ema_decay=0.9,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes that a glance tells apart: 24 training and 12 test images of red and blue noise."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def datasets(folder, recipe):
    train = open_folder(folder, ("train",), train_transform(DATA_CONFIG, recipe.augmentation))
    return train, open_folder(folder, EVAL_SPLITS, eval_transform(DATA_CONFIG))


def small_model(recipe=QUICK):
    torch.manual_seed(recipe.seed)
    return mixerzoo.Mixer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, tokens_mlp_dim=8, channels_mlp_dim=32, num_classes=2,
        drop_path_rate=recipe.drop_path_rate,
    )  # fmt: skip


def options(out, **kwargs):
    return RunOptions(out, **{"workers": 0, "progress": False, "amp": False} | kwargs)


# recipes


def test_recipes_are_found_and_complete():
    assert list_recipes() == ["cifar10_scratch"]
    recipe = get_recipe("cifar10_scratch")
    assert mixerzoo.is_model(recipe.model)
    with pytest.raises(ConfigError, match="Did you mean 'cifar10_scratch'"):
        get_recipe("cifar10")


def test_overrides():
    recipe = QUICK.override(["lr=3e-4", "epochs=7", "augmentation.pad=2", "augmentation.crop_area=0.1,0.9", "opt=sgd"])
    assert (recipe.lr, recipe.epochs, recipe.opt) == (3e-4, 7, "sgd")
    assert recipe.augmentation.pad == 2
    assert recipe.augmentation.crop_area == (0.1, 0.9)
    assert QUICK.lr == 1e-3  # the original is untouched


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=1", "no field 'lrr'. Did you mean 'lr'"),
        ("lr", "field=value"),
        ("lr=fast", "lr='fast': expected a value like"),
        ("epochs=2.5", "epochs='2.5'"),
        ("epochs=0", "epochs=0"),
        ("augmentation.padd=1", "Augmentation has no field 'padd'"),
        ("augmentation.crop_area=1", "crop_area"),
        ("augmentation=x", "no field 'augmentation'"),
        ("schedule=step", "schedule='step'"),
        ("label_smoothing=1.5", "label_smoothing"),
        ("warmup_epochs=99", "longer than the run"),
        ("lr=nan", "lr=nan"),
    ],
)
def test_bad_overrides_are_named(setting, message):
    with pytest.raises(ConfigError) as caught:
        QUICK.override([setting])
    assert message in str(caught.value)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_is_the_formula(schedule):
    recipe = dataclasses.replace(QUICK, schedule=schedule, epochs=10, warmup_epochs=2.0, min_lr=1e-4, lr=1e-2)
    steps, warmup, total = 5, 10, 50
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    scheduler = make_scheduler(optimizer, recipe, steps)
    for step in range(total):
        scheduler.step_update(step)
        done = (step - warmup) / (total - warmup)
        if step < warmup:
            expected = recipe.lr * step / warmup
        elif schedule == "linear":
            expected = recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 - done)
        else:
            expected = recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + np.cos(np.pi * done))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6, abs=1e-12), step


def test_only_kernels_decay():
    model = small_model()
    groups = make_optimizer(model, QUICK).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    with pytest.raises(ConfigError, match="opt='adamm'"):
        make_optimizer(model, dataclasses.replace(QUICK, opt="adamm"))


def test_augmentations_give_the_models_input():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for crop in ("pad", "inception"):
        for extra in ({}, {"rand_augment": "rand-m9-n2-mstd0.5-inc1", "random_erasing": 1.0}):
            tensor = train_transform(DATA_CONFIG, Augmentation(crop=crop, **extra))(image)
            assert tensor.shape == (3, 32, 32)
            assert tensor.dtype == torch.float32
    plain = train_transform(DATA_CONFIG, Augmentation(crop="pad", pad=0, hflip=1.0))
    flipped = eval_transform(DATA_CONFIG)(image.resize((32, 32), Image.Resampling.BICUBIC)).flip(-1)
    assert torch.allclose(plain(image), flipped)


# the loop


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
    stored = load_file(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name], tensor), name


def test_half_precision_weights(folder, tmp_path):
    fit(small_model(), QUICK, *datasets(folder, QUICK), options(tmp_path, weights_dtype=torch.float16))
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}


def test_the_average_is_what_is_saved(folder, tmp_path):
    model = small_model()
    fit(model, QUICK, *datasets(folder, QUICK), options(tmp_path))
    state = load_checkpoint(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[n], t) for n, t in state["ema"].items())
    assert any(not torch.equal(stored[n], t) for n, t in state["model"].items())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path, ema):
    recipe = dataclasses.replace(QUICK, epochs=4, ema_decay=ema)
    fit(small_model(recipe), recipe, *datasets(folder, recipe), options(tmp_path / "whole"))

    class StopError(Exception):
        pass

    class StopsAfterTwo(TensorDataset):
        def __init__(self):
            self.calls = 0
            self.inner = datasets(folder, recipe)[1]

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, i):
            self.calls += 1
            if self.calls > 2 * len(self.inner):  # the third evaluation: two epochs are safe, the third is lost
                raise StopError
            return self.inner[i]

    train, test = datasets(folder, recipe)
    parts = tmp_path / "parts"
    with pytest.raises(StopError):
        fit(small_model(recipe), recipe, train, StopsAfterTwo(), options(parts))
    assert load_checkpoint(parts)["epoch"] == 2
    fit(small_model(recipe), recipe, train, test, options(parts, resume=True))
    whole, resumed = (load_file(p / "model.safetensors") for p in (tmp_path / "whole", parts))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    again = fit(small_model(recipe), recipe, train, test, options(parts, resume=True))  # nothing left to do
    assert again.num_images == 12


def test_evaluation_may_be_left_out(folder, tmp_path):
    train, _ = datasets(folder, QUICK)
    assert fit(small_model(), QUICK, train, None, options(tmp_path)) is None
    assert (tmp_path / "model.safetensors").exists()


def test_an_existing_run_is_not_overwritten(folder, tmp_path):
    data = datasets(folder, QUICK)
    fit(small_model(), QUICK, *data, options(tmp_path))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run: add --resume"):
        fit(small_model(), QUICK, *data, options(tmp_path))
    other = dataclasses.replace(QUICK, lr=0.5)
    with pytest.raises(TrainingError, match=r"another recipe \(lr 0.001 -> 0.5\)"):
        fit(small_model(), other, *data, options(tmp_path, resume=True))
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
    with pytest.raises(TrainingError, match=r"The loss is .*checkpoint\.pt.*lower lr"):
        fit(small_model(), recipe, *datasets(folder, recipe), options(tmp_path))


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


# evaluation


def test_evaluate_counts():
    class Table(nn.Module):
        def forward(self, x):
            return x

    falling = [6.0, 5, 4, 3, 2, 1]
    logits = torch.tensor([[0.9, 0.1, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0.2], falling, falling])
    labels = torch.tensor([0, 0, 5, 4])
    model = Table().train()
    accuracy = evaluate(model, DataLoader(TensorDataset(logits, labels), batch_size=3))
    assert (accuracy.top1, accuracy.top5, accuracy.num_images) == (0.25, 0.75, 4)
    assert model.training
    two = evaluate(model, [(logits[:, :2], torch.tensor([0, 0, 0, 1]))])
    assert (two.top1, two.top5) == (0.5, 1.0)
    with pytest.raises(DataError, match="no images"):
        evaluate(model, [])


# data folders


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "has no folder named train"),
        (lambda p: (p / "train").mkdir(), "has no images"),
        (lambda p: (p / "train" / "cat").mkdir(parents=True), "has no images"),
    ],
)
def test_folders_without_data(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, ("train",), lambda image: image)


def test_classes_must_agree(folder):
    with pytest.raises(DataError, match=r"blue, red.*expected"):
        open_folder(folder, EVAL_SPLITS, lambda image: image, ["red", "blue"])


# the command


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
    assert f"weights: {out / 'model.safetensors'}" in resumed.stdout
    evaluated = run_cli(
        "train", "--data", folder, "--eval-only", "--checkpoint", out / "model.safetensors", "--workers", 0
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "of 12 test images" in evaluated.stdout
    top1 = resumed.stdout.split("top-1 ")[-1].split(" %")[0]
    assert f"top-1 {top1} %" in evaluated.stdout


def test_command_line_evaluates_only_matching_classes(folder):
    result = run_cli("train", "--data", folder, "--eval-only", "--workers", 0)
    assert result.returncode == 1
    assert "The model has 10 classes" in result.stderr


def test_built_in_checkpoint_keeps_its_word_on_real_photographs(shared_data, tmp_path):
    """Every tenth image of the real test split: the stated accuracy within four standard errors."""
    import tarfile

    row = mixerzoo.zoo.WEIGHTS["mixer_ti4_32.cifar10"]
    (stated,) = [s.percent / 100 for s in row.scores if s.metric == "CIFAR-10 top-1"]
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            if member.name.removeprefix("./").startswith("test/") and member.name.endswith("7.jpg"):
                archive.extract(member, tmp_path, filter="data")
    model = mixerzoo.create_model("mixer_ti4_32", pretrained=True)
    dataset = open_folder(tmp_path, EVAL_SPLITS, mixerzoo.create_transform(model), mixerzoo.labels(model))
    accuracy = evaluate(model, DataLoader(dataset, batch_size=250))
    assert accuracy.num_images == 1000
    assert abs(accuracy.top1 - stated) < 4 * (stated * (1 - stated) / 1000) ** 0.5
