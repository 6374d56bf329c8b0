"""Whether the engine's programs for CUDA are right on this card: whole models, captured, in every batch size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mixerzoo.bench.gpu.cases import Case
from mixerzoo.bench.gpu.checks import Check, relative_error
from mixerzoo.bench.gpu.guards import same_bits
from mixerzoo.bench.gpu.inputs import NUMERICS, this_device
from mixerzoo.bench.gpu.tolerances import MAX_DIFFERENCE, TOLERANCES
from mixerzoo.engine.fp8_reference import emulate
from mixerzoo.engine.optimize import optimize
from mixerzoo.engine.optimized import OptimizedMixer
from mixerzoo.model import Mixer

_THREADS = 4
_ROUNDS = 5


def engine_checks(case: Case) -> list[Check]:
    """All that is asked of a program.

    Args:
        case: ``program``, ``config`` (arguments of :class:`mixerzoo.Mixer`), ``images`` and ``numerics``.
    """
    device, dtype, program = this_device(), NUMERICS[case["numerics"]], case["program"]
    model = _random_model(case["config"]).to(device)
    quantize = "fp8" if program == "fp8" else None
    fast = optimize(model, dtype=dtype, quantize=quantize, program=program, max_batch_size=case["images"])  # type: ignore[arg-type]
    generator = torch.Generator(device).manual_seed(1)
    shape = (case["images"], model.config.in_chans, *model.config.image_hw)
    images = torch.randn(shape, generator=generator, device=device)
    expected = fast(images)
    checks = [
        *_errors(model, fast, images, case),
        Check("the same bits when repeated", same_bits(fast(images), expected)),
        _batch_sizes(fast, images, expected),
    ]
    if device.type != "cpu":
        checks.append(_threads(fast, images, expected))
    notes = [note for note in fast.report().notes if "could not be captured" in note]
    return [*checks, Check("captured", not notes, {"notes": notes})]


def _random_model(config: dict[str, object]) -> Mixer:
    """Every parameter random, of a size that keeps activations near one."""
    model, generator = Mixer(**config).eval(), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                noise *= parameter[0].numel() ** -0.5
            else:
                noise = 0.3 * noise + float("norm" in name and name.endswith("weight"))
            parameter.copy_(noise)
    return model


def _errors(model: Mixer, fast: OptimizedMixer, images: Tensor, case: Case) -> list[Check]:
    """Logits and features against float64, beside the model in the same dtype, or beside FP8's definition."""
    exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model).to(NUMERICS[case["numerics"]])
    low = next(plain.parameters()).dtype
    rivals: dict[str, Callable[[], Tensor]] = {
        "logits": lambda: plain(images.to(low)),
        "features": lambda: plain.forward_features(images.to(low)),
    }
    if case["program"] == "fp8":
        emulated = emulate(fast._tensors, fast.request)
        rivals = {"logits": lambda: emulated.logits(images)}
    checks = []
    with torch.inference_mode():
        for name, rival in rivals.items():
            right = exact(images.double()) if name == "logits" else exact.forward_features(images.double())
            ours = fast(images) if name == "logits" else fast.forward_features(images)
            theirs, error = relative_error(rival(), right), relative_error(ours, right)
            limit = TOLERANCES[case["numerics"]].limit(theirs)
            figures = {"error": error, "limit": limit, "beside": theirs}
            checks.append(Check(f"error {name}", error <= limit, figures))
    return checks


def _batch_sizes(fast: OptimizedMixer, images: Tensor, expected: Tensor) -> Check:
    """Each image gives the same in a batch of any size, as far as another order of sums allows."""
    errors = {count: relative_error(fast(images[:count]), expected[:count]) for count in range(1, len(images))}
    wrong = {count: error for count, error in errors.items() if not error <= MAX_DIFFERENCE}
    return Check("any number of images", not wrong, {"wrong": wrong, "largest": max(errors.values())})


def _threads(fast: OptimizedMixer, images: Tensor, expected: Tensor) -> Check:
    """Threads on streams of their own, each with images of its own, get the bits that they would get alone."""
    alone = [fast(images.roll(shift, 0)) for shift in range(_THREADS)]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def serve(shift: int) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            mine = images.roll(shift, 0)
            for _ in range(_ROUNDS):
                result = fast(mine)
                stream.synchronize()
                if not same_bits(result, alone[shift]):
                    wrong.append(shift)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(serve, range(_THREADS)))  # raises what one of them raised
    return Check(
        "the same bits from several threads", not wrong and same_bits(fast(images), expected), {"wrong": wrong}
    )
