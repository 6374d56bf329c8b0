"""One file a rival. A new one needs nothing but its file, which defines ``CONTENDERS``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from mixerzoo.bench.race.terms import Contender


def contenders_of(module: str) -> dict[str, Contender]:
    """The contenders that a module defines, by name."""
    found: tuple[Contender, ...] = importlib.import_module(module).CONTENDERS
    return {contender.name: contender for contender in found}


def _find() -> dict[str, tuple[str, Contender]]:
    modules = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    found = [(module, contender) for module in modules for contender in contenders_of(module).values()]
    return {contender.name: (module, contender) for module, contender in sorted(found, key=lambda pair: pair[1].rank)}


CONTENDERS: Mapping[str, tuple[str, Contender]] = MappingProxyType(_find())
"""Every contender with the module it is in, by name, in the order of tables."""
