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
from mixerzoo.resize import Resize

Schedule = Literal["cosine", "linear", "constant"]
DecayRule = Literal["times-lr", "independent"]
Loss = Literal["softmax", "sigmoid"]
Trainable = Literal["all", "head"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a training run.

    Attributes:
        model: Name of the variant, or (with ``pretrained``) of the weights to start from.
        pretrained: Start from the weights that ``model`` names; the head starts anew if the classes are others.
        img_size: Height and width of the images in pixels; 0 keeps the model's own.
        resize: How pretrained weights are carried to ``img_size``: ``"tile"``, ``"interpolate"``, or ``"auto"``, which
            tiles where the sides are whole multiples.
        trainable: ``"all"`` parameters, or the ``"head"`` alone (a linear probe by gradient descent).
        epochs: Passes over the training split; 0 if ``steps`` says how long.
        steps: Optimiser steps; 0 if ``epochs`` says how long.
        batch_size: Images of one optimiser step, over all processes; an epoch's incomplete last batch is dropped.
        holdout: Share of the training split that is kept out of training and evaluated in place of a test split.
        opt: timm's name of the optimiser (``timm.optim.list_optimizers()``).
        lr: Peak learning rate.
        weight_decay: Decay of kernels (weights of two axes and more); biases and norms are exempt.
        decay_rule: ``"times-lr"`` is PyTorch's AdamW: a step takes ``lr * weight_decay`` of the weights.
            ``"independent"`` is big_vision's: a step takes ``weight_decay`` times the schedule's factor in [0, 1],
            whatever ``lr`` is.
        momentum: Momentum, for optimisers that have one.
        clip_grad: Largest global gradient norm; 0 for no clipping.
        schedule: How the rate falls after the warm-up, updated every step.
        warmup_epochs: Epochs of linear warm-up from 0.
        warmup_steps: The same in steps; one of the two is 0.
        min_lr_ratio: Learning rate at the end, as a fraction of the peak.
        loss: ``"softmax"`` cross-entropy, or ``"sigmoid"`` cross-entropy summed over classes; mean over images.
        head_bias: Initial bias of a head that starts anew.
        augmentation: What happens to a training image.
        mixup: Alpha of mixup's Beta distribution; 0 for none.
        cutmix: Alpha of cutmix's Beta distribution; 0 for none. With both, each step draws one of them.
        label_smoothing: Probability mass spread over all classes.
        drop_path_rate: Stochastic-depth rate of the last layer.
        drop_path_rescale: Whether surviving branches are scaled up (timm) or not (the official code).
        sam_rho: Radius of sharpness-aware minimisation's ascent step; 0 for none. See :mod:`mixerzoo.train.sam`.
        sam_rho_min: Radius at the lowest learning rate, which the radius follows down (GSAM's rule); 0 keeps
            ``sam_rho`` throughout.
        gsam_alpha: Weight of GSAM's surrogate-gap term; 0 for plain SAM.
        ema_decay: Decay of the weights' exponential moving average (timm's, warmed up); 0 for none. When there is one
            it is what is evaluated and saved.
        max_corrupt: Largest share of unreadable training samples; more stop the run.
        seed: Seeds initialisation, order and augmentation.

    Raises:
        ConfigError: A value that cannot be used; the message names it.
    """

    model: str = "mixer_b16"
    pretrained: bool = False
    img_size: int = 0
    resize: Literal["auto"] | Resize = "auto"
    trainable: Trainable = "all"
    epochs: int = 300
    steps: int = 0
    batch_size: int = 4096
    holdout: float = 0.0
    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    decay_rule: DecayRule = "times-lr"
    momentum: float = 0.9
    clip_grad: float = 1.0
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    loss: Loss = "softmax"
    head_bias: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    drop_path_rate: float = 0.0
    drop_path_rescale: bool = True
    sam_rho: float = 0.0
    sam_rho_min: float = 0.0
    gsam_alpha: float = 0.0
    ema_decay: float = 0.0
    max_corrupt: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate every field once."""
        check_integer("batch_size", self.batch_size, minimum=1)
        for name in ("epochs", "steps", "seed", "img_size", "warmup_steps"):
            check_integer(name, getattr(self, name), minimum=0)
        for name in ("lr", "weight_decay", "momentum", "clip_grad", "warmup_epochs", "mixup", "cutmix", "sam_rho"):
            check_number(name, getattr(self, name), minimum=0.0)
        check_number("gsam_alpha", self.gsam_alpha, minimum=0.0)
        check_number("sam_rho_min", self.sam_rho_min, minimum=0.0, maximum=self.sam_rho)
        check_number("head_bias", self.head_bias)
        for name in ("label_smoothing", "drop_path_rate", "ema_decay", "holdout"):
            check_number(name, getattr(self, name), minimum=0.0, below=1.0)
        for name in ("min_lr_ratio", "max_corrupt"):
            check_number(name, getattr(self, name), minimum=0.0, maximum=1.0)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("pretrained", "drop_path_rescale"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False.")
        if (self.epochs > 0) == (self.steps > 0):
            raise ConfigError(
                f"epochs={self.epochs} and steps={self.steps}: one of them says how long to train, the other must be 0."
            )
        if self.warmup_epochs and self.warmup_steps:
            raise ConfigError("warmup_epochs and warmup_steps exclude each other: set one of them to 0.")
        if 0 < self.epochs < self.warmup_epochs or 0 < self.steps < self.warmup_steps:
            raise ConfigError("The warm-up is longer than the run: lower warmup_epochs or warmup_steps.")
        if self.sam_rho and not self.lr:
            raise ConfigError("sam_rho needs a learning rate above 0.")
        if self.gsam_alpha and not self.sam_rho:
            raise ConfigError("gsam_alpha is a term of sharpness-aware minimisation: set sam_rho too.")
        if self.decay_rule == "independent" and self.weight_decay and not self.lr:
            raise ConfigError("decay_rule='independent' needs a learning rate above 0.")

    def total_steps(self, num_images: int) -> int:
        """Optimiser steps of the whole run on a training split of ``num_images``."""
        return self.steps or self.epochs * (num_images // self.batch_size)

    def total_warmup_steps(self, num_images: int) -> int:
        """Optimiser steps of the warm-up."""
        return self.warmup_steps or round(self.warmup_epochs * (num_images // self.batch_size))

    def override(self, settings: list[str]) -> Recipe:
        """Return a copy with single fields replaced, given as ``"lr=3e-4"`` or ``"augmentation.pad=2"``.

        ``epochs`` and ``steps`` (and the two warm-ups) replace each other.

        Raises:
            ConfigError: An unknown field (near misses are listed) or a value of the wrong type.
        """
        changes: dict[str, Any] = {}
        nested: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ConfigError(f"{setting!r} is not of the form field=value, for instance lr=3e-4.")
            if name.startswith("augmentation."):
                name = name.partition(".")[2]
                nested[name] = _field_value(self.augmentation, name, text)
            else:
                changes[name] = _field_value(self, name, text)
        for one, other in (("epochs", "steps"), ("warmup_epochs", "warmup_steps")):
            for given, replaced in ((one, other), (other, one)):
                if changes.get(given) and replaced not in changes:
                    changes[replaced] = 0
        augmentation = dataclasses.replace(self.augmentation, **nested)
        return dataclasses.replace(self, **changes, augmentation=augmentation)


_CHOICES: dict[str, tuple[str, ...]] = {
    "resize": ("auto", *get_args(Resize)),
    "trainable": get_args(Trainable),
    "decay_rule": get_args(DecayRule),
    "schedule": get_args(Schedule),
    "loss": get_args(Loss),
}


def _field_value(config: Recipe | Augmentation, name: str, text: str) -> Any:
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "augmentation"}
    if name not in known:
        prefix = "augmentation." if isinstance(config, Augmentation) else ""
        raise ConfigError(f"A recipe has no field {prefix + name!r}.{did_you_mean(name, known)}")
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
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
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
