"""Several processes compute what one computes; a process that dies ends the job; another number of them goes on."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import data, options, small_model, write_data
from two_processes import PARTS

from mixerzoo.errors import TrainingError
from mixerzoo.train import fit
from mixerzoo.train.checkpoint import newest
from mixerzoo.train.parallel import whole_copy

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory):
    """What two processes leave behind, part by part."""
    out = tmp_path_factory.mktemp("two")
    result = subprocess.run(
        [*TORCHRUN, PROGRAM, folder, out, ",".join(PARTS)], capture_output=True, text=True, timeout=300
    )
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
    accuracy = fit(model, recipe, data(folder, recipe), options(tmp_path, accumulate=2))
    end = torch.load(two / part / "end.pt")
    assert_close(end["model"], model.state_dict())
    assert (end["top1"], end["images"]) == (accuracy.top1, accuracy.num_images)


@pytest.mark.parametrize("part", ["sharded", "sharded-sam"])
def test_shards_are_saved_and_reloaded(two, part):
    """Resumed from a checkpoint of shards, the run ends in the same bits."""
    end, again = torch.load(two / part / "end.pt"), torch.load(two / f"{part}-again" / "end.pt")
    assert all(torch.equal(end["model"][name], tensor) for name, tensor in again["model"].items())


@pytest.mark.parametrize("part", ["sharded"])
def test_one_process_reads_what_two_wrote(folder, two, tmp_path, part):
    """The sharded run's checkpoint in one whole model."""
    recipe, _ = PARTS[part]
    model = small_model(dataclasses.replace(recipe, seed=5))
    (tmp_path / "checkpoints").mkdir()
    newest(two / part).folder.rename(tmp_path / "checkpoints" / "step-00000009")
    fit(model, recipe, data(folder, recipe), options(tmp_path, resume=True, accumulate=2))
    end = torch.load(two / part / "end.pt")
    assert all(torch.equal(end["model"][name], tensor) for name, tensor in whole_copy(model).state_dict().items())


def test_a_process_that_dies_ends_the_job_and_others_go_on(folder, tmp_path):
    """One of two is killed; the job ends and names the signal; one process alone takes over the same global batches."""
    out = tmp_path / "run"
    settings = [
        "--set", "epochs=120", "--set", "batch_size=8", "--set", "opt=momentum", "--set", "lr=0.01", "--no-amp",
        "--workers", "0", "--checkpoint-every", "1", "--evaluate-every", "500",
    ]  # fmt: skip
    command = ["-m", "mixerzoo", "train", "--data", str(folder), "--out", str(out), *settings]
    process = subprocess.Popen([*TORCHRUN, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while newest(out) is None:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = [pid for pid in descendants(process.pid) if environment(pid).get("LOCAL_RANK") == "1"]
    os.kill(ranks[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in output
    left = newest(out).run["step"]
    assert 0 < left < 360
    from mixerzoo.train import get_recipe, train

    recipe = get_recipe("cifar10_scratch").override([value for value in settings if "=" in value])
    with pytest.raises(TrainingError, match="another recipe"):
        train(dataclasses.replace(recipe, epochs=4), folder, options(out, resume=True))
    assert newest(out).run["step"] == left


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [found for child in children for found in descendants(int(child))]


def environment(pid):
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)
