"""A program for test_kill.py: trains in child processes, kills them at random moments, and looks at what is left.

python killed_runs.py DATA OUT TRIALS SEED prints one JSON line a trial.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from training import QUICK, data, options, small_model

from mixerzoo.distributed import World
from mixerzoo.train.checkpoint import newest, restore
from mixerzoo.train.loop import Loop

RECIPE = dataclasses.replace(QUICK, epochs=4, holdout=0.0)


def train(folder, out, promises):
    """Train to the end; every promised checkpoint's step goes into the pipe ``promises``."""
    loop = Loop(small_model(), RECIPE, data(folder, RECIPE), options(out, checkpoint_every=1, resume=True), World())
    finish = loop.checkpoints.finish

    def finish_and_tell():
        path = finish()
        if path is not None:
            os.write(promises, f"{int(path.name.removeprefix('step-'))}\n".encode())
        return path

    loop.checkpoints.finish = finish_and_tell
    loop.run()
    loop.keep_average()
    torch.save({"model": loop.state.model.state_dict(), "optimizer": loop.state.optimizer.state_dict()}, out / "end.pt")


def in_a_child(folder, out, kill_after=None):
    """Run ``train`` in a child, killed after so many seconds; returns (promised steps, whether it was killed)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            train(folder, out, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        promised = [int(line) for line in pipe.read().split()]
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0
    return promised, killed


def same(a, b):
    a, b = (torch.load(path / "end.pt") for path in (a, b))
    parts = [(a["model"], b["model"])]
    parts += [(a["optimizer"]["state"][i], b["optimizer"]["state"][i]) for i in a["optimizer"]["state"]]
    return all(torch.equal(x[name], y[name]) for x, y in parts for name in x)


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    trials, chance = int(sys.argv[3]), random.Random(int(sys.argv[4]))
    start = time.monotonic()
    in_a_child(folder, out / "whole")
    duration = time.monotonic() - start
    for trial in range(trials):
        run, found, promised, killed = out / f"trial{trial}", -1, [], False
        for _ in range(2):  # killed in the beginning or in the middle, and again after a resume
            told, killed_now = in_a_child(folder, run, chance.uniform(0.0, duration))
            promised, killed = promised + told, killed or killed_now
            left = newest(run)
            found = left.run["step"] if left else 0
            if left:
                loop = Loop(small_model(), RECIPE, data(folder, RECIPE), options(run, resume=True), World())
                restore(left, loop.state)
                loop.watch.close()
        in_a_child(folder, run)
        outcome = {
            "killed": killed,
            "found": found,
            "promised": max(promised, default=0),
            "same": same(run, out / "whole"),
            "kept": len(list((run / "checkpoints").iterdir())),
        }
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()
        shutil.rmtree(run)


if __name__ == "__main__":
    main()
