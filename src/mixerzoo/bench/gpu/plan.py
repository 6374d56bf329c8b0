"""Which cases the correctness part consists of.

Every operation, backend, size and dtype is there, forward and backward; GELU flavours and stochastic depth are crossed
with them so that each value meets each kernel. A size, dtype and flavour is a compilation of four kernels or so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from mixerzoo.bench.gpu.cases import Case
from mixerzoo.ops.problem import OPERATIONS, Operation

_WIDTHS = {"B": (768, 384), "S": (512, 256), "L": (1024, 512), "H": (1280, 640)}
_TOKENS = (196, 49, 256, 64)
_FUSED = [(f"{name} S={tokens}", tokens, *_WIDTHS[name]) for name in _WIDTHS for tokens in _TOKENS]
_OWN, _AWKWARD = ("Ti/4", 64, 128, 64), ("awkward", 50, 80, 40)
_LARGE = [(f"{name} S={tokens}", tokens, *_WIDTHS[name]) for name in _WIDTHS for tokens in (784, 1024)]
_TOY = [("toy", 9, 24, 20)]

_IMAGES = {"token_mlp": 40, "channel_mlp": 23}
"""Enough that persistent programs go round (40 x 4 channel blocks on at most 148 multiprocessors) and that row blocks
come in more than one group of eight, the last of them partly filled (23 x 49 rows)."""

_FAR_MEMORY = 70 << 30  # bytes of the card's memory, for what six workers hold at a time

_TOKEN_KERNELS = ("token_forward", "token_input", "token_weights", "row_stats", "layer_norm_backward")
_CHANNEL_KERNELS = ("layer_norm", "linear_gelu", "linear_gelu_alone", "linear_residual", "linear_gradient")

Size = tuple[str, int, int, int]


def cases(rehearsal: bool) -> list[Case]:
    """Every case, the most valuable first; a toy list for a rehearsal."""
    sizes = _TOY if rehearsal else [_FUSED[0], _AWKWARD, _OWN, *_FUSED[1:]]
    first, rest = sizes[:2], sizes[2:]
    planned = [*_branches(first, rehearsal, 0), *_streams(first[:1], rehearsal), *_kernels(first, rehearsal)]
    planned += [*_engines(rehearsal), *_branches(rest, rehearsal, len(first))]
    if rehearsal:
        return [*planned, *_far(3, 3)]
    planned += [case for size in _LARGE for case in _large(size)]
    return planned + (list(_far(6600, 1700)) if _memory() >= _FAR_MEMORY else [])


def _branches(sizes: list[Size], rehearsal: bool, offset: int) -> Iterator[Case]:
    """Every operation, backend and dtype at every size.

    GELU and stochastic depth alternate so that each dtype of each kernel meets all four combinations within four sizes,
    and one size meets different ones in different dtypes.
    """
    modes = ("bfloat16", "float32") if rehearsal else ("bfloat16", "float16", "float32", "tf32")
    for (i, size), (j, numerics), op in itertools.product(enumerate(sizes, offset), enumerate(modes), OPERATIONS):
        act, keep = ("tanh", "erf")[(i + j) % 2], bool((i // 2 + j) % 2)
        for backend in _backends(op, numerics, rehearsal):
            flavour = "tanh" if backend == "cublaslt" else act
            case = _branch_case(op, backend, size, numerics, flavour, keep)
            yield case | {"batches": offset == 0, "compile": offset == 0 and i == 0 and numerics == "bfloat16"}


def _backends(op: Operation, numerics: str, rehearsal: bool) -> list[str]:
    if numerics == "tf32":
        return ["triton"]
    names = ["triton", "unfused"]
    return [*names, "cublaslt"] if op == "channel_mlp" and not rehearsal else names


def _branch_case(op: Operation, backend: str, size: Size, numerics: str, act: str, keep: bool) -> Case:
    name, tokens, channels, hidden = size
    wide = hidden if op == "token_mlp" else 4 * channels
    images = 3 if name == "toy" else _IMAGES[op]
    return {
        "label": f"{op} {backend} {name} {numerics} {act}{' keep' if keep else ''}",
        "kind": "branch",
        "op": op,
        "backend": backend,
        "shape": [tokens, channels, wide],
        "images": images,
        "numerics": numerics,
        "act": act,
        "keep": keep,
    }


def _streams(sizes: list[Size], rehearsal: bool) -> Iterator[Case]:
    """Tokens in float32, products in bfloat16 or float16: training under autocast."""
    for size, op, backend in itertools.product(sizes, OPERATIONS, ("triton", "unfused")):
        for numerics, keep in (("bfloat16", True), ("float16", False))[: 1 if rehearsal else 2]:
            case = _branch_case(op, backend, size, numerics, "tanh", keep)
            yield case | {"stream": "float32", "label": f"{case['label']}, float32 tokens"}


def _kernels(sizes: list[Size], rehearsal: bool) -> Iterator[Case]:
    """Every kernel on its own, with results between guard bands."""
    pairs = [("token_mlp", k) for k in _TOKEN_KERNELS] + [("channel_mlp", k) for k in _CHANNEL_KERNELS]
    modes = ("bfloat16",) if rehearsal else ("bfloat16", "float16", "float32")
    for (i, size), (op, kernel), (j, numerics) in itertools.product(enumerate(sizes), pairs, enumerate(modes)):
        case = _branch_case(op, "triton", size, numerics, ("tanh", "erf")[j % 2], (i + j) % 2 == 0)  # type: ignore[arg-type]
        yield case | {"kind": "kernel", "kernel": kernel, "label": f"kernel {kernel} {size[0]} {numerics}"}


def _engines(rehearsal: bool) -> Iterator[Case]:
    """Whole models by the engine's programs. What they run follows the operations' record, so they count for it."""
    small: dict[str, object] = {"depth": 2, "patch_size": 4}
    sizes: dict[str, dict[str, object]] = {
        "B/16": {},
        "49 tokens": small | {"img_size": 28, "embed_dim": 512, "tokens_mlp_dim": 256, "channels_mlp_dim": 2048},
        "odd": small | {"img_size": [30, 41], "embed_dim": 80, "tokens_mlp_dim": 37, "channels_mlp_dim": 208},
    }
    if rehearsal:
        sizes = {"toy": small | {"img_size": 12, "embed_dim": 32, "tokens_mlp_dim": 20, "channels_mlp_dim": 48}}
    programs = [("fused", "bfloat16"), ("fused", "float16")]
    if rehearsal or not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9):
        programs.append(("fp8", "bfloat16"))
    for (name, config), (program, numerics), act in itertools.product(sizes.items(), programs, ("tanh", "erf")):
        yield {
            "label": f"engine {program} {name} {numerics} {act}",
            "kind": "engine",
            "op": "channel_mlp",
            "program": program,
            "config": config | {"act": act},
            "numerics": numerics,
            "images": 3 if rehearsal else 13,
        }


def _large(size: Size) -> Iterator[Case]:
    """Sizes for which there is no fused token mixing."""
    for op, (j, numerics) in itertools.product(OPERATIONS, enumerate(("bfloat16", "float16", "float32"))):
        case = _branch_case(op, "unfused", size, numerics, ("tanh", "erf")[j % 2], j % 2 == 0)
        yield case | {"images": 5}


def _far(token_images: int, channel_images: int) -> Iterator[Case]:
    """So many images that offsets into the tokens, or into the hidden activations, exceed 32 bits."""
    toy = token_images < _IMAGES["token_mlp"]
    for op, images in zip(OPERATIONS, (token_images, channel_images), strict=True):
        case = _branch_case(op, "triton", _TOY[0] if toy else _FUSED[14], "bfloat16", "tanh", False)
        yield case | {"kind": "far", "images": images, "label": f"{case['label']}, {images} images"}


def _memory() -> int:
    return (
        torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if torch.cuda.is_available() else 0
    )
