"""The whole MLP-Mixer: patch embedding, Mixer layers, head.

Source: Tolstikhin et al. 2021 (arXiv 2105.01601), section 2 and Figure 1; the official Flax code
(google-research/vision_transformer, ``vit_jax/models_mixer.py``). Parameter names and shapes are those of timm's
``MlpMixer``, so checkpoints load strictly in both directions.

Legend, used as suffixes: N images, S tokens (patches), C channels (``embed_dim``). One layer, on X of shape (S, C):

    U = X + W2 gelu(W1 LayerNorm(X) + b1) + b2        token mixing, shared by all channels
    Y = U + gelu(LayerNorm(U) W3 + b3) W4 + b4        channel mixing, shared by all tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import DropPath, lecun_normal_
from torch import Tensor, nn

from mixerzoo.config import Configured, Gelu, GlobalPool, MixerConfig, image_size
from mixerzoo.errors import InputSizeError
from mixerzoo.intermediates import IntermediateOutputs
from mixerzoo.ops.choice import AUTO, REFERENCE, check_backend
from mixerzoo.ops.layers import BackendReport, Layers, backend_of, explain, run_layers, summarise
from mixerzoo.ops.problem import OPERATIONS, Operation
from mixerzoo.resize import Resize, resize_module, resized_config


@torch.fx.wrap  # a leaf for symbolic tracing: the check compares concrete sizes
def _check_images(shape: torch.Size, in_chans: int, image_hw: tuple[int, int]) -> None:
    if len(shape) != 4 or shape[1] != in_chans or (shape[2], shape[3]) != image_hw:
        raise InputSizeError(
            f"The model takes images of shape (batch, {in_chans}, {image_hw[0]}, {image_hw[1]}) but got "
            f"{tuple(shape)}: resize them (mixerzoo.create_transform does), or the model (model.set_input_size)."
        )


class PatchEmbed(nn.Module):
    """Per-patch linear embedding, written as a convolution whose kernel equals its stride.

    Args:
        config: ``image_hw``, ``patch_size``, ``in_chans`` and ``embed_dim`` are used.
        device: Where parameters are created.
        dtype: Type of the parameters.
    """

    def __init__(
        self, config: MixerConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.image_hw = config.image_hw
        self.in_chans = config.in_chans
        self.proj = nn.Conv2d(
            config.in_chans, config.embed_dim, config.patch_size, config.patch_size, device=device, dtype=dtype
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, S, C), patches in raster order.

        Raises:
            InputSizeError: The images are not of the model's size or channels.
        """
        _check_images(images.shape, self.in_chans, self.image_hw)
        return self.proj(images).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis: (..., in_features) -> (..., in_features).

    Args:
        in_features: Width of input and output.
        hidden_features: Width between the two layers.
        act: GELU flavour, ``"tanh"`` or ``"erf"``.
        device: Where parameters are created.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act: Gelu,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features, device=device, dtype=dtype)
        self.act = nn.GELU(approximate="tanh" if act == "tanh" else "none")
        self.fc2 = nn.Linear(hidden_features, in_features, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to the last axis of ``x``."""
        return self.fc2(self.act(self.fc1(x)))


class MixerBlock(nn.Module):
    """One Mixer layer: token mixing, then channel mixing, each pre-norm and residual (paper, equation 1).

    Args:
        config: Widths, GELU flavour, LayerNorm eps and stochastic-depth scaling.
        drop_path_rate: This layer's stochastic-depth probability.
        device: Where parameters are created.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        config: MixerConfig,
        drop_path_rate: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        channels, eps = config.embed_dim, config.norm_eps
        self.backends: dict[Operation, str] = dict.fromkeys(OPERATIONS, AUTO)
        self.norm1 = nn.LayerNorm(channels, eps=eps, device=device, dtype=dtype)
        self.mlp_tokens = Mlp(config.num_tokens, config.tokens_mlp_dim, config.act, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path_rate, scale_by_keep=config.drop_path_rescale)
        self.norm2 = nn.LayerNorm(channels, eps=eps, device=device, dtype=dtype)
        self.mlp_channels = Mlp(channels, config.channels_mlp_dim, config.act, device=device, dtype=dtype)

    def forward(self, x_NSC: Tensor) -> Tensor:
        """(N, S, C) -> (N, S, C)."""
        backend = backend_of("token_mlp", x_NSC, self.layers("token_mlp"), self.backends["token_mlp"])
        if backend == REFERENCE:
            mixed_NCS = self.mlp_tokens(self.norm1(x_NSC).transpose(1, 2))
            x_NSC = x_NSC + self.drop_path(mixed_NCS.transpose(1, 2))
        else:
            x_NSC = run_layers("token_mlp", x_NSC, self.layers("token_mlp"), backend)
        backend = backend_of("channel_mlp", x_NSC, self.layers("channel_mlp"), self.backends["channel_mlp"])
        if backend == REFERENCE:
            return x_NSC + self.drop_path(self.mlp_channels(self.norm2(x_NSC)))
        return run_layers("channel_mlp", x_NSC, self.layers("channel_mlp"), backend)

    def layers(self, op: Operation) -> Layers:
        """The modules of one of the two branches."""
        norm, mlp = (self.norm1, self.mlp_tokens) if op == "token_mlp" else (self.norm2, self.mlp_channels)
        return Layers(norm, mlp, self.drop_path, Mlp)


class Mixer(Configured, IntermediateOutputs):
    """MLP-Mixer image classifier.

    The keyword arguments are the fields of :class:`MixerConfig`, which documents them; the defaults are Mixer-B/16.

    Args:
        device: Where parameters are created; ``"meta"`` creates none and spends no time on initialisation.
        dtype: Type of the parameters.

    Attributes:
        config: The validated configuration.
        num_features: C, width of the pooled features (timm's name).
        feature_info: One entry a layer: module name, channels, reduction in pixels (timm's convention).
        pretrained_cfg: Set by the factory: preprocessing and source of the weights (timm's convention).
        pretrained_head: Whether the head came with the weights that ``pretrained_cfg`` describes, so that its class
            names apply; a plain ``load_state_dict`` does not set it.

    Raises:
        ConfigError: See :class:`MixerConfig`.
    """

    pretrained_cfg: dict[str, Any]
    stem: PatchEmbed

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        tokens_mlp_dim: int = 384,
        channels_mlp_dim: int = 3072,
        act: Gelu = "tanh",
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_rescale: bool = False,
        global_pool: GlobalPool = "avg",
        head_bias: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        config = MixerConfig(
            img_size=image_size(img_size),
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            tokens_mlp_dim=tokens_mlp_dim,
            channels_mlp_dim=channels_mlp_dim,
            act=act,
            norm_eps=norm_eps,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            drop_path_rescale=drop_path_rescale,
            global_pool=global_pool,
            head_bias=head_bias,
        )
        self.config = config
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.grad_checkpointing = False
        self.pretrained_head = False
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size} for i in range(depth)
        ]
        self.stem = PatchEmbed(config, device=device, dtype=dtype)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]  # linear, 0 at the first layer
        self.blocks = nn.Sequential(*(MixerBlock(config, rate, device=device, dtype=dtype) for rate in rates))
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=norm_eps, device=device, dtype=dtype)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = (
            nn.Linear(embed_dim, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        )
        self.init_weights()

    @classmethod
    def from_config(
        cls, config: MixerConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Mixer:
        """Build the model that ``config`` describes."""
        return cls(**dataclasses.asdict(config), device=device, dtype=dtype)

    def init_weights(self) -> None:
        """Initialise every parameter as the official code does.

        Embedding and dense kernels LeCun normal truncated at two standard deviations (variance 1 / fan_in), biases 0,
        LayerNorms 1 and 0, the head's kernel 0 and its bias ``config.head_bias`` (Flax's defaults;
        ``vit_jax/models_mixer.py``). A model on the meta device has nothing to initialise.
        """
        if self.stem.proj.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self._init_head()

    def _init_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, self.config.head_bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes), or pooled features (N, C) without a head.

        Raises:
            InputSizeError: The images are not of the model's size or channels.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> normalised tokens (N, S, C)."""
        x_NSC = self.stem(images)
        for block in self.blocks:
            x_NSC = self._run_block(block, x_NSC)
        return self.norm(x_NSC)

    def forward_head(self, x_NSC: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens (N, S, C) and classify them.

        Args:
            x_NSC: Output of :meth:`forward_features`.
            pre_logits: Return the pooled features (N, C) instead of the logits (N, num_classes).
        """
        pooled = x_NSC.mean(dim=1) if self.global_pool == "avg" else x_NSC
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)

    def set_input_size(self, img_size: int | tuple[int, int], *, resize: Resize | None = None) -> None:
        """Carry the model to another image size, in place; everything but token mixing stays as it is.

        Token-mixing parameters are new objects afterwards: create optimisers and averages of weights later.

        Args:
            img_size: Height and width of the new input in pixels; one integer for a square image.
            resize: ``"tile"`` (paper, appendix C) mixes each tile of the image, as large as the old one, by its own
                copy of the weights: the token-mixing MLP becomes as many times wider. ``"interpolate"`` resamples the
                weights to any grid and keeps the width. None tiles where the sides are whole multiples.

        Raises:
            ConfigError: No size, or no whole multiple with ``resize="tile"``; the model is unchanged.
        """
        new = resized_config(self.config, dataclasses.replace(self.config, img_size=image_size(img_size)), resize)
        for block in self.blocks:
            resize_module(block.mlp_tokens, self.config.grid_size, new.grid_size, resize)  # type: ignore[arg-type]
        self.config, self.stem.image_hw = new, new.image_hw

    def get_classifier(self) -> nn.Module:
        """Return the head: ``nn.Linear``, or ``nn.Identity`` with 0 classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replace the head by a freshly initialised one (zeros), or by none with ``num_classes=0``.

        Args:
            num_classes: Outputs of the new head.
            global_pool: Change the pooling too; None keeps it.

        Raises:
            ConfigError: ``num_classes`` is negative or the pooling unknown.
        """
        pool = self.global_pool if global_pool is None else global_pool
        self.config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=pool)
        like = self.stem.proj.weight
        self.head = (
            nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        self.head.train(self.training)
        self.pretrained_head = False
        self._init_head()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Parameter groups for layer-wise learning rates (timm's convention); both granularities are the same."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Names exempt from weight decay beyond biases and norms: none, a Mixer has no position embedding."""
        return set()

    def set_backend(self, backend: str = AUTO, *, token_mlp: str | None = None, channel_mlp: str | None = None) -> None:
        """Choose how the two residual branches of every layer are computed; what they compute stays the same.

        Args:
            backend: ``"auto"`` takes the plain layers on the CPU, and on CUDA the fastest backend that passed the GPU
                suite on such a card; ``"reference"`` always takes the plain layers; ``"triton"``, ``"unfused"`` and
                ``"cublaslt"`` are used wherever they can run, and refused elsewhere when the model runs.
            token_mlp: Choose differently for token mixing.
            channel_mlp: Choose differently for channel mixing.

        Raises:
            BackendError: There is no backend of that name.
        """
        names: dict[Operation, str] = {
            "token_mlp": backend if token_mlp is None else token_mlp,
            "channel_mlp": backend if channel_mlp is None else channel_mlp,
        }
        chosen = {op: check_backend(op, names[op]) for op in OPERATIONS}
        for block in self.blocks:
            block.backends = dict(chosen)  # type: ignore[assignment]

    def explain_backend(self, images: Tensor) -> BackendReport:
        """Say which backend computes each operation for such images, and why a faster one does not.

        Call it as the model will run: under ``torch.no_grad()`` for inference, under autocast if that is used.

        Args:
            images: (N, in_chans, H, W), as for :meth:`forward`; the model is not run.

        Raises:
            InputSizeError: The images are not of the model's size or channels.
        """
        _check_images(images.shape, self.in_chans, self.config.image_hw)
        blocks: Iterable[MixerBlock] = self.blocks  # type: ignore[assignment]
        chosen = {op: [explain(op, block.layers(op), block.backends[op]) for block in blocks] for op in OPERATIONS}
        return BackendReport(**{op: summarise(choices) for op, choices in chosen.items()})

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable
