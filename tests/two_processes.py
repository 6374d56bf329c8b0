"""A program for test_distributed.py, run by torchrun: trains copies and shards of a model and saves what comes out.

torchrun ... two_processes.py DATA OUT PART
"""

import dataclasses
import sys
from pathlib import Path

import torch
from training import QUICK, data, options, small_model

from mixerzoo.distributed import job
from mixerzoo.train import fit
from mixerzoo.train.parallel import whole_copy

PLAIN = dataclasses.replace(QUICK, opt="momentum", drop_path_rate=0.1, weight_decay=1e-4)
SAM = dataclasses.replace(PLAIN, sam_rho=0.05, gsam_alpha=0.3)
SHARDED = dataclasses.replace(QUICK, opt="adamw")
PARTS = {
    "copies": (PLAIN, {}),
    "sam": (SAM, {}),
    "sharded": (SHARDED, {"shard": True}),
    "sharded-sam": (SAM, {"shard": True}),
}


def run(part, folder, out, world, **kwargs):
    recipe, how = PARTS[part]
    model = small_model(recipe)
    accuracy = fit(model, recipe, data(folder, recipe), options(out, **how, **kwargs), world=world)
    whole = whole_copy(model)
    if whole is not None:
        torch.save({"model": whole.state_dict(), "top1": accuracy.top1, "images": accuracy.num_images}, out / "end.pt")


def main():
    folder, out, parts = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
    with job() as world:
        for part in parts:
            run(part, folder, out / part, world)
            if part.startswith("sharded"):  # again, from its last checkpoint but one
                again = out / f"{part}-again"
                if world.is_first:
                    again.mkdir()
                    (out / part / "checkpoints" / "step-00000006").rename(again / "moved")
                    (again / "checkpoints").mkdir()
                    (again / "moved").rename(again / "checkpoints" / "step-00000006")
                world.wait()
                run(part, folder, again, world, resume=True)


if __name__ == "__main__":
    main()
