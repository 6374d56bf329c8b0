"""Batches by way of captured graphs, with a stand-in for CUDA's: sizes, padding, threads, failure."""

import threading

import pytest
import torch

from mixerzoo.engine.graphs import OWN_SIZES, Captured, Graphs

CPU = torch.device("cpu")


class Recorder:
    """Captures by remembering the function, as a graph would; counts what it does."""

    def __init__(self, fail=False):
        self.sizes, self.fail = [], fail

    def __call__(self, function, example):
        if self.fail:
            raise RuntimeError("operation not permitted when stream is capturing\nand a second line")
        self.sizes.append(len(example))
        static, result = torch.full_like(example, float("nan")), function(example)

        def replay():
            result.copy_(function(static))

        return Captured(static, result, replay)


def double(images):
    return images.flatten(1).sum(1, keepdim=True) * 2.0


def graphs(capture, max_batch_size=None, notes=None):
    return Graphs(CPU, max_batch_size, ([] if notes is None else notes).append, capture)


def test_every_batch_size_is_right_and_few_are_captured():
    capture = Recorder()
    run = graphs(capture, max_batch_size=24)
    for count in [24, 7, *range(1, 25)]:
        images = torch.randn(count, 3, 2, 2)
        assert torch.equal(run(double, images), double(images))
    assert len(capture.sizes) == len(set(capture.sizes))
    assert {24, 7, 1, 2, 4, 8, 16} <= set(capture.sizes)
    assert len(capture.sizes) <= 5 + OWN_SIZES
    assert max(capture.sizes) == 24


def test_functions_have_graphs_of_their_own():
    capture = Recorder()
    run, images = graphs(capture), torch.randn(2, 3)
    for function in (double, torch.neg, double):
        assert torch.equal(run(function, images), function(images))
    assert capture.sizes == [2, 2]


def test_a_result_survives_the_next_call():
    run, images = graphs(Recorder()), torch.randn(2, 3)
    first = run(double, images)
    kept = first.clone()
    run(double, images + 1.0)
    assert torch.equal(first, kept)


def test_threads_get_their_own_results():
    run, wrong = graphs(Recorder()), []

    def serve(seed):
        generator = torch.Generator().manual_seed(seed)
        for count in (1, 3, 2, 5, 4) * 10:
            images = torch.randn(count, 6, generator=generator)
            if not torch.equal(run(double, images), double(images)):
                wrong.append(seed)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failed_capture_is_noted_and_kernels_are_launched():
    notes = []
    run, images = graphs(Recorder(fail=True), notes=notes), torch.randn(3, 4)
    for _ in range(2):
        assert torch.equal(run(double, images), double(images))
    (note,) = notes
    assert note == (
        "A batch of 3 could not be captured (operation not permitted when stream is capturing): kernels are launched "
        "one by one."
    )


def test_nothing_is_captured_without_cuda():
    run = Graphs(CPU, None, pytest.fail)
    images = torch.randn(3, 4)
    assert torch.equal(run(double, images), double(images))
    assert run.notes == ()
