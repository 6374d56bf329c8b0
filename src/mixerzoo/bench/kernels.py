"""What the kernels take on cards that need not be there: compile them ahead of time and read the machine code.

``mixerzoo bench --suite kernels`` writes the table that docs/benchmarks/kernels.md holds.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import itertools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import TypeAlias

import torch

from mixerzoo.config import Gelu
from mixerzoo.errors import ConfigError

CAPABILITIES = {(8, 0): "A100", (8, 9): "RTX 4090, L4", (9, 0): "H100, H200", (10, 0): "B200", (12, 0): "RTX PRO 6000"}
"""Cards by compute capability, one example or two each."""

_MULTIPROCESSORS = 132

Job: TypeAlias = tuple[str, str, Gelu, bool, tuple[int, int]]
"""Variant, dtype, GELU flavour, whether with stochastic depth, and compute capability."""


@dataclass(frozen=True)
class Row:
    """One compiled kernel.

    Attributes:
        size: Variant whose sizes it has.
        kernel: What it does.
        tile: How it cuts its work.
        dtype: Type of activations and weights.
        act: GELU flavour.
        capability: Compute capability.
        registers: Registers a thread.
        spills: Bytes a thread spills.
        shared_memory: Bytes of shared memory a block.
        warp_group_mma: Warp-group (or tcgen05) MMA instructions.
    """

    size: str
    kernel: str
    tile: str
    dtype: str
    act: str
    capability: tuple[int, int]
    registers: int
    spills: int
    shared_memory: int
    warp_group_mma: int


def _compile(job: Job) -> list[Row]:
    """Every kernel of one variant on one card; runs in a process of its own."""
    from mixerzoo.kernels.catalogue import SIZES, channel_entries, token_entries
    from mixerzoo.kernels.inspection import resources
    from mixerzoo.kernels.launch import SHARED_MEMORY, Card

    name, dtype, act, keep, capability = job
    card = Card(capability, _MULTIPROCESSORS, SHARED_MEMORY[capability])
    arguments = (card, SIZES[name], getattr(torch, dtype), act, keep)
    return [
        Row(name, entry.kernel, entry.tile, dtype, act, capability, **asdict(resources(entry.launch, capability)))
        for entry in itertools.chain(token_entries(*arguments), channel_entries(*arguments))
    ]


def compile_all(jobs: list[Job], workers: int = 2) -> Iterator[Row]:
    """Compile every kernel for every job, in order.

    Args:
        jobs: What to compile.
        workers: Processes that compile at the same time.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(_compile, jobs):
            yield from rows


def report() -> str:
    """Compile every variant in bfloat16 for every card and lay the figures out as Markdown; takes some minutes.

    Raises:
        ConfigError: Triton is not installed, or interprets kernels in this process.
    """
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("The kernels are compiled by Triton, which is not installed (PyTorch for Linux brings it).")
    from mixerzoo.kernels.catalogue import SIZES

    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    jobs: list[Job] = [(name, "bfloat16", "tanh", False, capability) for name in SIZES for capability in CAPABILITIES]
    lines = [
        "# What the kernels take",
        "",
        f"Compiled ahead of time by Triton {importlib.metadata.version('triton')} on {date} with",
        "`mixerzoo bench --suite kernels`, bfloat16, tanh GELU; no card was needed, and nothing here is a time.",
        "Registers are a thread's (255 is the most there is), spills are bytes a thread keeps in local memory instead,",
        "shared memory is a block's. MMA counts warp-group (sm_90) and tcgen05 (sm_100) instructions in the code.",
    ]
    for (size, kernel), rows in itertools.groupby(
        sorted(compile_all(jobs), key=lambda row: (list(SIZES).index(row.size), row.kernel)),
        key=lambda row: (row.size, row.kernel),
    ):
        lines += ["", f"## {size}: {kernel}", "", "| card | tile | registers | spills | shared memory | MMA |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| sm_{row.capability[0]}{row.capability[1]} ({CAPABILITIES[row.capability]}) | {row.tile or '-'} "
            f"| {row.registers} | {row.spills} | {row.shared_memory:,} | {row.warp_group_mma} |"
            for row in rows
        ]
    return "\n".join(lines)
