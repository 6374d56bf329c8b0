"""The model card (README.md) of a saved folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixerzoo.config import MixerConfig
from mixerzoo.weights.sizes import variant_of
from mixerzoo.zoo import VARIANTS, Score, WeightTag

_DATASETS = {"imagenet-1k": "imagenet-1k", "imagenet-21k-goog": "imagenet-21k", "imagenet-21k-miil": "imagenet-21k"}


def model_card(
    config: MixerConfig,
    preprocessing: Mapping[str, Any],
    *,
    architecture: str,
    row: WeightTag | None = None,
    origin: Mapping[str, Any] | None = None,
    scores: Sequence[Score] = (),
    load_name: str | None = None,
) -> str:
    """Write a card: what the model is, where it comes from, how good it is known to be, how to load it.

    Args:
        config: Sizes and numerics.
        preprocessing: timm's data config.
        architecture: The name in ``config.json``: timm's where timm can express the model.
        row: The released checkpoint that it is, if it is one.
        origin: Where the weights come from, in words and values, one line each.
        scores: How good it is known to be, besides what ``row`` says.
        load_name: The name by which ``create_model`` loads it.
    """
    in_timm = architecture not in VARIANTS
    front = {
        "license": row.license if row else None,
        "library_name": "timm" if in_timm else "mixerzoo",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "mlp-mixer", "mixerzoo", *(["timm", "transformers"] if in_timm else [])],
        "datasets": [_DATASETS[row.label_set]] if row and row.label_set in _DATASETS else None,
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---"]
    named = variant_of(config)
    title = f"{VARIANTS[named].title}, an MLP-Mixer" if named else "An MLP-Mixer of sizes of its own"
    lines += ["", f"# {row.name}" if row else f"# {title}", ""]
    lines += [f"{title}. {row.description}", ""] if row else []
    lines += ["## The model", "", *_size_lines(config, preprocessing)]
    if origin:
        entries = (f"- {key}: {_in_one_line(value)}" for key, value in origin.items())
        lines += ["", "## Where the weights come from", "", *entries]
    lines += [
        "",
        "## Accuracy",
        "",
        *_score_lines([*(row.scores if row else ()), *scores]),
        "",
        "## Use",
        "",
        *_use_lines(config, load_name, in_timm=in_timm),
    ]
    lines += [
        "",
        "## Source",
        "",
        'Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, arXiv 2105.01601.',
    ]
    return "\n".join(lines) + "\n"


def _size_lines(config: MixerConfig, preprocessing: Mapping[str, Any]) -> list[str]:
    height, width = config.image_hw
    rows, columns = config.grid_size
    mean, std = (", ".join(f"{v:g}" for v in preprocessing[key]) for key in ("mean", "std"))
    gelu = {"tanh": "tanh approximation", "erf": "exact (erf)"}[config.act]
    return [
        f"- image: {height} x {width} pixels, {config.in_chans} channels; {preprocessing['interpolation']} resize, "
        f"crop {preprocessing['crop_pct']:g}, mean {mean}, std {std}",
        f"- patches of {config.patch_size} pixels: {rows} x {columns} = {config.num_tokens} tokens of "
        f"{config.embed_dim} channels, {config.depth} layers",
        f"- MLP widths: {config.tokens_mlp_dim} across tokens, {config.channels_mlp_dim} across channels",
        f"- {config.num_parameters:,} parameters, {config.num_classes} classes",
        f"- GELU: {gelu}; LayerNorm epsilon {config.norm_eps:g}",
    ]


def _score_lines(scores: Sequence[Score]) -> list[str]:
    if not scores:
        return ["None known."]
    table = [f"| {_cell(score.metric)} | {score.percent:g} % | {_cell(score.source)} |" for score in scores]
    return ["| metric | | source |", "|---|---|---|", *table]


def _in_one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _cell(text: str) -> str:
    return _in_one_line(text).replace("|", "\\|")


def _use_lines(config: MixerConfig, load_name: str | None, *, in_timm: bool) -> list[str]:
    name = load_name or "local-dir:path/to/this/folder"
    lines = ["```python", "import mixerzoo", "", f'model = mixerzoo.create_model("{name}", pretrained=True).eval()']
    if not in_timm:
        return [*lines, "```", "", "timm has no such architecture of its own; after `import mixerzoo` it loads it too."]
    lines += ["", "import timm", "", f'model = timm.create_model("{name}", pretrained=True).eval()']
    lines += ["```", "", "Transformers' timm wrapper loads it as well.", "", "### What plain timm does differently", ""]
    differences = []
    if config.act == "tanh":
        differences.append(
            "- timm's MLP-Mixer computes the exact GELU; these weights were trained with the tanh approximation. "
            "Block outputs differ by a few parts in ten thousand. mixerzoo computes the right one."
        )
    differences.append("- In training, timm's stochastic depth has one rate for all layers and rescales what survives.")
    return lines + differences
