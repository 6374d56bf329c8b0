"""A folder of photographs to predictions: how much of the slower of decoding and the model is left together."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from mixerzoo.data.images import load_image
from mixerzoo.engine import optimize
from mixerzoo.factory import create_model, create_transform
from mixerzoo.inference.predict import predict

MODEL, IMAGES, BATCH_SIZE, THREADS = "mixer_b16", 64, 16, 2
_SIZE = (500, 375)  # pixels, as most of ImageNet's photographs


@dataclass(frozen=True)
class FolderRace:
    """Images a second.

    Attributes:
        decoding: Reading, decoding and preparing files, in as many threads as prediction uses for that.
        model: The optimized model alone, on images in memory.
        together: ``predict`` on the files.
        count: Files.
    """

    decoding: float
    model: float
    together: float
    count: int = IMAGES

    @property
    def share(self) -> float:
        """Of the slower part alone."""
        return self.together / min(self.decoding, self.model)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.count} JPEG files of {_SIZE[0]} x {_SIZE[1]} pixels, {MODEL} bf16, images/s: decoding alone "
            f"{self.decoding:.1f}, model alone {self.model:.1f}, files to predictions {self.together:.1f} "
            f"({100 * self.share:.0f} % of the slower)"
        )


def race_folder(repeats: int = 3, count: int = IMAGES) -> FolderRace:
    """Measure the three in turn, after one uncounted round.

    Args:
        repeats: Rounds that count.
        count: Files.
    """
    model = create_model(MODEL).eval()
    transform = create_transform(model)
    fast = optimize(model, max_batch_size=BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        paths = [_photograph(Path(folder) / f"{i:04}.jpg", i) for i in range(count)]
        prepared = torch.stack([transform(load_image(path, "RGB")) for path in paths])

        def decode() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda path: transform(load_image(path, "RGB")), paths))

        def together() -> None:
            list(predict(fast, paths, batch_size=BATCH_SIZE, threads=THREADS))

        parts = (decode, lambda: _run(fast, prepared), together)
        rounds = [[_seconds(part) for part in parts] for _ in range(repeats + 1)][1:]
    decoding, alone, both = (count / statistics.median(times) for times in zip(*rounds, strict=True))
    return FolderRace(decoding, alone, both, count)


def _photograph(path: Path, seed: int) -> Path:
    """A JPEG with coarse and fine structure, of about the size in bytes of a photograph."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, _SIZE[1], _SIZE[0])
    for cells in (4, 16, 64, 256):
        noise = torch.randn(1, 3, cells, cells, generator=generator) / cells**0.5
        picture += nn.functional.interpolate(noise, picture.shape[2:], mode="bilinear")
    pixels = (128 + 64 * picture[0]).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=90)
    return path


def _run(model: nn.Module, images: torch.Tensor) -> None:
    for batch in images.split(BATCH_SIZE):  # type: ignore[no-untyped-call]
        model(batch)


def _seconds(part: Callable[[], None]) -> float:
    start = time.perf_counter()
    part()
    return time.perf_counter() - start
