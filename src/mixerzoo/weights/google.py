"""Google's Flax checkpoints (``.npz``) as tensors with timm's parameter names.

What the headers say is checked before any data is read, so a hostile file cannot exhaust time or memory.

Layouts (dense kernels are (in, out), the embedding is (height, width, in, out)):

    linen      stem, MixerBlock_i/{LayerNorm_0, token_mixing/Dense_0, ...}, pre_head_layer_norm, head; in training
               checkpoints below params/ or opt/target/
    pre-linen  embedding, Mixer/encoderblock_i/{LayerNorm_0, token_mixing_phase_0/kernel1, ...}, Mixer/encoder_norm,
               head; with singleton axes anywhere, and a layer's norms numbered 0 and 1 or 0 and 2
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from mixerzoo.config import MixerConfig
from mixerzoo.errors import WeightsError, listed
from mixerzoo.weights.npz import NpzArray, explained, read_headers, read_tensor
from mixerzoo.weights.sizes import check_limits

# Prefixes of training checkpoints, and what lies beside the model there: the optimiser's state, counters, clocks.
_PREFIXES = {
    "opt/target/": ("opt/state/", "extra/", "step"),
    "params/": ("opt/", "extra/", "chrono/", "step"),
}
_LAYER_PARTS = {
    "LayerNorm_0": "norm1",
    "token_mixing/Dense_0": "mlp_tokens.fc1",
    "token_mixing/Dense_1": "mlp_tokens.fc2",
    "LayerNorm_1": "norm2",
    "channel_mixing/Dense_0": "mlp_channels.fc1",
    "channel_mixing/Dense_1": "mlp_channels.fc2",
}


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read a Flax checkpoint of a Mixer.

    Args:
        path: The archive.

    Returns:
        Every parameter in float32 under timm's name, in memory.

    Raises:
        DamagedFileError: It is no whole archive of arrays.
        WeightsError: An array is missing, unexpected, misshapen, pickled, of another type, or not finite; the message
            names it.
    """
    with explained(path), zipfile.ZipFile(path) as archive:
        arrays = {array.key: array for array in read_headers(archive, path)}
        shapes = _checked_shapes(arrays, path)
        scratch = np.empty(max(arrays[key].num_bytes for key in shapes), np.uint8)  # all are read into the same place
        return {name: read_tensor(archive, arrays[key], shape, scratch, path) for key, (name, shape) in shapes.items()}


def _checked_shapes(arrays: Mapping[str, NpzArray], path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """timm's name and the shape without surplus singleton axes of every array of the model, by its name in the file.

    Raises:
        WeightsError: An array is missing, unexpected, or has another shape than the sizes of the others demand.
    """
    spell, beside = _layout(arrays)
    layers = {int(match[1]) for key in arrays if (match := re.search(r"(?:MixerBlock|encoderblock)_(\d{1,4})/", key))}
    with_head = any(spell(f"head/{kind}") in arrays for kind in ("kernel", "bias"))
    targets = {spell(key): found for key, found in linen_names(1 + max(layers, default=0), with_head=with_head).items()}
    missing = [key for key in targets if key not in arrays]
    unexpected = [key for key in arrays if key not in targets and not (beside and key.startswith(beside))]
    if missing or unexpected:
        problems = [f"lacks {listed(missing)}"] * bool(missing)
        problems += [f"has unexpected {listed(unexpected)}"] * bool(unexpected)
        raise WeightsError(f"{path} is no whole Flax checkpoint of a Mixer: it {' and '.join(problems)}.")
    surplus_axes = spell("stem/kernel").endswith("embedding/kernel")
    widths = _widths({f"{module}.{kind}": arrays[key] for key, (module, kind) in targets.items()}, path)
    shapes = {}
    for key, (module, kind) in targets.items():
        part = module.split(".", 2)[-1] if module.startswith("blocks.") else module
        expected = widths.get(part, widths["norm"])
        expected = expected if kind == "kernel" else expected[-1:]
        array = arrays[key]
        same = array.shape == expected or (surplus_axes and _no_ones(array.shape) == _no_ones(expected))
        if not same:
            raise WeightsError(f"{path}: {key} has shape {array.shape}, the other arrays demand {expected}.")
        if array.dtype.str[1:] not in ("f2", "f4", "f8", "V2"):  # V2: bfloat16, which NumPy does not know
            raise WeightsError(f"{path}: {key} holds {array.dtype} values; weights must be floating-point.")
        shapes[key] = (f"{module}.{'bias' if kind == 'bias' else 'weight'}", expected)
    return shapes


def _layout(arrays: Mapping[str, NpzArray]) -> tuple[Callable[[str], str], tuple[str, ...]]:
    """How the file spells a linen name, and the prefixes of what lies beside the model."""
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in arrays)), "")
    older = f"{prefix}embedding/kernel" in arrays
    second = 2 if any(key.startswith(f"{prefix}Mixer/encoderblock_0/LayerNorm_2/") for key in arrays) else 1

    def spell(key: str) -> str:
        return prefix + (_pre_linen_name(key, second) if older else key)

    return spell, _PREFIXES.get(prefix, ())


def _pre_linen_name(key: str, second_norm: int) -> str:
    """The older name of a linen array."""
    key = re.sub(r"^stem/", "embedding/", key)
    key = re.sub(r"^pre_head_layer_norm/", "Mixer/encoder_norm/", key)
    key = re.sub(r"^MixerBlock_", "Mixer/encoderblock_", key)
    key = key.replace("/LayerNorm_1/", f"/LayerNorm_{second_norm}/")
    return re.sub(
        r"/(token|channel)_mixing/Dense_([01])/(kernel|bias)$",
        lambda dense: f"/{dense[1]}_mixing_phase_0/{dense[3]}{int(dense[2]) + 1}",
        key,
    )


def _widths(arrays: Mapping[str, NpzArray], path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each kind of kernel, from the stem's and the biases of the first layer and the head.

    Args:
        arrays: By timm's module and the kind of array.
        path: What to call the file in messages.
    """
    stem = arrays["stem.proj.kernel"]
    if len(stem.shape) != 4 or stem.shape[0] != stem.shape[1]:
        raise WeightsError(f"{path}: {stem.key} has shape {stem.shape} instead of (patch, patch, channels, width).")
    patch, _, in_chans, channels = stem.shape
    tokens, tokens_hidden, channels_hidden = (
        math.prod(arrays[f"blocks.0.{part}.bias"].shape)
        for part in ("mlp_tokens.fc2", "mlp_tokens.fc1", "mlp_channels.fc1")
    )
    classes = math.prod(arrays["head.bias"].shape) if "head.bias" in arrays else 0
    check_limits(
        MixerConfig(
            img_size=(patch, patch * tokens),  # how many tokens; how they lie is not known here
            patch_size=patch,
            in_chans=in_chans,
            num_classes=classes,
            embed_dim=channels,
            depth=sum(name.endswith("norm1.bias") for name in arrays),
            tokens_mlp_dim=tokens_hidden,
            channels_mlp_dim=channels_hidden,
        )
    )
    return {
        "stem.proj": stem.shape,
        "mlp_tokens.fc1": (tokens, tokens_hidden),
        "mlp_tokens.fc2": (tokens_hidden, tokens),
        "mlp_channels.fc1": (channels, channels_hidden),
        "mlp_channels.fc2": (channels_hidden, channels),
        "norm": (channels,),
        "head": (channels, classes),
    }


def _no_ones(shape: tuple[int, ...]) -> list[int]:
    return [n for n in shape if n != 1]


def linen_names(depth: int, *, with_head: bool) -> dict[str, tuple[str, str]]:
    """Every linen key of a Mixer, with timm's module and the kind of array (``kernel``, ``scale`` or ``bias``)."""
    modules = {"stem": "stem.proj"}
    for i in range(depth):
        modules |= {f"MixerBlock_{i}/{part}": f"blocks.{i}.{name}" for part, name in _LAYER_PARTS.items()}
    modules |= {"pre_head_layer_norm": "norm"} | ({"head": "head"} if with_head else {})
    targets = {}
    for key, module in modules.items():
        norm = "norm" in module
        for kind in ("scale" if norm else "kernel", "bias"):
            targets[f"{key}/{kind}"] = (module, kind)
    return targets
