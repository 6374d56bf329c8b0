"""``optimize``: any Mixer into the fastest form that its machine allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mixerzoo.engine.artefact import Artefact, read
from mixerzoo.engine.folding import fold
from mixerzoo.engine.optimized import OptimizedMixer
from mixerzoo.engine.program import Program, Quantisation, Request, make_request
from mixerzoo.engine.programs import PROGRAMS
from mixerzoo.errors import ConfigError, EngineError, did_you_mean
from mixerzoo.model import Mixer

AUTO = "auto"


def optimize(
    model: nn.Module,
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantize: Quantisation | None = None,
    compile: bool = True,
    max_batch_size: int | None = None,
    device: torch.device | str | None = None,
    calibration: Tensor | None = None,
    program: str = AUTO,
) -> OptimizedMixer:
    """Turn a Mixer into the fastest form that a device allows, for inference.

    Constants are folded in float64 (see :mod:`mixerzoo.engine.folding`), weights are packed for the device, and the
    fastest program that can serve the request runs them; ``print(fast.report())`` says which, and why no other. The
    model is left as it is, and later changes to it do not reach the result.

    Args:
        model: A Mixer with weights; it may be on any device.
        dtype: Type in which matrix products run that are not quantised.
        quantize: ``"int8"`` or ``"fp8"``: quantise weights, with a scale for each output, and activations, with scales
            computed as they appear (int8) or known from LayerNorm's bound (FP8). None for not at all.
        compile: Whether code may be generated and compiled, by ``torch.compile`` or the machine's C++ compiler.
        max_batch_size: Images at most in one pass; larger batches are cut into pieces. None for no limit.
        device: Where the result runs; None for the model's device.
        calibration: Images (N, in_chans, H, W) as the model takes them, on which agreement with the model is measured
            for the report. No program needs them for its scales.
        program: Run this program instead of the fastest.

    Returns:
        A module without parameters, from images to the model's outputs in float32 (float64 if ``dtype`` is).

    Raises:
        EngineError: The model is no Mixer or was changed in a way that folding does not see, or nothing can serve the
            request.
        ConfigError: An argument is of no known value.
    """
    if not isinstance(model, Mixer):
        raise EngineError(
            f"Only a mixerzoo.Mixer can be optimized, and this is a {type(model).__name__}: build one with "
            "mixerzoo.create_model (without features_only)."
        )
    mine = model.stem.proj.weight.device
    if device is None and mine.type == "meta":
        device = "cpu"  # folding says what is wrong with such a model
    request = make_request(model.config, mine if device is None else device, dtype, quantize, compile, max_batch_size)
    chosen, passed_over = choose(request, program)
    images = None if calibration is None else _checked(calibration, request)
    tensors = chosen.pack(fold(model), request)
    cfg = {name: value for name, value in (getattr(model, "pretrained_cfg", None) or {}).items() if _is_data(value)}
    artefact = Artefact(chosen.name, request, tensors, passed_over, cfg, model.pretrained_head)
    fast = OptimizedMixer(artefact)
    if images is not None:
        fast.measure_agreement(model, images)
    return fast


def load_optimized(folder: str | Path, *, trusted: bool = False) -> OptimizedMixer:
    """Start an optimized model from a folder that its ``save`` wrote, on a machine like the one that wrote it.

    Args:
        folder: The folder.
        trusted: The folder is yours: run the compiled code in it. Otherwise only its tensors are read, and what has
            to be compiled is compiled again.

    Raises:
        EngineError: The folder is missing or damaged, or its program cannot run here.
    """
    artefact = read(Path(folder), trusted)
    if artefact.program not in PROGRAMS:
        raise EngineError(f"{folder} is for the program {artefact.program!r}, which this version of mixerzoo lacks.")
    program, request = PROGRAMS[artefact.program], artefact.request
    obstacle = program.obstacle(request)
    if obstacle:
        raise EngineError(f"{folder} cannot run here: {obstacle}. Optimize the model on this machine.")
    deepest = any(name.startswith(f"layers.{request.config.depth - 1}.") for name in artefact.tensors)
    if not deepest or _layout(artefact.tensors) != _expected_layout(program, request):
        raise EngineError(
            f"{folder} is damaged (its tensors are not those of its configuration): optimize the model again."
        )
    return OptimizedMixer(artefact)


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _expected_layout(program: Program, request: Request) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What the program packs from such a model, computed without storage: compiled code trusts sizes."""
    with FakeTensorMode():
        folded = fold(Mixer.from_config(request.config))
        return _layout(program.pack(folded, request))


def choose(request: Request, program: str = AUTO) -> tuple[Program, dict[str, str]]:
    """The program for a request, and why each that was tried before does not run.

    Raises:
        EngineError: There is no program of that name, or none can serve the request.
    """
    if program != AUTO:
        if program not in PROGRAMS:
            known = ", ".join(map(repr, (AUTO, *PROGRAMS)))
            raise EngineError(f"{program!r} is no program: use one of {known}.{did_you_mean(program, PROGRAMS)}")
        obstacle = PROGRAMS[program].obstacle(request)
        if obstacle:
            raise EngineError(f"The program {program!r} cannot run this: {obstacle}. Leave program='auto'.")
        return PROGRAMS[program], {}
    passed_over: dict[str, str] = {}
    reserved: list[Program] = []
    for candidate in PROGRAMS.values():
        obstacle = candidate.obstacle(request)
        reason = obstacle or candidate.reservation(request)
        if reason is None:
            return candidate, passed_over
        passed_over[candidate.name] = reason
        reserved += [] if obstacle else [candidate]
    if reserved and request.device.type == "cuda":  # nothing else computes it; the reason stays in the report
        return reserved[0], passed_over
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise EngineError(f"Nothing can run quantize={request.quantize!r} on {request.device}. {reasons}.")


def _is_data(value: object) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _checked(calibration: Tensor, request: Request) -> Tensor:
    expected = (request.config.in_chans, *request.config.image_hw)
    if calibration.dim() != 4 or tuple(calibration.shape[1:]) != expected or not len(calibration):
        raise ConfigError(
            f"calibration={tuple(calibration.shape)} must be images of shape (N, {', '.join(map(str, expected))}), "
            "prepared as the model takes them (mixerzoo.create_transform)."
        )
    return calibration.to(request.device, request.precise)
