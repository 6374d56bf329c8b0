"""A program for test_distributed.py, run by torchrun: trains copies and shards of a model and saves what comes out.

torchrun ... two_processes.py DATA OUT
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import torch
from training import QUICK, data, options, small_model

from mixerzoo.data.indexed import IndexedSource
from mixerzoo.distributed import job
from mixerzoo.errors import ImageError, TrainingError
from mixerzoo.train import Data, fit
from mixerzoo.train.loop import Loop
from mixerzoo.train.parallel import whole_copy

PLAIN = dataclasses.replace(QUICK, opt="momentum", drop_path_rate=0.1, weight_decay=1e-4)
PARTS = {
    "copies": (PLAIN, {"accumulate": 2}),
    "sam": (dataclasses.replace(PLAIN, sam_rho=0.05, gsam_alpha=0.3), {"accumulate": 2}),
    "sharded": (dataclasses.replace(PLAIN, opt="adamw"), {"shard": True, "accumulate": 2}),
    "sharded-sam": (dataclasses.replace(PLAIN, sam_rho=0.05, gsam_alpha=0.3), {"shard": True, "accumulate": 2}),
    "head": (dataclasses.replace(PLAIN, trainable="head"), {"grad_checkpointing": True, "accumulate": 2}),
}
RESUMED = ("copies", "sharded", "sharded-sam")


def run(part, folder, out, world, **kwargs):
    """Train; a model that was not seeded, as every process may make it, becomes the first one's."""
    recipe, how = PARTS[part]
    model = small_model(dataclasses.replace(recipe, seed=world.rank)) if "resume" not in kwargs else small_model(recipe)
    accuracy = fit(model, recipe, data(folder, recipe), options(out, **how, **kwargs), world=world)
    whole = whole_copy(model)
    if whole is not None:
        torch.save({"model": whole.state_dict(), "top1": accuracy.top1, "images": accuracy.num_images}, out / "end.pt")


def diverge(folder, out, world):
    """The loss of the second process alone is no number, once there is a checkpoint."""
    loop = Loop(small_model(), PLAIN, data(folder, PLAIN), options(out, checkpoint_every=2), world)
    loss_of = loop.train_step.loss_of
    bad = world.rank == 1
    loop.train_step.loss_of = lambda *args: loss_of(*args) * (float("nan") if bad and loop.step == 5 else 1.0)
    try:
        loop.run()
    except TrainingError as error:
        (out / f"process{world.rank}.txt").write_text(str(error))


class Torn:
    """Images of which one cannot be read, by this process."""

    def __init__(self, images, torn):
        self.images, self.torn, self.classes = images, torn, images.classes

    def __len__(self):
        return len(self.images)

    def read(self, index):
        if index == self.torn:
            raise ImageError(f"{self.name(index)}: torn.")
        return self.images.read(index)

    def name(self, index):
        return f"image {index}"


def tear(folder, out, world):
    """Each process meets another image that it cannot read."""
    source = data(folder, PLAIN).train
    recipe = dataclasses.replace(PLAIN, max_corrupt=0.1)
    torn = IndexedSource(Torn(source.data, world.rank), source.transform)
    fit(small_model(), recipe, Data(torn), options(out), world=world)


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    with job(timeout_s=60.0) as world:
        for part in PARTS:
            run(part, folder, out / part, world)
        for part in RESUMED:  # again, from the last checkpoint but one
            again = out / f"{part}-again"
            if world.is_first:
                step = "checkpoints/step-00000006"
                shutil.copytree(out / part / step, again / step)
            world.wait()
            run(part, folder, again, world, resume=True)
        diverge(folder, out / "diverged", world)
        tear(folder, out / "torn", world)


if __name__ == "__main__":
    main()
