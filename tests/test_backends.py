"""Which backend computes a model, why not another, and that nobody sees the difference."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_same_state, randomise
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import mixerzoo
from mixerzoo.errors import BackendError, ConfigError
from mixerzoo.model import Mlp
from mixerzoo.ops import cards, choice
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.cards import CardRecord, problem_key, read_cards, record_card
from mixerzoo.ops.choice import choose
from mixerzoo.ops.problem import OPERATIONS, Problem

BACKENDS_HERE = ("unfused", "triton")
CARD = "NVIDIA Pretend 9000"


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


def tiny(backend="auto", **arguments):
    model = randomise(mixerzoo.Mixer(**TINY | arguments))
    model.set_backend(backend)
    return model


def gradients(model, images):
    model.zero_grad()
    torch.manual_seed(7)
    out = model(images)
    out.square().sum().backward()
    return {"out": out.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("act", ["tanh", "erf"])
@pytest.mark.parametrize("variation", ["plain", "stochastic depth", "rescaled", "checkpointing", "channels last"])
def test_model_and_gradients_are_the_same(backend, act, variation, images):
    arguments = {"act": act}
    if variation in ("stochastic depth", "rescaled"):
        arguments |= {"drop_path_rate": 0.6, "drop_path_rescale": variation == "rescaled", "depth": 4}
    plain, other = tiny("reference", **arguments), tiny(backend, **arguments)
    if variation == "checkpointing":
        other.set_grad_checkpointing()
    if variation == "channels last":
        other, images = (
            other.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    expected, found = gradients(plain, images), gradients(other, images)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_built_in_model(backend):
    model = mixerzoo.create_model("mixer_ti4_32", pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model.set_backend(backend)
        assert (model(images) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_autocast(backend, images):
    """The products run in bfloat16, the result has the dtype and about the error that the plain layers have."""
    model = tiny("reference")
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(images)
        model.set_backend(backend)
        found = model(images)
    assert found.dtype == plain.dtype == torch.bfloat16
    assert (found - exact).norm() <= 2 * (plain - exact).norm()
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_each_branch_by_itself(backend, images):
    model = tiny()
    expected = model(images)
    for op in OPERATIONS:
        model.set_backend("reference", **{op: backend})
        report = model.explain_backend(images)
        assert getattr(report, op).backend == backend
        assert [choice.backend for choice in report].count("reference") == 1
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_a_checkpoint_never_shows_the_backend(backend, images, tmp_path):
    model, other = tiny(), tiny(backend)
    assert_same_state(model, other)
    mixerzoo.save_model(other, tmp_path / "saved")
    loaded = mixerzoo.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert backend not in (tmp_path / "saved" / "config.json").read_text()
    assert_same_state(loaded, model)
    assert {choice.backend for choice in loaded.explain_backend(images)} == {"reference"}
    for twin in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert twin.explain_backend(images).token_mlp.backend == backend


def bytes_kept(block, x):
    """Bytes that the forward pass keeps for the backward pass, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    return sum(kept.values())


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_memory_kept_for_the_backward_pass(backend):
    """Token mixing keeps its input and two numbers a token, channel mixing also what GELU is applied to."""
    block = tiny("reference", embed_dim=64, tokens_mlp_dim=32, channels_mlp_dim=256).blocks[0]
    x = torch.randn(5, 4, 64, requires_grad=True)
    plain = bytes_kept(block, x)
    block.backends = dict.fromkeys(OPERATIONS, backend)
    fused = bytes_kept(block, x)
    assert fused == 4 * x.shape[0] * x.shape[1] * (2 * 64 + 256 + 4)
    assert fused < 0.5 * plain


def test_backend_survives_another_image_size():
    model = tiny("triton")
    model.set_input_size(48)
    images = torch.randn(2, 3, 48, 48)
    found = model(images)
    assert model.explain_backend(images).token_mlp.backend == "triton"
    model.set_backend("reference")
    torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS_HERE])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_compilation_for_training_and_one_for_inference(backend, checkpointing):
    """Full graph; the first batch size, and one more for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = tiny(backend, drop_path_rate=0.1)
    model.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for images in (2, 3, 5, 4):
        compiled(torch.randn(images, 3, 32, 32)).sum().backward()
    assert counter.frame_count == 2
    model.eval()
    with torch.no_grad():
        for images in (4, 2, 5):
            batch = torch.randn(images, 3, 32, 32)
            torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 4


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_graphs_that_leave_hold_only_pytorchs_own_operations(backend, images):
    model = tiny(backend).eval()
    exported = torch.export.export(model, (images,))
    assert "mixerzoo" not in str(exported.graph)
    traced = torch.fx.symbolic_trace(model)
    assert "mixerzoo" not in traced.code.replace("mixerzoo.model", "").replace("mixerzoo_model", "")
    torch.testing.assert_close(traced(images), model(images), rtol=1e-4, atol=1e-4)


def test_explanation_on_the_cpu(images):
    report = tiny().explain_backend(images)
    assert str(report).splitlines() == [
        "token_mlp: reference (the plain layers run on cpu)",
        "  not triton: interpreted kernels are for tests",
        "  not cublaslt: it has no token_mlp",
        "  not unfused: it was made for GPUs; on the CPU the plain layers run",
        "channel_mlp: reference (the plain layers run on cpu)",
        "  not triton: interpreted kernels are for tests",
        "  not cublaslt: its epilogue exists on CUDA devices only, not on cpu",
        "  not unfused: it was made for GPUs; on the CPU the plain layers run",
    ]


def test_explanation_checks_the_images():
    with pytest.raises(mixerzoo.MixerzooError, match=r"\(batch, 3, 32, 32\)"):
        tiny().explain_backend(torch.randn(1, 3, 33, 32))


def test_unknown_backends(images):
    model = tiny()
    with pytest.raises(BackendError, match=r"'tritn' is no backend for token_mlp: .* Did you mean 'triton'"):
        model.set_backend("tritn")
    with pytest.raises(BackendError, match="'cublaslt' is no backend for token_mlp"):
        model.set_backend("cublaslt")
    with pytest.raises(BackendError, match="None is no backend"):
        model.set_backend(None)
    with pytest.raises(BackendError, match="'' is no backend for token_mlp"):
        model.set_backend(token_mlp="")
    model.set_backend(channel_mlp="cublaslt")
    assert model.explain_backend(images).token_mlp.backend == "reference"


def test_a_backend_that_cannot_run_says_so(images):
    """Asked for, it is refused with a reason when the model runs; the explanation does not raise."""
    model = tiny()
    model.set_backend(channel_mlp="cublaslt")
    with pytest.raises(BackendError, match=r"'cublaslt' cannot compute channel_mlp here: .* not on cpu"):
        model(images)
    explained = model.explain_backend(images).channel_mlp
    assert explained.backend == "none"
    assert "not on cpu" in explained.reason


def test_triton_needs_a_card_or_the_interpreter(images, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="CUDA devices, not on cpu"):
        tiny("triton")(images)


class Doubling(Mlp):
    """An MLP that computes something else."""

    def forward(self, x):
        return 2.0 * super().forward(x)


def change_block(block, change):
    mlp = block.mlp_tokens
    if change == "layer":
        mlp.fc1 = nn.Sequential(mlp.fc1, nn.Dropout(0.0))
    elif change == "hook":
        mlp.fc2.register_forward_hook(lambda *_: None)
    elif change == "bias":
        mlp.fc1.register_parameter("bias", None)
    elif change == "norm":
        block.norm1 = nn.Identity()
    elif change == "bare norm":
        block.norm1 = nn.LayerNorm(TINY["embed_dim"], elementwise_affine=False)
    elif change == "MLP":
        block.mlp_tokens = nn.Identity()
    elif change == "subclass":
        mlp.__class__ = Doubling
    elif change == "forward":
        mlp.forward = lambda x: 3.0 * x
    elif change == "drop path":
        block.drop_path = nn.Identity()
    elif change == "sizes":
        mlp.fc1, mlp.fc2 = nn.Linear(4, 9), nn.Linear(9, 1)  # broadcasts in plain PyTorch


CHANGES = {
    "layer": "a Linear was replaced by Sequential",
    "hook": "a hook watches Linear",
    "bias": "a scale or a bias was removed",
    "norm": "a LayerNorm was replaced by Identity",
    "bare norm": "a scale or a bias was removed",
    "MLP": "the MLP was replaced by Identity",
    "subclass": "the MLP was replaced by Doubling",
    "forward": "the forward of Mlp was replaced",
    "drop path": "a DropPath was replaced by Identity",
    "sizes": "the sizes of its layers do not fit together",
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.items(), ids=CHANGES)
@pytest.mark.parametrize("layer", [0, 1])
def test_changed_layers_are_run_as_they_are(change, reason, layer, images):
    """By default they run; a backend that was asked for is refused, and the explanation says both."""
    model = tiny()
    change_block(model.blocks[layer], change)
    expected = model(images)
    explained = model.explain_backend(images)
    assert explained.token_mlp.backend == explained.channel_mlp.backend == "reference"
    assert reason in explained.token_mlp.reason
    if layer:
        assert f"reference in layer 1 ({reason})" in str(explained)
    for block in model.blocks:
        block.drop_path.train()
    assert torch.equal(model(images), expected)
    model.set_backend("triton")
    assert f"triton was asked for and cannot run: {reason}" in model.explain_backend(images).token_mlp.reason
    with pytest.raises(BackendError, match=reason):
        model(images)


def test_stochastic_depth_has_its_own_mode(images):
    plain, other = tiny("reference", drop_path_rate=0.7), tiny("unfused", drop_path_rate=0.7)
    for model in (plain, other):
        model.eval()
        for block in model.blocks:
            block.drop_path.train()
    torch.manual_seed(3)
    expected = plain(images)
    torch.manual_seed(3)
    torch.testing.assert_close(other(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the check of the image size is a constant there
@pytest.mark.filterwarnings("ignore:`torch.jit")  # on its way out, and PyTorch itself still uses it for jvp
@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_functional_transforms_and_traces_use_plain_layers(backend, images):
    model, plain = tiny(backend).eval(), tiny("reference").eval()
    tangent = torch.randn_like(images)
    for found, expected in zip(
        torch.func.jvp(model, (images,), (tangent,)), torch.func.jvp(plain, (images,), (tangent,)), strict=True
    ):
        assert torch.equal(found, expected)
    each, together = torch.func.vmap(lambda x: model(x[None])[0])(images), model(images)
    torch.testing.assert_close(each, together, rtol=1e-4, atol=1e-4)
    traced = torch.jit.trace(model, images)
    assert "mixerzoo::" not in str(traced.inlined_graph)


@pytest.mark.parametrize("backend", ["auto", "unfused"])
def test_a_model_without_storage(backend):
    model = mixerzoo.Mixer(**TINY, device="meta")
    model.set_backend(backend)
    images = torch.randn(2, 3, 32, 32, device="meta")
    expected = "reference" if backend == "auto" else backend
    assert model.explain_backend(images).token_mlp.backend == expected
    assert model(images).shape == (2, TINY["num_classes"])


@pytest.mark.parametrize(
    "line",
    [
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_every_way_to_allow_tf32(line):
    """The newest one makes PyTorch's older getters raise."""
    code = f"""
import torch, mixerzoo
from mixerzoo.kernels.precision import tf32_allowed
model, images = mixerzoo.Mixer(**{TINY!r}), torch.randn(1, 3, 32, 32)
print(tf32_allowed())
{line}
model.set_backend("triton")
model(images)
print(tf32_allowed(), model.explain_backend(images).token_mlp.backend)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["False", "True", "triton"], run.stderr


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_distributed_data_parallel(backend, images, tmp_path):
    """The gradients of a replica are the model's."""
    plain, other = tiny("reference"), tiny(backend)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        replica = nn.parallel.DistributedDataParallel(other)
        replica(images).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    plain(images).square().sum().backward()
    for (name, ours), theirs in zip(other.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_the_epilogue_is_not_tanh_on_the_cpu():
    """What the cublaslt backend's obstacle says of other devices, seen."""
    x, w, b = torch.randn(4, 8), torch.randn(8, 8), torch.randn(8)
    found = torch._addmm_activation(b, x, w, use_gelu=True)
    erf, tanh = (nn.functional.gelu(torch.addmm(b, x, w), approximate=kind) for kind in ("none", "tanh"))
    assert (found - erf).abs().max() < 1e-6
    assert (found - tanh).abs().max() > 1e-5


@pytest.fixture
def card(monkeypatch):
    """A pretended CUDA card, and a function that records what was seen on it."""
    properties = {"major": 9, "minor": 0, "multi_processor_count": 132, "shared_memory_per_block_optin": 232_448}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (properties["major"], properties["minor"]))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), properties))
    records = {}
    monkeypatch.setattr(choice, "read_cards", lambda: records)

    def record(passed=("bfloat16", "float16", "float32"), fastest=()):
        records[CARD] = CardRecord({}, {op: list(passed) for op in OPERATIONS}, dict(fastest))
        return properties

    record.properties = properties
    return record


def problem(op="token_mlp", **changes):
    fields = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "tokens": 196, "channels": 768, "hidden": 384}
    return Problem(**{"op": op, "act": "tanh", "training": True} | fields | changes)


def test_an_unrecorded_card_runs_the_plain_layers(card):
    chosen = choose(problem())
    assert chosen.backend == "reference"
    assert CARD in chosen.passed_over["triton"]
    assert "set_backend('triton')" in chosen.passed_over["triton"]
    assert choose(problem(), "triton").backend == "triton"


def test_a_recorded_card_runs_the_kernels(card):
    card()
    assert choose(problem()).backend == "triton"
    assert choose(problem("channel_mlp", hidden=3072)).backend == "triton"


def test_only_in_the_dtypes_that_passed(card):
    card(passed=["bfloat16"])
    assert choose(problem()).backend == "triton"
    assert choose(problem(dtype=torch.float16)).backend == "reference"


def test_the_measured_winner_runs(card):
    wanted = problem("channel_mlp", hidden=3072, training=False)
    card(fastest={problem_key(wanted): "cublaslt"})
    chosen = choose(wanted)
    assert (chosen.backend, chosen.reason) == ("cublaslt", f"measured fastest on {CARD}")
    assert chosen.passed_over == {"triton": f"cublaslt was faster on {CARD}"}
    card(fastest={problem_key(wanted): "reference"})
    assert choose(wanted).backend == "reference"


@pytest.mark.parametrize(
    ("changes", "expected", "reason"),
    [
        ({"tokens": 784}, "unfused", "784 tokens"),
        ({"dtype": torch.float32}, "unfused", "no tensor cores"),
        ({"dtype": torch.float32, "tf32": True}, "triton", ""),
        ({"op": "channel_mlp", "dtype": torch.float32, "training": False}, "cublaslt", "no tensor cores"),
        ({"op": "channel_mlp", "dtype": torch.float32, "act": "erf"}, "unfused", "no tensor cores"),
    ],
)
def test_the_next_best_and_why(card, changes, expected, reason):
    card()
    chosen = choose(problem(**changes))
    assert chosen.backend == expected
    assert reason in chosen.passed_over.get("triton", "")


def test_obstacles(card, monkeypatch):
    assert "float64" in BACKENDS["triton"].obstacle(problem(dtype=torch.float64))
    assert "tanh GELU" in BACKENDS["cublaslt"].obstacle(problem("channel_mlp", act="erf"))
    card.properties["shared_memory_per_block_optin"] = 4096
    assert "4096 bytes of shared memory" in BACKENDS["triton"].obstacle(problem())
    card.properties["major"] = 7
    assert "8.0" in BACKENDS["triton"].obstacle(problem())
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "ROCm" in BACKENDS["triton"].obstacle(problem())
    assert "ROCm" in BACKENDS["cublaslt"].obstacle(problem("channel_mlp"))
    assert "cpu" not in str(BACKENDS["triton"].obstacle(problem(device=torch.device("mps"))))


def test_the_package_records_only_what_a_card_has_shown():
    """Every entry of the table names its circumstances."""
    for name, record in read_cards().items():
        assert name
        assert {"date", "torch", "triton", "command"} <= set(record.circumstances)
        assert set(record.passed) <= set(OPERATIONS)


def test_recording_a_card(tmp_path):
    path = tmp_path / "cards.json"
    path.write_text("{}")
    record = CardRecord({"date": "today"}, {"token_mlp": ["bfloat16"]}, {"key": "unfused"})
    record_card(CARD, record, path)
    record_card("another", CardRecord(), path)
    assert cards.read_cards(path)[CARD] == record
    assert set(json.loads(path.read_text())) == {CARD, "another"}
    with pytest.raises(ConfigError, match="source tree"):
        record_card(CARD, record, Path("/dev/null/cards.json"))


ADDED = '''
"""A backend in one file."""
from mixerzoo.ops.backends.unfused import BACKEND as UNFUSED
from mixerzoo.ops.problem import Backend
BACKEND = Backend("mine", 5, True, lambda problem: None, lambda problem: "an example", dict(UNFUSED.implementations))
'''


def test_a_backend_is_added_by_adding_one_file(tmp_path):
    source = Path(mixerzoo.__file__).parent
    shutil.copytree(source, tmp_path / "mixerzoo", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (tmp_path / "mixerzoo" / "ops" / "backends" / "mine.py").write_text(ADDED)
    code = f"""
import torch, mixerzoo
model = mixerzoo.Mixer(**{TINY!r})
images = torch.randn(1, 3, 32, 32)
print(model.explain_backend(images).token_mlp.passed_over["mine"])
model.set_backend("mine")
model(images)
print(model.explain_backend(images).token_mlp.backend)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, env={"PYTHONPATH": "."}
    )
    assert run.stdout.split("\n")[:2] == ["an example", "mine"], run.stderr
