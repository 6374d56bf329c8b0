"""The sizes and numerics of a Mixer, and the named presets.

Legend: S tokens (patches), C channels (``embed_dim``), D_S hidden width of the token-mixing MLP, D_C hidden width
of the channel-mixing MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from mixerzoo.checks import check_choice, check_integer, check_number
from mixerzoo.errors import ConfigError

Gelu = Literal["tanh", "erf"]
GlobalPool = Literal["avg", ""]


@dataclass(frozen=True)
class MixerConfig:
    """Everything that determines a Mixer's shapes and its function.

    The defaults are Mixer-B/16 of Tolstikhin et al. 2021 (arXiv 2105.01601, Table 1). Fields are the keyword
    arguments of :class:`mixerzoo.Mixer`, one to one.

    Attributes:
        img_size: Height and width of the input in pixels; one integer for a square image.
        patch_size: Side of a square patch in pixels. The grid has ``floor(size / patch_size)`` patches a side;
            pixels beyond the last whole patch are ignored.
        in_chans: Channels of the input image.
        num_classes: Outputs of the linear head; 0 leaves the head out.
        embed_dim: C, channels of a token.
        depth: Number of Mixer layers.
        tokens_mlp_dim: D_S, hidden width of the MLP across tokens.
        channels_mlp_dim: D_C, hidden width of the MLP across channels.
        act: GELU flavour. ``"tanh"`` is the approximation that the official Flax code uses, ``"erf"`` the exact
            function that timm uses. It is a property of a checkpoint: outputs differ by about 1e-4.
        norm_eps: Added to the variance in every LayerNorm (Flax and timm: 1e-6).
        drop_rate: Dropout probability before the head.
        drop_path_rate: Stochastic-depth probability of the last layer; it grows linearly from 0 at the first layer,
            with an independent draw per sample and branch (big_vision).
        drop_path_rescale: Whether a surviving branch is divided by its survival probability. big_vision does not
            (False), timm does (True).
        global_pool: ``"avg"`` averages the tokens before the head, ``""`` applies the head to every token.
        head_bias: Initial value of the head's bias (big_vision's sigmoid loss starts at -6.9).

    Raises:
        ConfigError: A size is not a positive integer, a rate is outside [0, 1), or a flavour is unknown.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    tokens_mlp_dim: int = 384
    channels_mlp_dim: int = 3072
    act: Gelu = "tanh"
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_path_rescale: bool = False
    global_pool: GlobalPool = "avg"
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        """Validate every field once."""
        for name in ("patch_size", "in_chans", "embed_dim", "depth", "tokens_mlp_dim", "channels_mlp_dim"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("num_classes", self.num_classes, minimum=0)
        for name in ("drop_rate", "drop_path_rate"):
            check_number(name, getattr(self, name), minimum=0.0, below=1.0)
        check_number("norm_eps", self.norm_eps, above=0.0)
        check_number("head_bias", self.head_bias)
        if not isinstance(self.drop_path_rescale, bool):
            raise ConfigError(f"drop_path_rescale={self.drop_path_rescale!r} must be True or False.")
        check_choice("act", self.act, get_args(Gelu))
        check_choice("global_pool", self.global_pool, get_args(GlobalPool))
        self._check_image_size()

    def _check_image_size(self) -> None:
        sides = self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)
        if len(sides) != 2:
            raise ConfigError(f"img_size={self.img_size!r} must be one integer or a (height, width) pair.")
        for side in sides:
            check_integer("img_size", side, minimum=1)
            if side < self.patch_size:
                raise ConfigError(
                    f"img_size={self.img_size!r} is smaller than one patch of {self.patch_size} pixels: give an image "
                    f"of at least {self.patch_size} pixels a side, or a smaller patch_size."
                )

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        if isinstance(self.img_size, int):
            return self.img_size, self.img_size
        height, width = self.img_size
        return height, width

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches down and across: ``floor(size / patch_size)``."""
        height, width = self.image_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """S, the number of patches."""
        rows, columns = self.grid_size
        return rows * columns

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, head included."""
        tokens, channels = self.num_tokens, self.embed_dim
        stem = channels * (self.in_chans * self.patch_size**2 + 1)
        token_mixing = self.tokens_mlp_dim * (2 * tokens + 1) + tokens
        channel_mixing = self.channels_mlp_dim * (2 * channels + 1) + channels
        norms = 2 * channels * (2 * self.depth + 1)
        return stem + self.depth * (token_mixing + channel_mixing) + norms + self.num_classes * (channels + 1)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the matrix products for one image."""
        tokens, channels = self.num_tokens, self.embed_dim
        stem = tokens * channels * self.in_chans * self.patch_size**2
        token_mixing = 2 * channels * tokens * self.tokens_mlp_dim
        channel_mixing = 2 * tokens * channels * self.channels_mlp_dim
        head = channels * self.num_classes * (1 if self.global_pool else tokens)
        return stem + self.depth * (token_mixing + channel_mixing) + head


class Configured:
    """What callers ask a model for by timm's names, read off its configuration."""

    config: MixerConfig

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without one."""
        return self.config.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the input image."""
        return self.config.in_chans

    @property
    def global_pool(self) -> GlobalPool:
        """How tokens are pooled before the head: ``"avg"``, or ``""`` for not at all."""
        return self.config.global_pool


def image_size(size: object) -> int | tuple[int, int]:
    """The one spelling of an image size: an integer for a square, else a (height, width) tuple."""
    if isinstance(size, list | tuple) and len(size) == 2:
        height, width = size
        return height if height == width else (height, width)
    return size  # type: ignore[return-value]  # MixerConfig refuses what is no integer


def _preset(size: Literal["s", "b", "l", "h"], patch_size: int) -> MixerConfig:
    """One row of Table 1 of the paper: layers, C, D_S, D_C by size; the patch is free."""
    depth, channels = {"s": (8, 512), "b": (12, 768), "l": (24, 1024), "h": (32, 1280)}[size]
    return MixerConfig(
        patch_size=patch_size,
        embed_dim=channels,
        depth=depth,
        tokens_mlp_dim=channels // 2,
        channels_mlp_dim=channels * 4,
    )


PRESETS: Mapping[str, MixerConfig] = MappingProxyType(
    {
        "mixer_s32": _preset("s", 32),
        "mixer_s16": _preset("s", 16),
        "mixer_s8": _preset("s", 8),
        "mixer_b32": _preset("b", 32),
        "mixer_b16": _preset("b", 16),
        "mixer_l32": _preset("l", 32),
        "mixer_l16": _preset("l", 16),
        "mixer_h14": _preset("h", 14),
        "mixer_ti4_32": MixerConfig(
            img_size=32,
            patch_size=4,
            num_classes=10,
            embed_dim=128,
            depth=8,
            tokens_mlp_dim=64,
            channels_mlp_dim=512,
        ),
    }
)
"""Every variant at its native image size: the paper's eight, and the small one whose weights ship with the package."""
