"""One model on many processes: copies with averaged gradients (DDP), or a share of it on each (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError
from mixerzoo.model import Mixer
from mixerzoo.train.options import RunOptions


def make_equal(model: Mixer) -> None:
    """Give every process the first one's parameters: a model that was not seeded differs from process to process."""
    with torch.no_grad():
        for parameter in model.parameters():
            dist.broadcast(parameter, src=0)


def shard_model(model: Mixer, world: World) -> None:
    """Split the parameters of every layer over the processes, in place.

    Raises:
        ConfigError: There is no job of processes to share them.
    """
    if not dist.is_initialized():
        raise ConfigError("Sharding needs a job of processes: start the command with torchrun.")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def prepare(model: Mixer, options: RunOptions, world: World) -> nn.Module:
    """Make ``model`` (sharded already, if it is to be) ready for training and return what to call for a forward pass.

    The model is compiled in place, so its parameters keep their names.
    """
    if options.backend is not None:
        model.set_backend(options.backend)
    if options.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if options.compile:
        settings = _compiler_settings(world.device)
        for module in model.blocks if options.shard else [model]:
            module.compile(**settings)
    if options.shard or world.size == 1:
        return model
    device_ids = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids)


def _compiler_settings(device: torch.device) -> dict[str, Any]:
    """On CPUs tanh through exp: Inductor's own vectorised one takes half of a training step (log, entry 2)."""
    from torch._inductor import config

    if device.type == "cpu" and hasattr(config.cpp, "use_decompose_tanh"):
        return {"options": {"cpp.use_decompose_tanh": True}}
    return {}


def whole_copy(model: Mixer) -> Mixer | None:
    """A model like this one, whole and on the CPU, on the first process; None on the others. All must call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.is_initialized() and dist.get_rank() > 0:
        return None
    whole = Mixer.from_config(model.config, device="meta")
    whole.load_state_dict(state, assign=True)
    whole.pretrained_cfg = getattr(model, "pretrained_cfg", {})
    return whole


@contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """Average gradients over the processes in the backward passes inside only if ``last``."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    else:
        yield


def settle(module: nn.Module, images: torch.Tensor, *, amp: bool) -> None:
    """Let DDP find its order of gradients with one backward pass that is thrown away.

    DDP cuts gradients into messages anew after its first backward pass, and the order of a sum over more than two
    processes depends on the cut. Without this the first step after a resume would round in another order.
    """
    if not isinstance(module, DistributedDataParallel):
        return
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        loss = module(images).float().sum()
    loss.backward()
    module.zero_grad(set_to_none=True)
