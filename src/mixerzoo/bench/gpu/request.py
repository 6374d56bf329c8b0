"""What a user asks the GPU suite for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Part = Literal["correctness", "ops", "tiles", "b16", "variants", "latency", "fp8", "train"]
"""Whether operations are right and how fast they are, by contender and by tile; then whole models against timm's."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        part: What is run.
        out: Folder that receives ``gpu-PART.json`` (and, of operations, ``gpu-PART.jsonl``, a line a case).
        minutes: The whole run; no case starts in the last of them.
        record: Enter the card into the package's table.
        match: Run only the cases whose label, or the races whose title, contains this.
    """

    part: Part
    out: Path
    minutes: float = 8.0
    record: bool = False
    match: str = ""
