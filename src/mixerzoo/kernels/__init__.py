"""Triton kernels: tensors in, tensors out. Imported only by the backend that runs them.

Each kernel has a function that describes its launch (:class:`mixerzoo.kernels.launch.Launch`); the same description
runs it, interprets it and compiles it ahead of time for a card that is not there.
"""
