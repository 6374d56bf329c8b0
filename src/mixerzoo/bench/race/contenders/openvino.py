"""OpenVINO on the CPU, from timm's model: float32, bfloat16, and int8 by NNCF with the rest in bfloat16."""

# mypy: disable-error-code="import-untyped,import-not-found"
# (the package has no types, and need not be installed)

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mixerzoo.bench.race.models import calibration_images, timm_model
from mixerzoo.bench.race.terms import Built, Contender, Task


def _build(task: Task) -> Built:
    import openvino

    batches = calibration_images(task)
    shape = tuple(batches[0].shape)
    model = openvino.convert_model(timm_model(task), example_input=batches[0], input=[shape])
    if task.dtype == "int8":
        import nncf

        model = nncf.quantize(model, nncf.Dataset([batch.numpy() for batch in batches]), subset_size=len(batches))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on all threads
        "INFERENCE_NUM_THREADS": task.threads,
        "INFERENCE_PRECISION_HINT": "f32" if task.dtype == "fp32" else "bf16",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    says = f"precision {precision}, {compiled.get_property('INFERENCE_NUM_THREADS')} threads"

    def call(images: Tensor) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = compiled(images.numpy(), share_inputs=True, share_outputs=True)[0]
        return logits

    return Built(call, says)


CONTENDERS = (
    Contender("openvino", 20, {"cpu": ("fp32", "bf16", "int8")}, _build, packages=("openvino",), quantiser="nncf"),
)
