"""The whole Mixer on x86 processors with AVX-512: C++ that is compiled once on the machine where it runs.

``mixer.cpp`` and its headers say how; :mod:`build` compiles, :mod:`packing` lays weights out, :mod:`library` calls.
"""
