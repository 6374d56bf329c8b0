"""Preprocessing for evaluation and augmentation for training, composed from timm's and torchvision's transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import timm.data
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms

from mixerzoo.checks import check_choice, check_integer, check_number
from mixerzoo.errors import ConfigError

Interpolation = Literal["", "nearest", "bilinear", "bicubic", "lanczos"]

MAX_ASPECT = 8
"""Longer images are cut to this aspect ratio before they are resized for a centre crop, which never sees the rest."""


class LimitAspect:
    """Cut the ends off extremely long images, so that resizing the short side cannot exhaust memory."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image, or its centre with a long side of :data:`MAX_ASPECT` times the short one."""
        width, height = image.size
        longest = MAX_ASPECT * min(width, height)
        if max(width, height) <= longest:
            return image
        new_width, new_height = min(width, longest), min(height, longest)
        left, top = (width - new_width) // 2, (height - new_height) // 2
        return image.crop((left, top, left + new_width, top + new_height))

    def __repr__(self) -> str:
        return f"LimitAspect({MAX_ASPECT})"


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image before it is normalised.

    Attributes:
        crop: ``"inception"`` crops a random area (``crop_area``) at a random aspect ratio in [3/4, 4/3] and resizes
            it; ``"pad"`` pads by ``pad`` pixels and crops at a random place.
        crop_area: Smallest and largest area of an inception crop as fractions of the image.
        pad: Pixels of padding on each side for ``crop="pad"``.
        hflip: Probability of a horizontal flip.
        interpolation: How the crop is resized: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``; empty
            takes what the model is evaluated with.
        rand_augment: timm's RandAugment string, for instance ``"rand-m9-n2-mstd0.5-inc1"``; empty for none. timm cuts
            magnitudes at 10 unless ``mmax`` is larger, and applies an operation with probability ``p``, 0.5 unless
            given.
        random_erasing: Probability of timm's random erasing.

    Raises:
        ConfigError: A value that cannot be used; the message names it.
    """

    crop: Literal["inception", "pad"] = "inception"
    crop_area: tuple[float, float] = (0.05, 1.0)
    pad: int = 4
    hflip: float = 0.5
    interpolation: Interpolation = ""
    rand_augment: str = ""
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        """Validate every field once."""
        check_choice("augmentation.crop", self.crop, ("inception", "pad"))
        check_choice("augmentation.interpolation", self.interpolation, get_args(Interpolation))
        check_integer("augmentation.pad", self.pad, minimum=0)
        for name in ("hflip", "random_erasing"):
            check_number(f"augmentation.{name}", getattr(self, name), minimum=0.0, maximum=1.0)
        smallest, largest = self.crop_area
        if not 0.0 < smallest <= largest <= 1.0:
            raise ConfigError(f"augmentation.crop_area={self.crop_area!r} must be two fractions of the image in order.")
        try:
            if self.rand_augment:
                rand_augment_transform(self.rand_augment, {})
        except (AssertionError, ValueError, KeyError):
            raise ConfigError(
                f"augmentation.rand_augment={self.rand_augment!r} is not timm's notation, for instance "
                "'rand-m9-n2-mstd0.5-inc1'."
            ) from None


def eval_transform(data_config: dict[str, Any]) -> transforms.Compose:
    """Resize, centre-crop and normalise: PIL image -> float32 tensor (channels, height, width).

    Args:
        data_config: timm's data config: ``input_size``, ``interpolation``, ``crop_pct``, ``crop_mode``, ``mean``,
            ``std``.
    """
    pipeline = timm.data.create_transform(**data_config, is_training=False)
    centred = data_config.get("crop_mode", "center") == "center"  # other modes look at the whole image
    return transforms.Compose([LimitAspect(), *pipeline.transforms]) if centred else pipeline


def train_transform(data_config: dict[str, Any], augmentation: Augmentation) -> transforms.Compose:
    """Augment and normalise: PIL image -> float32 tensor (channels, height, width).

    Args:
        data_config: As for :func:`eval_transform`.
        augmentation: What to do to the image.
    """
    _, height, width = data_config["input_size"]
    mean, std = data_config["mean"], data_config["std"]
    interpolation = augmentation.interpolation or data_config["interpolation"]
    if augmentation.crop == "inception":
        return timm.data.create_transform(
            input_size=(height, width),
            is_training=True,
            scale=augmentation.crop_area,
            hflip=augmentation.hflip,
            color_jitter=0.0,
            auto_augment=augmentation.rand_augment or None,
            interpolation=interpolation,
            mean=mean,
            std=std,
            re_prob=augmentation.random_erasing,
        )
    fill = tuple(round(255 * m) for m in mean)
    steps: list[Any] = [
        transforms.Resize((height, width), transforms.InterpolationMode(interpolation)),
        transforms.RandomCrop((height, width), padding=augmentation.pad, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(augmentation.hflip),
    ]
    if augmentation.rand_augment:
        steps.append(rand_augment_transform(augmentation.rand_augment, {"img_mean": fill}))
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    if augmentation.random_erasing:
        steps.append(timm.data.random_erasing.RandomErasing(augmentation.random_erasing, device="cpu"))
    return transforms.Compose(steps)
