"""Who computes an operation in the comparison: plain PyTorch, library products, fused kernels; eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from torch import Tensor

from mixerzoo.bench.gpu.inputs import Setting, by_backend, by_reference, random_branch, this_device
from mixerzoo.bench.gpu.timing import Step, copies_for
from mixerzoo.config import PRESETS, MixerConfig
from mixerzoo.model import MixerBlock
from mixerzoo.ops.backends.triton import interpreted
from mixerzoo.ops.choice import REFERENCE
from mixerzoo.ops.problem import OPERATIONS, Branch, Operation

_NAMES = ("B/16", "S/16", "L/16", "B/32", "S/32", "L/32", "H/14")

VARIANTS: Mapping[str, MixerConfig] = MappingProxyType(
    {name: PRESETS[f"mixer_{name.lower().replace('/', '')}"] for name in _NAMES}
    | {"toy": MixerConfig(img_size=12, patch_size=4, embed_dim=24, depth=1, tokens_mlp_dim=20, channels_mlp_dim=32)}
)
"""Sizes to compare at; the toy is for rehearsals."""


@dataclass(frozen=True)
class Contender:
    """One way to compute.

    Attributes:
        token_mlp: Backend of token mixing.
        channel_mlp: Backend of channel mixing.
        mode: ``torch.compile``'s mode; None for eager.
    """

    token_mlp: str
    channel_mlp: str
    mode: str | None = None


_MAX = "max-autotune-no-cudagraphs"
_BOTH = {name: Contender(name, name) for name in (REFERENCE, "unfused", "triton")}
_COMPILED = {f"{name} compiled": replace(_BOTH[name], mode="default") for name in (REFERENCE, "unfused")}
_MIXED = Contender("triton", "cublaslt")

CONTENDERS: Mapping[str, Mapping[str, Contender]] = MappingProxyType(
    {
        "token_mlp": _BOTH | _COMPILED,
        "channel_mlp": _BOTH | _COMPILED | {"cublaslt": Contender("triton", "cublaslt")},
        "block": _BOTH
        | _COMPILED
        | {
            "triton compiled": replace(_BOTH["triton"], mode="default"),
            "triton + cublaslt": _MIXED,
            "triton + cublaslt compiled": replace(_MIXED, mode="default"),
            "triton + unfused compiled": Contender("triton", "unfused", "default"),
        },
    }
)
"""By operation, then by name."""

MAX_AUTOTUNE = "reference max-autotune"
"""An extra contender for the variant that matters most: the compiler's search takes minutes."""


def contender(op: str, name: str) -> Contender:
    """Look a contender up."""
    return Contender(REFERENCE, REFERENCE, _MAX) if name == MAX_AUTOTUNE else CONTENDERS[op][name]


def widths(op: str, config: MixerConfig) -> tuple[int, int, int]:
    """Tokens, channels and hidden width of one branch."""
    hidden = config.tokens_mlp_dim if op == "token_mlp" else config.channels_mlp_dim
    return config.num_tokens, config.embed_dim, hidden


def bfloat16_setting(op: str, config: MixerConfig, images: int) -> Setting:
    """The problem that is timed: bfloat16 throughout, no stochastic depth."""
    tokens, channels, hidden = widths(op, config)
    return Setting(
        op=cast("Operation", op),
        tokens=tokens,
        channels=channels,
        hidden=hidden,
        images=images,
        numerics="bfloat16",
        stream=torch.bfloat16,
        act=config.act,
        keep=False,
        device=this_device(),
    )


@dataclass(frozen=True)
class Race:
    """One contender on one problem, on rotating inputs.

    Attributes:
        steps: The same work on different inputs.
        result: The first one's result.
        expected: What plain PyTorch makes of the same.
    """

    steps: list[Step]
    result: Tensor
    expected: Tensor


def prepare_race(op: str, config: MixerConfig, images: int, chosen: Contender, training: bool) -> Race:
    """Build the steps of a contender: forward, or forward and all gradients.

    Args:
        op: ``"token_mlp"``, ``"channel_mlp"`` or ``"block"``.
        config: Sizes.
        images: N.
        chosen: The contender.
        training: Whether gradients are computed.
    """
    call, plain, parameters = _block(config, chosen) if op == "block" else _branch(op, config, chosen)
    if chosen.mode is not None:
        call = _compiled(call, chosen.mode)
    setting = bfloat16_setting("token_mlp" if op == "block" else op, config, images)
    rounds = copies_for(images * config.num_tokens * config.embed_dim * 2)
    pairs = []
    for seed in range(rounds):
        branch, g = random_branch(setting, seed)
        pairs.append((branch.x.requires_grad_(training), g))
    leaves = [parameter.requires_grad_(training) for parameter in parameters]
    with torch.no_grad():
        expected = plain(pairs[0][0])
    with torch.set_grad_enabled(training):
        result = call(pairs[0][0]).detach()
    if training:
        return Race([_training_step(call, x, leaves, g) for x, g in pairs], result, expected)
    return Race([_forward_step(call, x) for x, _ in pairs], result, expected)


_Layer: TypeAlias = Callable[[Tensor], Tensor]
_Built: TypeAlias = tuple[_Layer, _Layer, Sequence[Tensor]]  # the contender, plain PyTorch, their parameters


def _branch(op: str, config: MixerConfig, chosen: Contender) -> _Built:
    setting = bfloat16_setting(op, config, images=1)
    parameters = random_branch(setting)[0][1:7]
    backend = chosen.token_mlp if op == "token_mlp" else chosen.channel_mlp
    plain = by_reference(setting)
    function = plain if backend == REFERENCE else by_backend(setting.op, setting.act, backend)
    return lambda x: function(Branch(x, *parameters, None)), lambda x: plain(Branch(x, *parameters, None)), parameters


def _block(config: MixerConfig, chosen: Contender) -> _Built:
    device = this_device()
    block = MixerBlock(config, device=device, dtype=torch.bfloat16)
    plain = MixerBlock(config, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in block.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * parameter[0].numel() ** -0.5 if parameter.ndim == 2 else 0.3 * noise)
        for norm in (block.norm1, block.norm2):
            norm.weight.add_(1.0)
    plain.load_state_dict(block.state_dict())
    plain.backends = dict.fromkeys(OPERATIONS, REFERENCE)
    block.backends = {"token_mlp": chosen.token_mlp, "channel_mlp": chosen.channel_mlp}
    return block, plain, list(block.parameters())


def _compiled(call: _Layer, mode: str) -> _Layer:
    """The call as one graph; a rehearsal traces it and leaves out the C++ compiler."""
    if interpreted():
        return torch.compile(call, fullgraph=True, dynamic=False, backend="aot_eager")
    return torch.compile(call, fullgraph=True, dynamic=False, mode=mode)


def _forward_step(call: _Layer, x: Tensor) -> Step:
    def step() -> None:
        with torch.no_grad():
            call(x)

    return step


def _training_step(call: _Layer, x: Tensor, leaves: Sequence[Tensor], g: Tensor) -> Step:
    return lambda: torch.autograd.grad(call(x), [x, *leaves], g)
