"""What carrying weights to a larger image keeps: the table in docs/resolution.md.

The built-in CIFAR-10 checkpoint (32 pixels) is carried to larger images by tiling and by interpolation, evaluated on
the test split resized to that size, fine-tuned for one epoch, and evaluated again.

    python examples/resolution.py --data cifar10/ --out runs/resolution
    python examples/resolution.py --data cifar10/ --out runs/resolution --no-train    # a few minutes

Results go to OUT/results.jsonl as they come; rows that are there already are not computed again.
"""

import argparse
import json
import sys
from pathlib import Path

import mixerzoo
from mixerzoo.bench.circumstances import circumstances
from mixerzoo.data.transforms import Augmentation
from mixerzoo.factory import data_config
from mixerzoo.inference.evaluate import evaluate
from mixerzoo.train import Recipe, RunOptions, fit
from mixerzoo.train.data import open_data

CASES = [(32, None), (40, "interpolate"), (48, "interpolate"), (64, "interpolate"), (64, "tile")]
CASES += [(96, "interpolate"), (96, "tile")]


def recipe_for(size: int, lr: float) -> Recipe:
    """One epoch of SGD with momentum, a cosine schedule and clipping; the paper's fine-tuning has the same."""
    return Recipe(
        model="mixer_ti4_32",
        epochs=1,
        batch_size=256,
        opt="momentum",
        lr=lr,
        weight_decay=0.0,
        momentum=0.9,
        clip_grad=1.0,
        warmup_epochs=0.1,
        augmentation=Augmentation(crop="pad", pad=size // 8),
        label_smoothing=0.1,
    )


def run_case(size: int, resize: str | None, args: argparse.Namespace) -> dict[str, object]:
    """Evaluate one scheme at one size, before and after an epoch of fine-tuning."""
    model = mixerzoo.create_model("mixer_ti4_32", pretrained=True, img_size=size, resize=resize)
    recipe = recipe_for(size, args.lr)
    data = open_data(args.data, recipe, data_config(model))
    row: dict[str, object] = {
        "img_size": size,
        "resize": resize,
        "tokens_mlp_dim": model.config.tokens_mlp_dim,
        "parameters": model.config.num_parameters,
        "multiply_adds": model.config.multiply_adds,
        "lr": args.lr,
        "circumstances": circumstances(),
        "top1_before": evaluate(model, data.evaluation, workers=args.workers).top1,
    }
    if not args.no_train:
        options = RunOptions(args.out / f"{size}-{resize}", compile=args.compile, workers=args.workers, resume=True)
        row["top1_after"] = fit(model, recipe, data, options).top1
    return row


def main() -> None:
    """Run every case that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/*.jpg and test/<class>/")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and checkpoints")
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="one of the sizes, in pixels")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-train", action="store_true", help="only evaluate the weights as they are carried")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for size, resize in [case for case in CASES if args.only in (None, case[0])]:
        same = [row for row in done if (row["img_size"], row["resize"]) == (size, resize)]
        if any(args.no_train or "top1_after" in row for row in same):
            continue
        row = run_case(size, resize, args)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
