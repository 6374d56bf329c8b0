"""What can be computed once instead of in every pass, exactly.

    U = X + W2 gelu(W1 (norm(X) * gamma1 + beta1) + b1) + b2
    Y = U + gelu(W3 (norm(U) * gamma2 + beta2) + b3) + b4        norm: subtract the mean, divide by the deviation

- ``gamma2`` and ``beta2`` run over the channels that W3 contracts: ``W3 diag(gamma2)`` and ``b3 + W3 beta2`` replace
  them. So do the final LayerNorm's in the head, because the mean over tokens commutes with both.
- ``b2`` adds one number to all channels of a token. Every LayerNorm removes it and the residual stream carries it
  along, so nothing behind the final LayerNorm depends on it: it is left out. Outputs of single layers do change.
- ``gamma1`` and ``beta1`` run over channels and W1 contracts tokens: they stay.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mixerzoo.config import MixerConfig
from mixerzoo.errors import EngineError
from mixerzoo.model import Mixer


class FoldedLayer(NamedTuple):
    """The tensors of one Mixer layer.

    Attributes:
        gamma1: Scale of the LayerNorm before token mixing (C,).
        beta1: Its shift (C,).
        w1: First token-mixing weight (H, S).
        b1: Its bias (H,).
        w2: Second token-mixing weight (S, H); its bias is left out.
        w3: First channel-mixing weight (D, C), with its LayerNorm's scale.
        b3: Its bias (D,), with its LayerNorm's shift.
        w4: Second channel-mixing weight (C, D).
        b4: Its bias (C,).
    """

    gamma1: Tensor
    beta1: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    w3: Tensor
    b3: Tensor
    w4: Tensor
    b4: Tensor


class FoldedMixer(NamedTuple):
    """A Mixer with everything folded; float64 for a float64 model, else float32.

    Attributes:
        config: Sizes and numerics.
        stem_weight: Patch embedding (C, in_chans * patch * patch).
        stem_bias: Its bias (C,).
        layers: One entry a layer.
        norm_weight: The final LayerNorm's scale (C,), for features.
        norm_bias: Its shift (C,).
        head_weight: Head with the final LayerNorm's scale (classes, C); None without a head.
        head_bias: Its bias (classes,), with the final LayerNorm's shift; None without a head.
        plain_head_weight: Head as the model has it (classes, C), for features; None without a head.
        plain_head_bias: Its bias (classes,); None without a head.
    """

    config: MixerConfig
    stem_weight: Tensor
    stem_bias: Tensor
    layers: list[FoldedLayer]
    norm_weight: Tensor
    norm_bias: Tensor
    head_weight: Tensor | None
    head_bias: Tensor | None
    plain_head_weight: Tensor | None
    plain_head_bias: Tensor | None


def fold(model: Mixer) -> FoldedMixer:
    """Fold a model, in float64 on the CPU; the model is left as it is.

    Raises:
        EngineError: A layer of the model was changed, replaced, wrapped or is watched by a hook, or has no storage.
    """
    _check_plain(model)
    keep = torch.float64 if model.stem.proj.weight.dtype == torch.float64 else torch.float32
    stem: Any = model.stem.proj
    norm: Any = model.norm
    heads: tuple[Tensor | None, ...] = (None, None, None, None)
    if isinstance(model.head, nn.Linear):
        folded = _fold_norm(model.head, norm)
        heads = (*folded, _exact(model.head.weight), _exact(model.head.bias))
    return FoldedMixer(
        model.config,
        _exact(stem.weight).flatten(1).to(keep),
        _exact(stem.bias).to(keep),
        [FoldedLayer(*(tensor.to(keep) for tensor in _fold_layer(block))) for block in model.blocks],
        _exact(norm.weight).to(keep),
        _exact(norm.bias).to(keep),
        *(None if tensor is None else tensor.to(keep) for tensor in heads),
    )


def _exact(tensor: Tensor) -> Tensor:
    """A parameter's values, where and as folding computes."""
    return tensor.detach().cpu().double()


def _fold_norm(linear: nn.Linear, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``linear(norm(x))`` for an ``x`` that is normalised without scale and shift."""
    weight = _exact(linear.weight)
    return weight * _exact(norm.weight), _exact(linear.bias) + weight @ _exact(norm.bias)


def _fold_layer(block: Any) -> FoldedLayer:
    tokens, channels = block.mlp_tokens, block.mlp_channels
    w3, b3 = _fold_norm(channels.fc1, block.norm2)
    return FoldedLayer(
        _exact(block.norm1.weight),
        _exact(block.norm1.bias),
        _exact(tokens.fc1.weight),
        _exact(tokens.fc1.bias),
        _exact(tokens.fc2.weight),
        w3,
        b3,
        _exact(channels.fc2.weight),
        _exact(channels.fc2.bias),
    )


_FUNCTION = (
    "approximate",
    "eps",
    "normalized_shape",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
"""What decides what a layer computes, beside its class and its parameters."""


def _check_plain(model: Mixer) -> None:
    """Refuse a model that is not, module by module, what its configuration describes."""
    plain = dict(Mixer.from_config(model.config, device="meta").named_modules())
    found = dict(model.named_modules())
    for name in [*plain, *(set(found) - set(plain))]:
        changed = _change(plain.get(name), found.get(name))
        if changed:
            raise EngineError(
                f"The model cannot be optimized: {name or 'the model itself'} {changed}, and folding reads the layers "
                "of an unchanged Mixer. Undo the change, or use the model as it is."
            )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise EngineError("The model has no weights (it is on the meta device): load them before mixerzoo.optimize.")


def _change(plain: nn.Module | None, found: nn.Module | None) -> str | None:
    """How a module differs from the one that the configuration describes; None where it does not."""
    if found is None:
        return "is missing"
    if plain is None:
        return "was added"
    if type(found) is not type(plain):
        return f"is a {type(found).__name__}"
    if found._forward_hooks or found._forward_pre_hooks:
        return "is watched by a hook"
    if "forward" in vars(found):
        return "has another forward"
    if _shapes(found) != _shapes(plain):
        return "has parameters of other sizes than the model's configuration"
    different = [name for name in _FUNCTION if getattr(found, name, None) != getattr(plain, name, None)]
    return f"has another {different[0]}" if different else None


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}


def normalise(x_NSC: Tensor, eps: float) -> Tensor:
    """LayerNorm without scale and shift, over the last axis."""
    return F.layer_norm(x_NSC, x_NSC.shape[-1:], eps=eps)


def gelu(x: Tensor, config: MixerConfig) -> Tensor:
    """GELU of the model's flavour."""
    return F.gelu(x, approximate="tanh" if config.act == "tanh" else "none")
