"""Compile a launch for a card that need not be there, and read what it takes off the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mixerzoo.errors import ConfigError
from mixerzoo.kernels.launch import Launch

_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        registers: Registers a thread.
        spills: Bytes a thread spills to local memory.
        shared_memory: Bytes of shared memory a block.
        warp_group_mma: Number of warp-group MMA instructions (Hopper) or tcgen05 MMA (Blackwell) in the machine code,
            of two-byte or FP8 operands.
    """

    registers: int
    spills: int
    shared_memory: int
    warp_group_mma: int


def _signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[object]]]]:
    """Triton's types, constants and divisibility, as its launcher would derive them from the arguments."""
    types, constants, attributes = {}, dict(launch.constants), {}
    for position, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if isinstance(value, Tensor):
            types[name] = _TYPES[value.dtype]
            attributes[position,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[name] = "fp32"
        elif isinstance(value, int):
            types[name] = "i32"
        else:
            types[name] = "constexpr"
            constants.setdefault(name, None)
    return types, constants, attributes


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Any:
    """Compile for a card of this capability; the launch's tensors may be on the meta device.

    Raises:
        ConfigError: Kernels are interpreted in this process, so that there is nothing to compile.
    """
    if triton.knobs.runtime.interpret:
        raise ConfigError("Kernels are interpreted in this process (TRITON_INTERPRET=1): compile them in another one.")
    types, constants, attributes = _signature(launch)
    return triton.compile(
        ASTSource(launch.kernel, types, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability[0] * 10 + capability[1], 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True},
    )


def resources(launch: Launch, capability: tuple[int, int]) -> Resources:
    """Compile, and read registers, spills, shared memory and warp-group MMA off the result.

    Raises:
        ConfigError: See :func:`compile_launch`.
    """
    compiled = compile_launch(launch, capability)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("-res-usage", path)
        code = _cuobjdump("-sass", path)
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", usage)
    if found is None:
        raise ConfigError(f"cuobjdump printed no resource usage for {launch.kernel.__name__}.")
    products = re.findall(r"\b(?:[HQ]GMMA|UTC[HQ]MMA)\b", code)
    return Resources(int(found[1]), int(found[2]), compiled.metadata.shared, len(products))


def _cuobjdump(option: str, path: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout  # noqa: S603
