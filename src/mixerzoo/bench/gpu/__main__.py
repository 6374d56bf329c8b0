"""``python -m mixerzoo.bench.gpu``: the GPU suite for a machine with a card and little else installed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from mixerzoo.bench.gpu.parts import run_part
from mixerzoo.bench.gpu.request import Part, Request
from mixerzoo.errors import MixerzooError


def main() -> None:
    """Run one part; exit status 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m mixerzoo.bench.gpu", description=__doc__)
    parser.add_argument("--part", choices=get_args(Part), required=True)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--match", default="")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    try:
        passed = run_part(Request(**vars(options)), lambda line: print(line, flush=True))  # noqa: T201
    except MixerzooError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
