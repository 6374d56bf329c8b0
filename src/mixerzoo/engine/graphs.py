"""CUDA graphs of a function of a batch of images: one launch instead of a hundred, for every batch size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[[Tensor], Tensor]
"""From images (N, ...) to a result (N, ...), image by image: what one of them gives does not depend on the others."""

OWN_SIZES = 4
"""So many batch sizes beside powers of two get a graph: a program mostly runs at one or two, and a ragged rest."""


class Captured(NamedTuple):
    """A function that was captured at one batch size.

    Attributes:
        images: Read by every replay.
        result: Written by every replay.
        replay: Starts it on the current stream.
    """

    images: Tensor
    result: Tensor
    replay: Callable[[], object]


class Graphs:
    """Calls functions of images through graphs that are captured when a batch size first needs them.

    Powers of two, the largest size that the caller announces and the first few others get graphs; any other batch is
    padded to the smallest of those that holds it. May be called from several threads: replays go one after the
    other, in the order of the calls, on whichever streams; each result is a copy of the caller's own.

    Args:
        device: Where the functions run; on anything but CUDA they are simply called.
        max_batch_size: Images at most in one call; None if unknown.
        note: Receives a sentence if capturing fails; from then on functions are simply called.
        capture: From a function and images to the function captured at that size; None for CUDA's own.
    """

    def __init__(
        self,
        device: torch.device,
        max_batch_size: int | None,
        note: Callable[[str], object],
        capture: Callable[[Function, Tensor], Captured] | None = None,
    ):
        self._capture, self._device = capture, device
        self._order: torch.cuda.Event | None = None
        if capture is None and device.type == "cuda":
            self._capture = CudaCapture(device)
            self._order = torch.cuda.Event()  # type: ignore[no-untyped-call]
        how = "padded to a few batch sizes, each a CUDA graph, captured when it is first needed"
        self.notes: tuple[str, ...] = (f"Batches are {how}.",) if self._capture else ()
        self._note = note
        self._captured: dict[tuple[Function, int], Captured] = {}
        self._sizes: set[int] = set() if max_batch_size is None else {max_batch_size}
        self._lock = threading.Lock()

    def __call__(self, function: Function, images: Tensor) -> Tensor:
        """``function(images)``."""
        with self._lock, torch.inference_mode():
            captured = self._find(function, images)
            if captured is not None:
                return self._replay(captured, images)
        return function(images)

    def _find(self, function: Function, images: Tensor) -> Captured | None:
        """The graph for a batch, captured now if it does not exist; None where that fails."""
        if self._capture is None:
            return None
        size = self._bucket(images.shape[0])
        if (function, size) not in self._captured:
            example = images.new_zeros(size, *images.shape[1:])
            try:
                self._captured[function, size] = self._capture(function, example)
            except RuntimeError as error:  # CUDA's errors, and running out of memory
                self._capture = None
                self._captured.clear()
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self._note(f"A batch of {size} could not be captured ({reason}): kernels are launched one by one.")
                return None
        return self._captured[function, size]

    def _bucket(self, count: int) -> int:
        """The size to which a batch is padded."""
        power = 1 << (count - 1).bit_length()
        if power != count and len(self._sizes) < OWN_SIZES:
            self._sizes.add(count)
        return min([power, *(size for size in self._sizes if size >= count)])

    def _replay(self, captured: Captured, images: Tensor) -> Tensor:
        """Replay on the current stream, behind whatever was replayed last on any other."""
        if self._order is not None:
            self._order.wait(torch.cuda.current_stream(self._device))
        captured.images[: images.shape[0]].copy_(images)  # older images may follow: nobody reads what becomes of them
        captured.replay()
        result = captured.result[: images.shape[0]].clone()
        if self._order is not None:
            self._order.record(torch.cuda.current_stream(self._device))
        return result


class CudaCapture:
    """Captures functions as CUDA graphs that share one memory pool, because they are never replayed at the same time.

    Args:
        device: The CUDA device.
    """

    _one_at_a_time = threading.Lock()  # a process may capture one graph at a time, whoever asks

    def __init__(self, device: torch.device):
        self._device = device
        self._pool: Any = None
        self._stream: Any = None  # graphs that share a pool are captured on the same stream

    def __call__(self, function: Function, example: Tensor) -> Captured:
        """Run once on the stream of captures, so that everything is compiled, loaded and tuned, then capture."""
        with self._one_at_a_time, torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function(example)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate or synchronise meanwhile: only this one must not.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function(example)
            self._pool = graph.pool()
            return Captured(example, result, graph.replay)
