"""The programs, by name; each file of this folder defines one as ``PROGRAM``."""

from __future__ import annotations

import importlib
import pkgutil

from mixerzoo.engine.program import Program


def _found() -> dict[str, Program]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    programs: list[Program] = [module.PROGRAM for module in modules if hasattr(module, "PROGRAM")]
    return {program.name: program for program in sorted(programs, key=lambda p: p.rank)}


PROGRAMS: dict[str, Program] = _found()
"""In the order in which the automatic choice tries them."""
