"""The fastest form of a Mixer on the machine at hand."""

from mixerzoo.engine.optimize import load_optimized, optimize
from mixerzoo.engine.optimized import EngineReport, OptimizedMixer

__all__ = ["EngineReport", "OptimizedMixer", "load_optimized", "optimize"]
