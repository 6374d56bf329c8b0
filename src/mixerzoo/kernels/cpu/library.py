"""Calling the compiled forward pass."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from mixerzoo.config import MixerConfig
from mixerzoo.kernels.cpu.build import library
from mixerzoo.kernels.cpu.gelu_table import LIMIT, gelu_table, pieces_per_unit
from mixerzoo.kernels.cpu.packing import Format

AT_ONCE = 256
"""Images that go through the layers together; more gain nothing and need memory."""


class _Gelu(ctypes.Structure):
    _fields_ = (("table", ctypes.c_float * 48), ("pieces_per_unit", ctypes.c_float), ("limit", ctypes.c_float))


class _Weights(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("words", "bias", "scale", "offset"))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        *((name, _Weights) for name in ("w1", "w2", "w3", "w4")),
    )


_SIZES = ("in_chans", "height", "width", "patch", "tokens", "channels", "tokens_hidden", "channels_hidden", "depth")


class _Sizes(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int) for name in _SIZES), ("eps", ctypes.c_float))


class _Model(ctypes.Structure):
    _fields_ = (
        ("sizes", _Sizes),
        ("gelu", _Gelu),
        ("stem", _Weights),
        ("layers", ctypes.POINTER(_Layer)),
    )


class CompiledMixer:
    """A Mixer without its head whose packed weights the compiled code reads where they lie.

    Args:
        config: Sizes and numerics.
        tensors: ``stem.*``, and of every layer ``layers.N.gamma``, ``.beta``, ``.w1.*`` to ``.w4.*``, as
            :func:`mixerzoo.kernels.cpu.packing.pack` makes them; they must not change or move.
        number: Number format of the products.

    Raises:
        BuildError: The code cannot be compiled here.
    """

    def __init__(self, config: MixerConfig, tensors: Mapping[str, Tensor], number: Format):
        self._keep = dict(tensors)  # the addresses below are theirs
        self._config = config
        self._layers = (_Layer * config.depth)(*(self._layer(i) for i in range(config.depth)))
        height, width = config.image_hw
        sizes = _Sizes(
            config.in_chans,
            height,
            width,
            config.patch_size,
            config.num_tokens,
            config.embed_dim,
            config.tokens_mlp_dim,
            config.channels_mlp_dim,
            config.depth,
            config.norm_eps,
        )
        gelu = _Gelu((ctypes.c_float * 48)(*gelu_table(config.act).flatten().tolist()), pieces_per_unit(), LIMIT)
        self._model = _Model(sizes, gelu, self._weights("stem"), self._layers)
        self._run = library(number).mixer_forward
        self._run.argtypes = (*[ctypes.c_void_p] * 2, ctypes.c_int, *[ctypes.c_void_p] * 2, ctypes.c_int)
        self._run.restype = ctypes.c_bool

    @torch.compiler.disable
    def __call__(self, images: Tensor, *, pooled: bool) -> Tensor:
        """Images (N, in_chans, H, W) -> tokens (N, S, C), or normalised and averaged (N, C); all float32.

        Args:
            images: At least one image, contiguous, on the CPU.
            pooled: Normalise without scale and shift and average over the tokens.

        Raises:
            MemoryError: There is not enough memory.
        """
        config, count = self._config, len(images)
        expected = (count, config.in_chans, *config.image_hw)
        assert images.shape == expected, "the compiled code trusts sizes"
        assert images.dtype == torch.float32
        assert images.device.type == "cpu"
        images = images.resolve_conj().resolve_neg().contiguous()
        empty = functools.partial(torch.empty, dtype=torch.float32, device="cpu")
        at_once = min(count, AT_ONCE) if pooled else count
        tokens = empty((at_once, config.num_tokens, config.embed_dim))
        features = empty((count if pooled else 0, config.embed_dim))
        for first in range(0, count, AT_ONCE):
            piece = images[first : first + AT_ONCE]
            done = self._run(
                ctypes.addressof(self._model),
                piece.data_ptr(),
                len(piece),
                tokens[0 if pooled else first].data_ptr(),
                features[first].data_ptr() if pooled else None,
                torch.get_num_threads(),
            )
            if not done:
                raise MemoryError(f"There is not enough memory for {len(piece)} images at once.")
        return features if pooled else tokens

    def _layer(self, i: int) -> _Layer:
        address = {name: self._keep[f"layers.{i}.{name}"].data_ptr() for name in ("gamma", "beta")}
        return _Layer(address["gamma"], address["beta"], *(self._weights(f"layers.{i}.w{j}") for j in (1, 2, 3, 4)))

    def _weights(self, name: str) -> _Weights:
        fields = (self._keep.get(f"{name}.{field}") for field in ("words", "bias", "scale", "offset"))
        return _Weights(*(None if tensor is None else tensor.data_ptr() for tensor in fields))
