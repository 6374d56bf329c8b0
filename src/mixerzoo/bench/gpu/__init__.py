"""The GPU suite: whether the fused operations are right on a card, and how fast each contender is there.

:mod:`mixerzoo.bench.gpu.parts` has every part of it; those about whole models are races (:mod:`mixerzoo.bench.race`).

A parent process (:mod:`mixerzoo.bench.gpu.suite`) hands cases to worker processes one by one and keeps what comes back,
so that a kernel that takes its process down costs one case. Triton is imported by workers alone.
"""
