"""Data only: the variants, every released checkpoint, where it comes from and what is known of it.

Preprocessing, GELU flavour and sources belong to a weight tag, never to an architecture. Scores are published or
measured figures with their source; where there is none the row is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from mixerzoo.config import PRESETS, Gelu, MixerConfig

LabelSet = Literal["imagenet-1k", "imagenet-21k-goog", "imagenet-21k-miil", "cifar-10"]

CIFAR10_LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_PAPER = "Tolstikhin et al. 2021 (arXiv 2105.01601)"
_TIMM = "timm results/*.csv"
_SAM_PAPER = "Chen et al. 2021 (arXiv 2106.01548)"
_MEASURED = "measured 2026-11-21, fp32 on the 10,000 test images: mixerzoo evaluate --data cifar10 --model mixer_ti4_32"
_BUCKET = "https://storage.googleapis.com/mixer_models"


@dataclass(frozen=True)
class Score:
    """One published or measured figure.

    Attributes:
        metric: What was measured, for instance ``"ImageNet top-1"``.
        percent: The figure in percent.
        source: Who says so.
    """

    metric: str
    percent: float
    source: str


@dataclass(frozen=True)
class Variant:
    """An architecture.

    Attributes:
        name: Its name in ``create_model``.
        title: Its name in the paper.
        note: What a user should know before choosing it.
    """

    name: str
    title: str
    note: str = ""

    @property
    def config(self) -> MixerConfig:
        """Its sizes at the native image size."""
        return PRESETS[self.name]


@dataclass(frozen=True)
class WeightTag:
    """One released checkpoint.

    Attributes:
        variant: The architecture.
        tag: Its name behind the dot.
        act: GELU flavour that the weights were trained with.
        num_classes: Outputs of the head.
        label_set: Which classes they are.
        description: One sentence.
        hub_id: Repository on the Hugging Face Hub that has it as ``model.safetensors``.
        npz_url: The official Flax file.
        asset: File in ``mixerzoo/assets``.
        license: SPDX identifier.
        mean: Mean of each channel, in units of the [0, 1] range.
        std: Standard deviation of each channel, in the same units.
        interpolation: How images are resized.
        crop_pct: Side of the centre crop over the short side after resizing.
        scores: What is known of its accuracy.
    """

    variant: str
    tag: str
    act: Gelu
    num_classes: int
    label_set: LabelSet
    description: str
    hub_id: str | None = None
    npz_url: str | None = None
    asset: str | None = None
    license: str = "apache-2.0"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float = 0.875
    scores: tuple[Score, ...] = ()

    @property
    def name(self) -> str:
        """``variant.tag``."""
        return f"{self.variant}.{self.tag}"

    @property
    def config(self) -> MixerConfig:
        """Sizes and numerics of the weights."""
        return replace(VARIANTS[self.variant].config, act=self.act, num_classes=self.num_classes)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        variant.name: variant
        for variant in (
            Variant("mixer_s32", "Mixer-S/32"),
            Variant("mixer_s16", "Mixer-S/16"),
            Variant("mixer_s8", "Mixer-S/8", "Released with GSAM; not in the Mixer paper."),
            Variant("mixer_b32", "Mixer-B/32"),
            Variant(
                "mixer_b16",
                "Mixer-B/16",
                "The default tag is the paper's ImageNet-1k model; mixer_b16.miil_in21k_ft_in1k scores higher "
                "(82.3 % ImageNet top-1).",
            ),
            Variant("mixer_l32", "Mixer-L/32", "No weights were ever released."),
            Variant("mixer_l16", "Mixer-L/16"),
            Variant("mixer_h14", "Mixer-H/14", "No weights were ever released."),
            Variant(
                "mixer_ti4_32",
                "Mixer-Ti/4",
                "This project's own small variant for 32-pixel images; its weights ship with the package.",
            ),
        )
    }
)


def _google(
    variant: str,
    tag: str,
    folder: str,
    file: str,
    description: str,
    *,
    in21k: bool = False,
    hub_id: str | None = None,
    scores: tuple[Score, ...] = (),
) -> WeightTag:
    """A checkpoint released by Google: tanh GELU, pixels in [-1, 1]."""
    return WeightTag(
        variant=variant,
        tag=tag,
        act="tanh",
        num_classes=21843 if in21k else 1000,
        label_set="imagenet-21k-goog" if in21k else "imagenet-1k",
        description=description,
        hub_id=hub_id,
        npz_url=f"{_BUCKET}/{folder}/{file}.npz",
        scores=scores,
    )


def _miil(tag: str, num_classes: int, label_set: LabelSet, description: str, scores: tuple[Score, ...]) -> WeightTag:
    """A checkpoint released by Alibaba MIIL: erf GELU (their training code is timm-based), pixels in [0, 1]."""
    return WeightTag(
        variant="mixer_b16",
        tag=tag,
        act="erf",
        num_classes=num_classes,
        label_set=label_set,
        description=description,
        hub_id=f"timm/mixer_b16_224.{tag}",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        scores=scores,
    )


def _timm_scores(
    top1: float, top5: float, real: float, v2: float, rendition: float, sketch: float, adversarial: float
) -> tuple[Score, ...]:
    metrics = ("top-1", "top-5", "ReaL", "V2 top-1", "R top-1", "Sketch top-1", "A top-1")
    values = (top1, top5, real, v2, rendition, sketch, adversarial)
    return tuple(Score(f"ImageNet {m}", v, _TIMM) for m, v in zip(metrics, values, strict=True))


def _paper_scores(top1: float, real: float, five_tasks: float) -> tuple[Score, ...]:
    return (
        Score("ImageNet top-1", top1, _PAPER),
        Score("ImageNet ReaL", real, _PAPER),
        Score("average of 5 tasks", five_tasks, _PAPER),
    )


_SAM = "ImageNet-1k from scratch with sharpness-aware minimisation (SAM)."
_GSAM = "ImageNet-1k from scratch with surrogate-gap sharpness-aware minimisation (GSAM, arXiv 2203.08065)."

WEIGHTS: Mapping[str, WeightTag] = MappingProxyType(
    {
        row.name: row
        for row in (
            _google("mixer_s32", "gsam_in1k", "gsam", "Mixer-S_32", _GSAM),
            _google("mixer_s16", "gsam_in1k", "gsam", "Mixer-S_16", _GSAM),
            _google("mixer_s8", "gsam_in1k", "gsam", "Mixer-S_8", _GSAM),
            _google("mixer_b32", "gsam_in1k", "gsam", "Mixer-B_32", _GSAM),
            _google("mixer_b32", "sam_in1k", "sam", "Mixer-B_32", _SAM),
            _google(
                "mixer_b16",
                "goog_in1k",
                "imagenet1k",
                "Mixer-B_16",
                "The paper's ImageNet-1k model, trained from scratch on ImageNet-1k alone.",
                hub_id="timm/mixer_b16_224.goog_in21k_ft_in1k",
                scores=_paper_scores(76.44, 82.36, 88.33)
                + _timm_scores(76.616, 92.250, 82.012, 63.22, 34.32, 25.15, 8.40),
            ),
            _google(
                "mixer_b16",
                "goog_in21k",
                "imagenet21k",
                "Mixer-B_16",
                "The paper's ImageNet-21k pretraining, with its 21,843-class head. Users report that its transfer "
                "is unstable where the MIIL weights are not.",
                in21k=True,
                hub_id="timm/mixer_b16_224.goog_in21k",
            ),
            _google(
                "mixer_b16",
                "sam_in1k",
                "sam",
                "Mixer-B_16",
                _SAM,
                scores=(Score("ImageNet top-1", 77.4, _SAM_PAPER),),
            ),
            _google("mixer_b16", "gsam_in1k", "gsam", "Mixer-B_16", _GSAM),
            _miil(
                "miil_in21k_ft_in1k",
                1000,
                "imagenet-1k",
                "ImageNet-21k-P pretraining (arXiv 2104.10972), fine-tuned on ImageNet-1k.",
                _timm_scores(82.314, 95.710, 87.230, 71.20, 47.85, 36.25, 18.55),
            ),
            _miil(
                "miil_in21k", 11221, "imagenet-21k-miil", "ImageNet-21k-P pretraining (arXiv 2104.10972).", scores=()
            ),
            _google(
                "mixer_l16",
                "goog_in1k",
                "imagenet1k",
                "Mixer-L_16",
                "The paper's ImageNet-1k model, trained from scratch on ImageNet-1k alone.",
                hub_id="timm/mixer_l16_224.goog_in21k_ft_in1k",
                scores=_paper_scores(71.76, 77.08, 87.25)
                + _timm_scores(72.084, 87.632, 77.306, 56.21, 26.80, 20.18, 5.91),
            ),
            _google(
                "mixer_l16",
                "goog_in21k",
                "imagenet21k",
                "Mixer-L_16",
                "The paper's ImageNet-21k pretraining, with its 21,843-class head.",
                in21k=True,
                hub_id="timm/mixer_l16_224.goog_in21k",
            ),
            WeightTag(
                variant="mixer_ti4_32",
                tag="cifar10",
                act="tanh",
                num_classes=10,
                label_set="cifar-10",
                description="CIFAR-10 from scratch; recipe cifar10_scratch. Ships with the package.",
                asset="mixer_ti4_32.cifar10.safetensors",
                crop_pct=1.0,
                scores=(
                    Score("CIFAR-10 top-1", 83.91, _MEASURED),
                    Score("CIFAR-10 top-5", 99.04, _MEASURED),
                ),
            ),
        )
    }
)
"""Every released checkpoint by ``variant.tag``."""

DEFAULT_TAGS: Mapping[str, str] = MappingProxyType(
    {
        "mixer_s32": "gsam_in1k",
        "mixer_s16": "gsam_in1k",
        "mixer_s8": "gsam_in1k",
        "mixer_b32": "gsam_in1k",
        "mixer_b16": "goog_in1k",
        "mixer_l16": "goog_in1k",
        "mixer_ti4_32": "cifar10",
    }
)
"""What ``pretrained=True`` means without a tag; variants without weights are absent."""

MISLABELLED: Mapping[str, str] = MappingProxyType(
    {
        "mixer_b16.goog_in21k_ft_in1k": "mixer_b16.goog_in1k",
        "mixer_l16.goog_in21k_ft_in1k": "mixer_l16.goog_in1k",
    }
)
"""Names that claim something untrue, and the truth: there never was a 21k-then-1k Google checkpoint."""

MISLABEL_REASON = (
    "those weights were trained on ImageNet-1k alone: an author of the paper says so in pull request 651 of timm, the "
    "official bucket has no model fine-tuned from ImageNet-21k, and the measured accuracy fits the paper's ImageNet-1k "
    "rows only"
)

TIMM_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "mixer_s32_224": "mixer_s32",
        "mixer_s16_224": "mixer_s16",
        "mixer_b32_224": "mixer_b32",
        "mixer_b16_224": "mixer_b16",
        "mixer_l32_224": "mixer_l32",
        "mixer_l16_224": "mixer_l16",
    }
)
"""timm's architecture names (also in the ``config.json`` of Hub repositories) and ours."""
