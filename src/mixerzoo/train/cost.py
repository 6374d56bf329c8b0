"""What a training step costs, counted from the sizes: operations of the matrix products, and bytes.

Operations are those of the plain layers, two a multiply-add; backends that save less memory compute some products
again, which is not counted. Bytes of activations are those of the tensors that autograd keeps for the backward pass.

Legend: S tokens, C channels, D_S and D_C hidden widths, N images of a micro-batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from mixerzoo.config import MixerConfig
from mixerzoo.model import Mixer
from mixerzoo.train.optim import make_optimizer
from mixerzoo.train.recipe import Recipe

_FLOAT, _HALF = 4, 2  # bytes
PLAIN: Mapping[str, str] = MappingProxyType({"token_mlp": "reference", "channel_mlp": "reference"})
"""The operations of a layer and what computes them without any fusion."""

_KEEPS_HIDDEN = ("triton", "unfused")


@dataclass(frozen=True)
class Operations:
    """Floating-point operations for one image (two a multiply-add).

    Attributes:
        forward: Of a forward pass.
        backward: Of a backward pass: gradients of weights, and of inputs where something before them is trained.
        recomputed: Of forward passes done again by gradient checkpointing.
        passes: Forward and backward passes of one step: 2 for sharpness-aware minimisation, else 1.
    """

    forward: int
    backward: int
    recomputed: int
    passes: int

    @property
    def an_image(self) -> int:
        """Of a whole training step, for one image."""
        return self.passes * (self.forward + self.backward + self.recomputed)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of a step.

    Attributes:
        parameters: Float32 weights.
        gradients: Of the trained weights.
        optimizer: The optimiser's state, counted from the optimiser itself.
        average: The moving average of the weights.
        sam: What sharpness-aware minimisation remembers between its two passes.
        communication: DDP's buckets of gradients, or the layers that FSDP has gathered.
        weight_copies: bfloat16 copies of kernels that autocast keeps for the backward pass.
        activations: Kept for the backward pass, of one micro-batch.
        working: Gradients of activations in one layer, and what gradient checkpointing computes again there.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    sam: int
    communication: int
    weight_copies: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Layout:
    """How a model is trained, as far as bytes depend on it.

    Attributes:
        amp: bfloat16 autocast.
        checkpointing: Layers are computed again in the backward pass.
        backends: What computes each operation (see :mod:`mixerzoo.ops`).
        device_type: ``"cuda"`` or ``"cpu"``: autocast keeps LayerNorm's input in float32 on the first only.
    """

    amp: bool
    checkpointing: bool
    backends: Mapping[str, str]
    device_type: str = "cuda"


def training_operations(config: MixerConfig, recipe: Recipe, *, checkpointing: bool = False) -> Operations:
    """Count the operations of a training step for one image.

    Images need no gradient, so the patch embedding's backward pass is one product and every other layer's two.
    """
    tokens, channels = config.num_tokens, config.embed_dim
    forward = config.multiply_adds
    stem = tokens * channels * config.in_chans * config.patch_size**2
    head = channels * config.num_classes * (1 if config.global_pool else tokens)
    if recipe.trainable == "head":
        return Operations(2 * forward, 2 * head, 0, 2 if recipe.sam_rho else 1)
    # PyTorch stops computing a layer again once it has what is needed: its last product is not, unless it is scaled.
    spared = tokens * channels * config.channels_mlp_dim * (1 if config.drop_path_rate else config.depth)
    again = forward - stem - head - spared if checkpointing else 0
    return Operations(2 * forward, 2 * (2 * forward - stem), 2 * again, 2 if recipe.sam_rho else 1)


def activation_bytes(config: MixerConfig, recipe: Recipe, layout: Layout) -> int:
    """Bytes that autograd keeps for the backward pass, for one image, without the loss's own.

    Plain layers keep the inputs of LayerNorm, of both Linears and of GELU; the fused operations keep their input and,
    in channel mixing, what GELU is applied to; each LayerNorm keeps mean and reciprocal deviation. With checkpointing
    only each layer's input stays.
    """
    tokens, channels = config.num_tokens, config.embed_dim
    height, width = config.image_hw
    if recipe.trainable == "head":
        return _width(layout) * channels * (1 if config.global_pool else tokens)
    ends = _width(layout) * (config.in_chans * height * width)
    ends += _norm_bytes(config, layout) + _width(layout) * channels * (1 if config.global_pool else tokens)
    a_layer = _width(layout) * tokens * channels if layout.checkpointing else _layer_bytes(config, layout)
    return ends + config.depth * a_layer


def working_bytes(config: MixerConfig, recipe: Recipe, layout: Layout) -> int:
    """Bytes for one image that live inside one layer's backward pass and no longer."""
    if recipe.trainable == "head":
        return 0
    hidden = max(config.num_tokens * config.channels_mlp_dim, config.embed_dim * config.tokens_mlp_dim)
    gradients = _width(layout) * (2 * hidden + 2 * config.num_tokens * config.embed_dim)
    return gradients + (_layer_bytes(config, layout) if layout.checkpointing else 0)


def _width(layout: Layout) -> int:
    """Bytes of an element of what flows through the model: autocast's type from the patch embedding on."""
    return _HALF if layout.amp else _FLOAT


def _norm_bytes(config: MixerConfig, layout: Layout) -> int:
    """A plain LayerNorm's input, which CUDA's autocast copies into float32, and its statistics."""
    width = _FLOAT if layout.device_type == "cuda" else _width(layout)
    return width * config.num_tokens * config.embed_dim + 2 * _FLOAT * config.num_tokens


def _layer_bytes(config: MixerConfig, layout: Layout) -> int:
    size, width = config.num_tokens * config.embed_dim, _width(layout)
    hidden = {
        "token_mlp": config.embed_dim * config.tokens_mlp_dim,
        "channel_mlp": config.num_tokens * config.channels_mlp_dim,
    }
    total = 0
    for op, inner in hidden.items():
        backend = layout.backends[op]
        if backend == PLAIN[op]:
            total += _norm_bytes(config, layout) + width * (size + 2 * inner)
        else:
            total += width * size + 2 * _FLOAT * config.num_tokens
            total += width * inner if op == "channel_mlp" and backend in _KEEPS_HIDDEN else 0
    return total


def optimizer_bytes(model: Mixer, recipe: Recipe) -> int:
    """Bytes of the optimiser's state tensors after a step, from a step without values (on the meta device)."""
    blank = copy.deepcopy(model).to("meta")
    optimizer = make_optimizer(blank, recipe)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )


def memory_of(
    model: Mixer, recipe: Recipe, layout: Layout, *, micro_batch: int, processes: int, shard: bool, optimizer: int
) -> Memory:
    """Bytes on each of ``processes`` GPUs.

    FSDP splits weights, gradients and everything as large as them; at the fullest moment it has gathered two layers
    and what belongs to no layer, with their gradients. DDP copies gradients into buckets.

    Args:
        model: What is trained; its parameters say how much is.
        recipe: Whether there is an average of weights, sharpness-aware minimisation.
        layout: How it is computed.
        micro_batch: Images that go through the model at once.
        processes: GPUs.
        shard: FSDP instead of DDP.
        optimizer: See :func:`optimizer_bytes`.
    """
    parameters = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    kernels = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    a_layer = sum(p.nbytes for p in model.blocks[0].parameters())
    rest = parameters - len(model.blocks) * a_layer
    parts = processes if shard else 1
    gathered = 2 * (rest + min(2, len(model.blocks)) * a_layer)
    several = gathered if shard else trained
    copies = _HALF * kernels if layout.amp else 0
    return Memory(
        parameters=-(-parameters // parts),
        gradients=-(-trained // parts),
        optimizer=-(-optimizer // parts),
        average=-(-parameters // parts) if recipe.ema_decay else 0,
        sam=-(-_sam_copies(recipe) * trained // parts),
        communication=several if processes > 1 else 0,
        weight_copies=copies // len(model.blocks) if layout.checkpointing else copies,
        activations=micro_batch * activation_bytes(model.config, recipe, layout),
        working=micro_batch * working_bytes(model.config, recipe, layout),
    )


def _sam_copies(recipe: Recipe) -> int:
    """Copies of all trained weights that sharpness-aware minimisation keeps between its passes."""
    if not recipe.sam_rho:
        return 0
    return 2 if recipe.gsam_alpha else 1
