"""ONNX Runtime on the CPU, from timm's model: float32, and its own static int8 (QDQ) of every matrix product."""

# mypy: disable-error-code="import-untyped,import-not-found"
# (the package has no types, and need not be installed)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixerzoo.bench.race.models import calibration_images, random_images, timm_model
from mixerzoo.bench.race.terms import Built, Contender, Task


def _export(task: Task) -> Path:
    path = task.folder / f"onnxruntime-{task.dtype}.onnx"
    images = random_images(task.model, task.batch_size, seed=0)
    torch.onnx.export(timm_model(task), (images,), path, input_names=["images"], dynamo=True, verbose=False)
    return path


def _quantise(exported: Path, task: Task) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(calibration_images(task))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared, quantised = exported.with_suffix(".prepared.onnx"), exported.with_suffix(".quantised.onnx")
    quant_pre_process(exported, prepared)
    quantize_static(
        prepared,
        quantised,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantised


def _build(task: Task) -> Built:
    import onnxruntime

    path = _export(task)
    path = _quantise(path, task) if task.dtype == "int8" else path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = session.run(None, {"images": images.numpy()})[0]
        return logits

    return Built(call, "CPUExecutionProvider" + (", static QDQ, the rest in fp32" if task.dtype == "int8" else ""))


CONTENDERS = (
    Contender(
        "onnxruntime",
        30,
        {"cpu": ("fp32", "int8")},
        _build,
        packages=("onnxruntime", "onnx", "onnxscript"),
        stand_in={"bf16": ("fp32", "ONNX Runtime has no bfloat16 products on the CPU and races in fp32")},
    ),
)
