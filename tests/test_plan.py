"""The plan of a run: steps, operations and bytes against what PyTorch counts, times only from what was measured."""

import contextlib
import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import mixerzoo
from mixerzoo.cli import plan as plan_command
from mixerzoo.data.shards import ShardSource, open_shards
from mixerzoo.data.source import MicroBatch, Share
from mixerzoo.data.synthetic import SyntheticImages, synthetic_shards
from mixerzoo.data.transforms import Augmentation, eval_transform, train_transform
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.ops.problem import OPERATIONS
from mixerzoo.train import throughput as throughput_module
from mixerzoo.train.cost import (
    Layout,
    activation_bytes,
    memory_of,
    optimizer_bytes,
    training_operations,
    working_bytes,
)
from mixerzoo.train.data import DataName
from mixerzoo.train.optim import make_optimizer
from mixerzoo.train.options import RunOptions
from mixerzoo.train.plan import make_plan
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.throughput import Loading, Throughput, measure_loading, measure_training

SMALL = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "tokens_mlp_dim": 40,
    "channels_mlp_dim": 160,
    "num_classes": 7,
}
VARIED = [
    SMALL,
    SMALL | {"img_size": (32, 48), "in_chans": 1, "num_classes": 3},
    SMALL | {"global_pool": ""},
    SMALL | {"num_classes": 0},
]
RECIPE = Recipe(model="small", epochs=3, batch_size=64, warmup_epochs=1.0)
PLAIN = dict.fromkeys(OPERATIONS, "reference")


def small(trainable="all", **changes):
    model = mixerzoo.Mixer(**SMALL | changes).train()
    if trainable == "head":
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    return model


def images_for(model, count):
    return torch.randn(count, model.config.in_chans, *model.config.image_hw)


def options(tmp_path, **changes):
    return RunOptions(tmp_path, **{"workers": 0, "amp": False} | changes)


# --- operations ---


@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize("sizes", VARIED, ids=["square", "oblong", "unpooled", "headless"])
def test_operations_are_those_that_pytorch_counts(sizes, trainable):
    if trainable == "head" and not sizes["num_classes"]:
        pytest.skip("there is no head to train")
    model = small(trainable, **sizes)
    counted = training_operations(model.config, dataclasses.replace(RECIPE, trainable=trainable))
    with FlopCounterMode(display=False) as forward:
        out = model(images_for(model, 5))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert 5 * counted.forward == forward.get_total_flops()
    assert 5 * counted.backward == backward.get_total_flops()
    assert counted.an_image == counted.forward + counted.backward


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.1])
def test_operations_of_gradient_checkpointing(drop_path_rate):
    model = small(drop_path_rate=drop_path_rate)
    model.set_grad_checkpointing(True)
    counted = training_operations(model.config, RECIPE, checkpointing=True)
    with FlopCounterMode(display=False) as counter:
        model(images_for(model, 4)).sum().backward()
    assert 4 * counted.an_image == counter.get_total_flops()
    assert counted.recomputed > 0


def test_sharpness_aware_minimisation_passes_twice():
    once = training_operations(small().config, RECIPE)
    twice = training_operations(small().config, dataclasses.replace(RECIPE, sam_rho=0.1))
    assert twice.an_image == 2 * once.an_image


# --- bytes ---


def kept_for_backward(model, images, amp):
    """Bytes of the tensors that autograd keeps, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(amp):
        out = model(images)
    total = sum(storage.nbytes() for storage in kept.values())
    del out
    return total


def autocast(amp):
    return torch.autocast("cpu", torch.bfloat16, enabled=amp)


@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("backend", ["reference", "unfused", "triton"])
def test_activations_are_those_that_autograd_keeps(backend, amp, trainable):
    if trainable == "head" and backend == "triton":
        pytest.skip("interpreted kernels take long, and this keeps nothing of theirs")
    sizes = {"img_size": 32, "depth": 2} if backend == "triton" else {}
    model = small(trainable, **sizes)
    model.set_backend(backend)
    few, many = (kept_for_backward(model, images_for(model, count), amp) for count in (2, 4))
    layout = Layout(amp, False, dict.fromkeys(OPERATIONS, backend), "cpu")
    recipe = dataclasses.replace(RECIPE, trainable=trainable)
    assert activation_bytes(model.config, recipe, layout) == (many - few) / 2
    if trainable == "all":
        memory = memory_of(model, recipe, layout, micro_batch=2, processes=1, shard=False, optimizer=0)
        assert memory.activations == many - few
        assert memory.weight_copies == pytest.approx(few - memory.activations, rel=0.05)  # biases are copied, too


def test_cuda_autocast_keeps_plain_layer_norms_in_float32():
    config, recipe = small().config, RECIPE
    on_cpu, on_cuda = (activation_bytes(config, recipe, Layout(True, False, PLAIN, kind)) for kind in ("cpu", "cuda"))
    assert on_cuda - on_cpu == 2 * (2 * config.depth + 1) * config.num_tokens * config.embed_dim
    full = [activation_bytes(config, recipe, Layout(False, False, PLAIN, kind)) for kind in ("cpu", "cuda")]
    assert full[0] == full[1]


class Allocations(TorchDispatchMode):
    """Remembers every storage that an operation made."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self):
        return sum(size for reference, size in self.made.values() if not reference.expired())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_is_alive_after_the_forward_pass(checkpointing):
    model = small()
    model.set_grad_checkpointing(checkpointing)
    alive = []
    for count in (4, 8):
        images = images_for(model, count)
        with Allocations() as allocations:
            out = model(images)
        alive.append(allocations.alive() - out.nbytes + images.nbytes)
    counted = activation_bytes(model.config, RECIPE, Layout(False, checkpointing, PLAIN, "cpu"))
    assert counted == pytest.approx((alive[1] - alive[0]) / 4, rel=0.01)


def test_checkpointing_works_on_one_layer_at_a_time():
    config = small().config
    plain, again = (Layout(False, checkpointing, PLAIN, "cpu") for checkpointing in (False, True))
    saved = activation_bytes(config, RECIPE, plain) - activation_bytes(config, RECIPE, again)
    more = working_bytes(config, RECIPE, again) - working_bytes(config, RECIPE, plain)
    inputs = config.depth * 4 * config.num_tokens * config.embed_dim
    assert saved + inputs == config.depth * more


@pytest.mark.parametrize(
    "changes",
    [
        {"opt": "adamw"},
        {"opt": "sgd", "momentum": 0.9},
        {"opt": "muon"},
        {"opt": "lion"},
        {"opt": "adamw", "trainable": "head"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_optimiser_bytes_are_those_of_its_tensors(changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    model = small(recipe.trainable)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    counted = optimizer_bytes(model, recipe)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizer = make_optimizer(model, recipe)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert counted == sum(t.numel() * t.element_size() for t in tensors)
    assert counted > 0


def test_memory_by_hand():
    model, layout = small(), Layout(True, False, PLAIN, "cuda")
    size = sum(p.numel() for p in model.parameters())
    a_layer = sum(p.numel() for p in model.blocks[0].parameters())
    kernels = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    recipe = dataclasses.replace(RECIPE, ema_decay=0.99, sam_rho=0.1)
    alone, ddp, fsdp = (
        memory_of(model, recipe, layout, micro_batch=2, processes=n, shard=shard, optimizer=8 * size)
        for n, shard in ((1, False), (8, False), (8, True))
    )
    assert (alone.parameters, alone.gradients, alone.average, alone.sam, alone.optimizer) == (4 * size,) * 4 + (
        8 * size,
    )
    assert alone.communication == 0
    assert alone.weight_copies == 2 * kernels
    assert dataclasses.replace(alone, communication=4 * size) == ddp
    for name in ("parameters", "gradients", "average", "sam", "optimizer"):
        assert getattr(fsdp, name) == pytest.approx(getattr(alone, name) / 8, abs=1)
    assert fsdp.communication == 2 * 4 * (size - a_layer)  # of three layers two are gathered
    assert fsdp.activations == alone.activations == 2 * activation_bytes(model.config, recipe, layout)
    assert fsdp.total == sum(dataclasses.asdict(fsdp).values())


# --- the plan ---


RECORD = Throughput(
    device="Made-up GPU",
    device_type="cuda",
    images_per_second=16.0,
    micro_batch=32,
    accumulate=2,
    passes=1,
    trainable="all",
    opt="adamw",
    sizes={**SMALL, "in_chans": 3},
    amp=True,
    compile=False,
    grad_checkpointing=False,
    backend=None,
    memory_gib=1.5,
    steps=10,
    slowest=15.0,
    versions={"torch": "2.11"},
    date="2026-01-01",
)


def test_steps_by_hand(tmp_path):
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path))
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps, plan.images_seen) == (15, 45, 15, 2880)
    recipe = dataclasses.replace(RECIPE, epochs=0, steps=500, warmup_epochs=0.0, warmup_steps=10)
    plan = make_plan(small(), recipe, 1000, options(tmp_path))
    assert (plan.total_steps, plan.warmup_steps, plan.images_seen) == (500, 10, 32_000)


def test_no_times_without_a_gpus_throughput(tmp_path):
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path))
    assert plan.throughput is plan.here is None
    assert [gpus.hours for gpus in plan.gpus] == [None] * 3
    text = str(plan)
    assert "No throughput was measured for a GPU: no times." in text
    for word in ("hours", "days", "minutes", "images/s"):
        assert word not in text
    for part in ("45 steps", "15 warm-up", "2,880 images", "GFLOP", "MiB", "64 x FSDP"):
        assert part in text, part


def test_the_same_global_batch_on_every_number_of_gpus(tmp_path):
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path), micro_batch=24)
    assert [(g.count, g.micro_batch, g.accumulate) for g in plan.gpus] == [(1, 16, 4), (8, 8, 1), (64, 1, 1)]
    assert all(g.count * g.micro_batch * g.accumulate == 64 for g in plan.gpus)
    odd = dataclasses.replace(RECIPE, batch_size=24)
    assert [g.count for g in make_plan(small(), odd, 1000, options(tmp_path)).gpus] == [1, 8]


def test_times_follow_from_the_record(tmp_path):
    path = tmp_path / "record.json"
    RECORD.write(path)
    record = Throughput.read(path)
    assert record == RECORD
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path), throughput=record)
    assert [gpus.hours for gpus in plan.gpus] == [pytest.approx(2880 / 16 / 3600 / n) for n in (1, 8, 64)]
    assert plan.gpus[0].micro_batch == 32
    text = str(plan)
    assert "no times" not in text
    for part in ("Made-up GPU", "N times as fast", "best case", "3.0 minutes", "1.50 GiB", "torch 2.11"):
        assert part in text, part


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sizes": RECORD.sizes | {"depth": 12}}, "depth 12 instead of 3"),
        ({"passes": 2}, "passes 2 instead of 1"),
        ({"opt": "sgd"}, "opt"),
        ({"device_type": "cpu"}, "no GPU"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path, changes, complaint):
    record = dataclasses.replace(RECORD, **changes)
    with pytest.raises(ConfigError, match=complaint):
        make_plan(small(), RECIPE, 1000, options(tmp_path), throughput=record)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", json.dumps({"device": "x"})]
    + [
        json.dumps(dataclasses.asdict(RECORD) | wrong)
        for wrong in ({"images_per_second": 0}, {"images_per_second": "9"}, {"micro_batch": 0}, {"sizes": []})
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(ConfigError):
        Throughput.read(tmp_path / "record.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        Throughput.read(tmp_path / "absent.json")


def test_a_record_of_an_oblong_model(tmp_path):
    record = dataclasses.replace(RECORD, sizes=RECORD.sizes | {"img_size": (32, 48)})
    record.write(tmp_path / "record.json")
    model = small(img_size=(32, 48))
    Throughput.read(tmp_path / "record.json").check_fits(model.config, RECIPE)


def test_fewer_images_than_a_batch(tmp_path):
    with pytest.raises(DataError, match="fewer than one batch"):
        make_plan(small(), RECIPE, 63, options(tmp_path))


def test_plain_values(tmp_path):
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path), throughput=RECORD)
    values = json.loads(json.dumps(plan.as_dict(), allow_nan=False))
    assert values["images_seen"] == 2880
    assert values["gpus"][1]["ddp"]["total"] == plan.gpus[1].ddp.total
    assert values["operations"]["an_image"] == plan.operations.an_image


def test_only_the_head_is_trained(tmp_path):
    probe = dataclasses.replace(RECIPE, trainable="head", opt="sgd")
    model = small()
    plan = make_plan(model, probe, 1000, options(tmp_path))
    head = 7 * (48 + 1)
    assert plan.trained == head
    assert plan.gpus[0].ddp.gradients == plan.gpus[0].ddp.optimizer == 4 * head
    assert plan.activations["planned"] == 4 * 48
    assert all(p.requires_grad for p in model.parameters())
    assert f"{head} trained" in str(plan)


# --- measurements ---

FULL = dataclasses.replace(
    RECIPE, mixup=0.2, cutmix=0.5, label_smoothing=0.1, ema_decay=0.9, sam_rho=0.05, drop_path_rate=0.1
)


def test_a_measurement_leaves_everything_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("mixerzoo.train.throughput._SECONDS", 0.0)
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    measured = measure_training(model, FULL, options(tmp_path / "out", amp=True), micro_batch=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not (tmp_path / "out").exists()
    assert 0 < measured.slowest <= measured.images_per_second
    assert (measured.micro_batch, measured.passes, measured.device_type, measured.amp) == (4, 2, "cpu", True)
    assert measured.sizes == {**SMALL, "in_chans": 3}
    measured.check_fits(model.config, FULL)


def test_a_processors_speed_gives_no_times(tmp_path, monkeypatch):
    monkeypatch.setattr("mixerzoo.train.throughput._SECONDS", 0.0)
    here = measure_training(small(), RECIPE, options(tmp_path), micro_batch=256)
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path)).with_speeds(here, None)
    assert plan.here is here
    assert plan.throughput is None
    assert "no times" in str(plan)
    assert f"{here.images_per_second:,.4g} images/s on " in str(plan)
    assert "micro-batch 4" in str(plan)


def test_a_measured_gpu_gives_the_times_that_its_record_gives(tmp_path):
    counted = make_plan(small(), RECIPE, 1000, options(tmp_path), micro_batch=32)
    recorded = make_plan(small(), RECIPE, 1000, options(tmp_path), throughput=RECORD)
    assert dataclasses.replace(counted.with_speeds(RECORD, None), here=None) == recorded
    other = dataclasses.replace(RECORD, images_per_second=1.0)
    assert recorded.with_speeds(other, None).gpus == recorded.gpus  # the record comes first


class Steps:
    """A training step that takes a while on a clock that it moves."""

    total_steps = 1000

    def __init__(self, seconds):
        self.now, self.seconds, self.done = 0.0, seconds, 0

    def perf_counter(self):
        return self.now

    def __call__(self, batches, step):
        self.now += self.seconds
        self.done += 1


@pytest.mark.parametrize(("seconds", "measured"), [(0.5, 6), (2.0, 3), (9.0, 3), (15.0, 2), (300.0, 2)])
def test_slow_steps_are_measured_for_a_bounded_time(monkeypatch, seconds, measured):
    steps = Steps(seconds)
    monkeypatch.setattr(throughput_module, "time", steps)
    taken = throughput_module._time_steps(steps, [], torch.device("cpu"))
    assert taken == [pytest.approx(seconds)] * measured
    assert steps.done == 1 + measured  # the first is not counted


class SlowSource:
    """A source whose micro-batches take a while on a clock that they move."""

    num_images = 100_000

    def __init__(self, seconds):
        self.now, self.seconds, self.closed = 0.0, seconds, False

    def perf_counter(self):
        return self.now

    def micro_batches(self, share, first_step):
        try:
            while True:
                self.now += self.seconds
                yield MicroBatch(torch.zeros(share.micro_batch, 3, 1, 1), torch.zeros(share.micro_batch))
        finally:
            self.closed = True


def test_a_slow_source_is_measured_for_a_bounded_time(monkeypatch):
    source = SlowSource(30.0)
    monkeypatch.setattr(throughput_module, "time", source)
    loading = measure_loading(source, workers=12)
    assert loading.images_per_second == pytest.approx(32 / 30.0)
    assert source.now == 90.0  # the first one, one to empty the queue, one that counts
    assert source.closed


# --- the command ---


def commanded(tmp_path, monkeypatch, **changes):
    """What ``show_plan`` prints, in order, with measurements that take no time."""
    printed = []
    monkeypatch.setattr(plan_command.typer, "echo", lambda text, err=False: printed.append((err, text)))
    for name, result in (("measure_training", RECORD), ("measure_loading", Loading(50.0, 2, 256))):

        def measure(*args, result=result, name=name, **kwargs):
            printed.append((None, name))
            return result

        monkeypatch.setattr(plan_command, name, measure)
    settings = {"data": DataName("synthetic"), "micro_batch": 256, "throughput": None, "as_json": False} | changes
    plan_command.show_plan(
        Recipe(model="mixer_ti4_32", batch_size=64, epochs=1),
        options=options(tmp_path, workers=settings.pop("workers", 2)),
        **settings,
    )
    return printed


def test_a_dry_run_prints_what_is_counted_before_it_measures(tmp_path, monkeypatch):
    counted, *rest, measured = commanded(tmp_path, monkeypatch)
    assert counted[0] is False
    for part in ("steps an epoch", "FLOP", "GiB on each GPU"):
        assert part in counted[1]
    said = [text for err, text in rest if err]
    assert [text for err, text in rest if err is None] == ["measure_training", "measure_loading"]
    assert rest[0] == (True, said[0])
    assert said[0].startswith("measuring training steps on ")
    assert said[1:] == ["writing 128 made-up JPEG files ...", "measuring how fast images are read and augmented ..."]
    assert measured[0] is False
    assert "images/s" in measured[1]
    assert "FLOP" not in measured[1]


def test_json_is_all_that_a_dry_run_prints(tmp_path, monkeypatch):
    *rest, last = commanded(tmp_path, monkeypatch, as_json=True)
    assert [err for err, _ in rest if err is not None] == [True] * 3
    assert last[0] is False
    assert json.loads(last[1])["here"]["images_per_second"] == 16.0


def test_every_reader_of_made_up_images_has_a_shard(tmp_path, monkeypatch):
    written = []

    def write(folder, *, images, classes, images_per_shard):
        written.append((images, images_per_shard))
        return synthetic_shards(folder, images=3, size=(8, 8), classes=classes)

    monkeypatch.setattr(plan_command, "synthetic_shards", write)
    for workers in (0, 2, 7, 64, 200):
        commanded(tmp_path, monkeypatch, workers=workers)
    assert written[:2] == [(128, 32), (128, 32)]
    for (images, a_shard), workers in zip(written, (0, 2, 7, 64, 200), strict=True):
        assert images // a_shard >= max(workers, 1)


def write_shards(tmp_path, images=24):
    return synthetic_shards(tmp_path / "shards", images=images, size=(60, 45), classes=7, images_per_shard=6)


DATA_CONFIG = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_is_measured_and_compared(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("mixerzoo.train.throughput._SECONDS", 0.0)
    write_shards(tmp_path)
    transform = train_transform(DATA_CONFIG, Augmentation())
    source = ShardSource(open_shards(tmp_path / "shards", num_classes=7), transform)
    loading = measure_loading(source, micro_batch=8, workers=workers, neighbours=True)
    assert loading.images_per_second > 0
    assert loading.images >= 4 * 8 * max(workers, 1)
    plan = make_plan(small(), RECIPE, 1000, options(tmp_path), throughput=RECORD)
    here = dataclasses.replace(RECORD, device_type="cpu", images_per_second=100.0)
    for speed, limit in ((99.0, "Reading is the limit"), (101.0, "The model is the limit")):
        loading = dataclasses.replace(loading, images_per_second=speed)
        text = str(dataclasses.replace(plan, here=here, loading=loading))
        assert limit in text
        assert f"{speed:g} images/s" in text


def test_synthetic_shards_are_real_ones(tmp_path):
    written = write_shards(tmp_path)
    assert written.num_images == 24
    assert len(written.shards) == 4
    assert not written.faults
    shards = open_shards(tmp_path / "shards", num_classes=7)
    samples = [sample for shard in range(4) for sample in shards.read(shard)]
    assert len({sample.image for sample in samples}) == 24
    assert {sample.label for sample in samples} == set(range(7))
    assert all(sample.image.startswith(b"\xff\xd8") and not sample.fault for sample in samples)
    source = ShardSource(shards, eval_transform(DATA_CONFIG | {"crop_pct": 1.0}))
    with contextlib.closing(source.micro_batches(Share(8), 0)) as stream:
        assert next(stream).images.shape == (8, 3, 64, 64)


def test_synthetic_images_are_a_function_of_the_seed():
    one, same, other = (SyntheticImages(3, size=(500, 375), classes=2, seed=seed) for seed in (1, 1, 2))
    assert [one.original(i) for i in range(3)] == [same.original(i) for i in range(3)]
    assert one.original(0) != other.original(0)
    image, label = one.read(1)
    assert (image.size, image.mode, label) == ((500, 375), "RGB", 1)
    assert 30_000 < len(one.original(0)) < 200_000  # ImageNet's photographs of this size: about 100 kB
    with pytest.raises(ConfigError, match="classes=0"):
        SyntheticImages(3, size=(500, 375), classes=0, seed=1)
