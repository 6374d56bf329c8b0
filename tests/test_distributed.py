"""Several processes compute what one computes; a process that fails ends the job; another number of them goes on."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import data, options, small_model, write_data
from two_processes import PARTS, RESUMED

from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError
from mixerzoo.train import fit, get_recipe, train
from mixerzoo.train.checkpoint import newest
from mixerzoo.train.loop import Loop
from mixerzoo.train.watch import read_log

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory):
    """What two processes leave behind, part by part."""
    out = tmp_path_factory.mktemp("two")
    result = subprocess.run([*TORCHRUN, PROGRAM, folder, out], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return out


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("part", PARTS)
def test_two_processes_equal_one(folder, two, tmp_path, part):
    """The same global batches, mixing, stochastic depth, clipping and average, copied or sharded."""
    recipe, _ = PARTS[part]
    model = small_model(recipe)
    accuracy = fit(model, recipe, data(folder, recipe), options(tmp_path, accumulate=4))
    end = torch.load(two / part / "end.pt")
    assert_close(end["model"], model.state_dict())
    assert (end["top1"], end["images"]) == (accuracy.top1, accuracy.num_images)


@pytest.mark.parametrize("part", RESUMED)
def test_a_resumed_job_ends_in_the_same_bits(two, part):
    end, again = torch.load(two / part / "end.pt"), torch.load(two / f"{part}-again" / "end.pt")
    assert all(torch.equal(end["model"][name], tensor) for name, tensor in again["model"].items())


@pytest.mark.parametrize("part", RESUMED)
def test_one_process_goes_on_where_two_stopped(folder, two, tmp_path, part):
    """From the middle of the run, with the same global batches, and says that there were two."""
    recipe, _ = PARTS[part]
    step = "checkpoints/step-00000006"
    shutil.copytree(two / part / step, tmp_path / step)
    model = small_model(dataclasses.replace(recipe, seed=5))
    fit(model, recipe, data(folder, recipe), options(tmp_path, resume=True, accumulate=4))
    assert_close(torch.load(two / part / "end.pt")["model"], model.state_dict())
    assert any("processes 2 -> 1" in line.get("note", "") for line in read_log(tmp_path / "metrics.jsonl"))


def test_all_stop_when_the_loss_of_one_is_no_number(two):
    messages = [(two / "diverged" / f"process{rank}.txt").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert "NaN" in messages[0]
    assert "step-00000004" in messages[0]
    assert newest(two / "diverged").run["step"] == 4


def test_unreadable_images_of_all_processes_are_recorded(two):
    assert newest(two / "torn").run["faults"] == {"image 0": "torn", "image 1": "torn"}


def test_processes_that_see_different_folders_are_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(World, "gather", lambda self, value: [value, ("step-00000003", 24, True)])
    recipe, _ = PARTS["copies"]
    with pytest.raises(ConfigError, match="must see the same --out"):
        Loop(small_model(), recipe, data(folder, recipe), options(tmp_path), World())


SMALL = ["epochs=60", "batch_size=8", "opt=momentum", "lr=0.01"]


def command(folder, out, *more):
    settings = [word for value in SMALL for word in ("--set", value)]
    base = [*TORCHRUN, "-m", "mixerzoo", "train", "--data", folder, "--out", out, *settings]
    return [str(word) for word in (*base, "--no-amp", "--workers", 0, *more)]


def test_a_process_that_dies_ends_the_job_and_one_goes_on(folder, tmp_path):
    """One of two is killed; the job ends and names the signal; one process alone takes over."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(folder, out, "--checkpoint-every", 1, "--evaluate-every", 500),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while newest(out) is None:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (second,) = [pid for pid in descendants(process.pid) if environment(pid).get("LOCAL_RANK") == "1"]
    os.kill(second, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in output
    left = newest(out).run["step"]
    assert 0 < left < 180
    recipe = get_recipe("cifar10_scratch").override(SMALL)
    accuracy = train(recipe, folder, options(out, resume=True, evaluate_every=500))
    assert accuracy.num_images == 12
    assert newest(out).run["step"] == 180


def test_one_bad_test_image_costs_no_checkpoint_and_is_named(folder, tmp_path):
    """Only one of two processes meets it, in the evaluation after the first epoch."""
    shutil.copytree(folder, tmp_path / "data")
    bad = tmp_path / "data" / "test" / "red" / "3.png"
    bad.write_bytes(b"no image")
    result = subprocess.run(command(tmp_path / "data", tmp_path / "run"), capture_output=True, text=True, timeout=200)
    assert result.returncode != 0
    assert f"{bad}: not an image" in result.stderr
    assert newest(tmp_path / "run").run["step"] == 3
    assert "DataError" in result.stderr.split("Root Cause")[1]  # torchrun's report names it too


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [found for child in children for found in descendants(int(child))]


def environment(pid):
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)
