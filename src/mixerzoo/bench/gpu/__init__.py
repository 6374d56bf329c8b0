"""The GPU suite: whether the fused operations are right on a card, and how fast each contender is there.

A parent process (:mod:`mixerzoo.bench.gpu.suite`) hands cases to worker processes one by one and keeps what comes back,
so that a kernel that takes its process down costs one case. Triton is imported by workers alone.
"""
