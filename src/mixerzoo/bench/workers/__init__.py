"""Work in processes of its own, which may die or hang without taking the run with them.

:mod:`mixerzoo.bench.workers.process` is the parent's side, :mod:`mixerzoo.bench.workers.serving` the worker's.
"""
