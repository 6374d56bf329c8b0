"""A training recipe: every choice that decides the result, and nothing about the machine it runs on."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mixerzoo.checks import check_choice, check_integer, check_number
from mixerzoo.data.transforms import Augmentation
from mixerzoo.errors import ConfigError, did_you_mean

Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a training run.

    Attributes:
        model: Name of the variant that the recipe was made for.
        epochs: Passes over the training split.
        batch_size: Images a step; the last, incomplete batch of an epoch is dropped.
        opt: timm's name of the optimiser (``timm.optim.list_optimizers()``).
        lr: Peak learning rate.
        weight_decay: timm's weight decay; biases and norms are exempt.
        momentum: Momentum, for optimisers that have one.
        clip_grad: Largest global gradient norm; 0 for no clipping.
        schedule: How the rate falls after the warm-up, ``"cosine"`` or ``"linear"``, updated every step.
        warmup_epochs: Epochs of linear warm-up from 0.
        min_lr: Learning rate at the end.
        augmentation: What happens to a training image.
        mixup: Alpha of mixup's Beta distribution; 0 for none.
        cutmix: Alpha of cutmix's Beta distribution; 0 for none.
        label_smoothing: Probability mass spread over all classes.
        drop_path_rate: Stochastic-depth rate of the last layer.
        ema_decay: Decay of the weights' exponential moving average (timm's, warmed up); 0 for none. When there is one
            it is what is evaluated and saved.
        seed: Seeds initialisation, order and augmentation.

    Raises:
        ConfigError: A value that cannot be used; the message names it.
    """

    model: str = "mixer_b16"
    epochs: int = 300
    batch_size: int = 4096
    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.9
    clip_grad: float = 1.0
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    drop_path_rate: float = 0.0
    ema_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate every field once."""
        for name in ("epochs", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("seed", self.seed, minimum=0)
        for name in ("lr", "weight_decay", "momentum", "clip_grad", "warmup_epochs", "min_lr", "mixup", "cutmix"):
            check_number(name, getattr(self, name), minimum=0.0)
        for name in ("label_smoothing", "drop_path_rate", "ema_decay"):
            check_number(name, getattr(self, name), minimum=0.0, below=1.0)
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ConfigError(f"batch_size={self.batch_size} must be even for mixup and cutmix, which pair images.")
        check_choice("schedule", self.schedule, get_args(Schedule))
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"warmup_epochs={self.warmup_epochs} is longer than the run of {self.epochs} epochs.")

    def override(self, settings: list[str]) -> Recipe:
        """Return a copy with single fields replaced, given as ``"lr=3e-4"`` or ``"augmentation.pad=2"``.

        Raises:
            ConfigError: An unknown field (near misses are listed) or a value of the wrong type.
        """
        changes: dict[str, Any] = {}
        nested: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ConfigError(f"{setting!r} is not of the form field=value.")
            if name.startswith("augmentation."):
                name = name.partition(".")[2]
                nested[name] = _field_value(self.augmentation, name, text)
            else:
                changes[name] = _field_value(self, name, text)
        augmentation = dataclasses.replace(self.augmentation, **nested)
        return dataclasses.replace(self, **changes, augmentation=augmentation)


def _field_value(config: Recipe | Augmentation, name: str, text: str) -> Any:
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "augmentation"}
    if name not in known:
        raise ConfigError(f"{type(config).__name__} has no field {name!r}.{did_you_mean(name, known)}")
    try:
        return _parse(text, like=known[name])
    except ValueError:
        raise ConfigError(f"{name}={text!r}: expected a value like {known[name]!r}.") from None


def _parse(text: str, like: Any) -> Any:
    if isinstance(like, tuple):
        values = tuple(_parse(part, like=like[0]) for part in text.strip("()").split(","))
        if len(values) != len(like):
            raise ValueError(text)
        return values
    return type(like)(text)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    package = importlib.import_module("mixerzoo.train.recipes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def get_recipe(name: str) -> Recipe:
    """Return the named recipe.

    Raises:
        ConfigError: No such recipe; near misses are listed.
    """
    if name not in list_recipes():
        raise ConfigError(
            f"There is no recipe {name!r}.{did_you_mean(name, list_recipes())} Available: {', '.join(list_recipes())}."
        )
    recipe: Recipe = importlib.import_module(f"mixerzoo.train.recipes.{name}").RECIPE
    return recipe
