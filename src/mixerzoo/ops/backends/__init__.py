"""One file a backend. A new one needs nothing but its file, which defines ``BACKEND``."""

from __future__ import annotations

import importlib
import pkgutil

from mixerzoo.ops.problem import Backend


def _find() -> dict[str, Backend]:
    found: list[Backend] = [
        importlib.import_module(f"{__name__}.{module.name}").BACKEND for module in pkgutil.iter_modules(__path__)
    ]
    return {backend.name: backend for backend in sorted(found, key=lambda backend: backend.rank)}


BACKENDS = _find()
"""Every backend by name, in the order in which the automatic choice tries them."""
