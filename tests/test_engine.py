"""``mixerzoo.optimize``: folding, choice of a program, what the result can do and what it refuses."""

import concurrent.futures
import copy
import dataclasses
import gc
import pickle
import sys
import weakref

import pytest
import torch
from torch import nn

import mixerzoo
from mixerzoo.engine.folding import fold
from mixerzoo.engine.optimize import choose
from mixerzoo.engine.program import make_request
from mixerzoo.engine.programs import PROGRAMS
from mixerzoo.engine.programs.compiled import FoldedForward
from mixerzoo.engine.tensors import named
from mixerzoo.errors import ConfigError, EngineError, InputSizeError

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "tokens_mlp_dim": 24, "channels_mlp_dim": 128}


def randomised(dtype=torch.float32, **changes):
    """A small model none of whose parameters is special."""
    model = mixerzoo.Mixer(**(SMALL | {"num_classes": 7} | changes), dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def images_for(model, count=3, dtype=torch.float32):
    return torch.randn(count, model.config.in_chans, *model.config.image_hw, dtype=dtype)


def relative(out, expected):
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()


VARIANTS = [
    {},
    {"act": "erf"},
    {"global_pool": ""},
    {"num_classes": 0},
    {"img_size": (12, 20), "in_chans": 5, "norm_eps": 1e-3},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_folding_is_exact(changes):
    model = randomised(torch.float64, **changes)
    images = images_for(model, dtype=torch.float64)
    fast = mixerzoo.optimize(model, dtype=torch.float64, compile=False)
    with torch.no_grad():
        assert relative(fast(images), model(images)) < 1e-12
        assert relative(fast.forward_features(images), model.forward_features(images)) < 1e-12


def test_only_what_is_foldable_is_folded():
    """norm1 runs over channels while W1 contracts tokens, so its scale and shift are still there."""
    model = randomised()
    layer = fold(model).layers[1]
    block = model.blocks[1]
    assert torch.equal(layer.gamma1, block.norm1.weight)
    assert torch.equal(layer.w1, block.mlp_tokens.fc1.weight)
    assert torch.equal(layer.w4, block.mlp_channels.fc2.weight)
    expected = block.mlp_channels.fc1.weight.double() * block.norm2.weight.double()
    assert torch.equal(layer.w3, expected.float())


def test_the_last_token_bias_changes_no_logit():
    model = randomised(torch.float64)
    images = images_for(model, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        for block in model.blocks:
            block.mlp_tokens.fc2.bias.normal_(std=10)
        assert relative(model(images), before) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_untouched_and_the_result_has_no_state(dtype):
    model = randomised()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = mixerzoo.optimize(model, dtype=dtype, compile=False)
    expected = fast(images := images_for(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not fast.state_dict()
    assert not list(fast.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast(images), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_are_those_of_the_dtype(dtype):
    model = randomised()
    images = images_for(model)
    with torch.no_grad():
        exact = randomised_double(model)(images.double())
        usual = relative(copy_of(model).to(dtype)(images.to(dtype)), exact)
    assert relative(mixerzoo.optimize(model, dtype=dtype, compile=False)(images), exact) < 2 * usual + 1e-6


def copy_of(model):
    twin = mixerzoo.Mixer.from_config(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def randomised_double(model):
    return copy_of(model).double()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return randomised()


@pytest.fixture(scope="module")
def eager(model):
    return mixerzoo.optimize(model, dtype=torch.float32, compile=False, max_batch_size=4)


def test_any_batch_size(model, eager):
    images = images_for(model, 9)
    with torch.no_grad():
        expected = model(images)
    for count in (1, 2, 3, 4, 5, 9):
        assert relative(eager(images[:count]), expected[:count]) < 1e-5
    assert eager(images[:0]).shape == (0, 7)
    assert eager.forward_features(images[:0]).shape == (0, 16, 64)


def test_any_input_that_holds_the_same_numbers(model, eager):
    images = images_for(model)
    expected = eager(images)
    assert torch.equal(eager(images.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(eager(images.double()), expected)
    assert torch.equal(eager(images.clone().requires_grad_()), expected)
    with torch.inference_mode():
        assert torch.equal(eager(images.clone()), expected)


def test_features_and_head(model, eager):
    images = images_for(model)
    with torch.no_grad():
        features = model.forward_features(images)
        assert relative(eager.forward_features(images), features) < 1e-5
        assert relative(eager.forward_head(features), model.forward_head(features)) < 1e-5
        assert relative(eager.forward_head(features, pre_logits=True), model.forward_head(features, True)) < 1e-5
    assert relative(eager.forward_head(eager.forward_features(images)), eager(images)) < 1e-5


def test_several_threads_at_once(model, eager):
    batches = [images_for(model) for _ in range(8)]
    expected = [eager(images) for images in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = list(threads.map(eager, batches * 4))
    assert all(torch.equal(result, expected[i % 8]) for i, result in enumerate(results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ahead_of_time_compilation_serves_every_batch_size(model, tmp_path, dtype):
    """One compilation, none later, and a file from which another object starts without one."""
    fast = mixerzoo.optimize(model, dtype=dtype, program="compiled")
    images = images_for(model, 5)
    with torch.no_grad():
        expected = model(images)
    torch._dynamo.utils.counters.clear()
    for count in (5, 1, 2, 3):
        assert relative(fast(images[:count]), expected[:count]) < 1e-5
    assert not torch._dynamo.utils.counters["stats"]
    assert "once for any number of images" in str(fast.report())
    fast.save(tmp_path / "fast")
    assert (tmp_path / "fast" / "compiled.pt2").exists()
    again = mixerzoo.load_optimized(tmp_path / "fast", trusted=True)
    assert torch.equal(again(images), fast(images))


def test_ahead_of_time_compilation_for_single_images(model):
    fast = mixerzoo.optimize(model, dtype=torch.float32, program="compiled", max_batch_size=1)
    images = images_for(model, 2)
    with torch.no_grad():
        assert relative(fast(images), model(images)) < 1e-5


def test_just_in_time_compilation_compiles_twice_at_most(model, monkeypatch):
    """As on devices other than CPUs: once for one image, once for more."""
    runner = PROGRAMS["compiled"]
    monkeypatch.setattr("mixerzoo.engine.programs.compiled.CompiledRunner._ahead_of_time", lambda *_: False)
    monkeypatch.setattr(torch, "compile", lambda module, real=torch.compile: real(module, backend="eager"))
    request = mixerzoo.optimize(model, dtype=torch.float32, compile=False).request
    request = dataclasses.replace(request, compile=True)
    run = runner.start(runner.pack(fold(model), request), request, None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    images = images_for(model, 6)
    with torch.inference_mode():
        for count in (3, 1, 2, 6, 5, 1):
            run.logits(images[:count].clone())
        run.logits(torch.randn(4, 3, 16, 16))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_agreement_is_measured_on_calibration_images(model):
    images = images_for(model, 8)
    fast = mixerzoo.optimize(model, dtype=torch.float32, compile=False, calibration=images)
    assert fast.report().agreement == 1
    assert "100.0 % of the calibration images" in str(fast.report())
    assert not model.training
    other = randomised().train()
    other.norm.eval()
    assert fast.measure_agreement(other, images) < 1
    assert other.training
    assert not other.norm.training


def test_the_report_names_what_was_passed_over(model):
    report = mixerzoo.optimize(model, compile=False).report()
    assert report.program == "compiled"
    assert report.passed_over["native"] == "it has to be compiled, and compile=False"
    assert "not native" in str(report)
    assert "folded" in str(report)


def hooked():
    model = randomised()
    model.blocks[0].register_forward_hook(lambda *_: None)
    return model


def changed(change):
    """A model after ``change(model)``."""

    def make():
        model = randomised()
        change(model)
        return model

    return make


def other_activation(model):
    model.blocks[0].mlp_tokens.act = nn.ReLU()


def no_norm(model):
    model.blocks[1].norm1 = nn.Identity()


def other_head(model):
    model.head = nn.Sequential(nn.Dropout(0.1), model.head)


def smaller_head(model):
    model.head = nn.Linear(64, 5)


def other_flavour(model):
    model.blocks[1].mlp_tokens.act = nn.GELU()


def other_eps(model):
    model.blocks[0].norm1.eps = 1.0


def pruned(model):
    model.blocks[0].mlp_channels.fc1, model.blocks[0].mlp_channels.fc2 = nn.Linear(64, 64), nn.Linear(64, 64)


def shorter(model):
    model.blocks = model.blocks[:1]


def partly_meta(model):
    model.blocks[1].mlp_tokens.to("meta")


@pytest.mark.parametrize(
    ("make", "arguments", "error", "words"),
    [
        (lambda: nn.Linear(2, 2), {}, EngineError, "Only a mixerzoo.Mixer"),
        (lambda: mixerzoo.create_model("mixer_ti4_32", features_only=True), {}, EngineError, "features_only"),
        (hooked, {}, EngineError, "blocks.0 is watched by a hook"),
        (changed(other_activation), {}, EngineError, "blocks.0.mlp_tokens.act is a ReLU"),
        (changed(no_norm), {}, EngineError, "blocks.1.norm1 is a Identity"),
        (changed(other_head), {}, EngineError, "head is a Sequential"),
        (changed(smaller_head), {}, EngineError, "head has parameters of other sizes"),
        (changed(other_flavour), {}, EngineError, "blocks.1.mlp_tokens.act has another approximate"),
        (changed(other_eps), {}, EngineError, "blocks.0.norm1 has another eps"),
        (changed(pruned), {}, EngineError, "blocks.0.mlp_channels.fc1 has parameters of other sizes"),
        (changed(shorter), {}, EngineError, "blocks.1 is missing"),
        (changed(partly_meta), {}, EngineError, "meta device"),
        (randomised, {"device": "bogus"}, ConfigError, "device='bogus' does not exist"),
        (randomised, {"device": "meta"}, ConfigError, "no such device"),
        (randomised, {"compile": "yes"}, ConfigError, "compile='yes'"),
        (lambda: mixerzoo.Mixer(**SMALL, device="meta"), {}, EngineError, "meta device"),
        (randomised, {"quantize": "int4"}, ConfigError, "None, 'int8' or 'fp8'"),
        (randomised, {"dtype": torch.int8}, ConfigError, "torch.bfloat16"),
        (randomised, {"max_batch_size": 0}, ConfigError, "max_batch_size=0"),
        (randomised, {"program": "natve"}, EngineError, "Did you mean 'native'"),
        (randomised, {"program": "native", "dtype": torch.float32}, EngineError, "bfloat16 and int8 products only"),
        (randomised, {"quantize": "fp8"}, EngineError, "Nothing can run quantize='fp8' on cpu"),
        (randomised, {"calibration": torch.zeros(2, 3, 8, 8), "compile": False}, ConfigError, r"\(N, 3, 16, 16\)"),
        (randomised, {"calibration": torch.zeros(0, 3, 16, 16), "compile": False}, ConfigError, "calibration"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str | dict) else "",
)
def test_refusals(make, arguments, error, words):
    with pytest.raises(error, match=words):
        mixerzoo.optimize(make(), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device():
    with pytest.raises(ConfigError, match="no such device here"):
        mixerzoo.optimize(randomised(), device="cuda")


def test_what_an_optimized_model_refuses(eager):
    with pytest.raises(InputSizeError, match=r"\(batch, 3, 16, 16\)"):
        eager(torch.zeros(1, 3, 20, 20))
    with pytest.raises(EngineError, match="no outputs of single layers"):
        eager.forward_intermediates(torch.zeros(1, 3, 16, 16))
    with pytest.raises(EngineError, match="for inference"):
        eager.train()
    for move in (lambda: eager.to("cpu"), eager.half, eager.double):
        with pytest.raises(EngineError, match="stays on cpu"):
            move()
    with pytest.raises(InputSizeError, match="floating-point numbers"):
        eager(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert eager.eval() is eager


def test_the_folded_module_is_the_model_in_float64():
    """The definition that programs are written from, without any of them."""
    model = randomised(torch.float64)
    request = mixerzoo.optimize(model, dtype=torch.float64, compile=False).request
    images = images_for(model, dtype=torch.float64)
    with torch.no_grad():
        assert relative(FoldedForward(named(fold(model)), request)(images), model(images)) < 1e-12


def test_torchao_serves_int8_where_our_own_does_not(model):
    pytest.importorskip("torchao")
    images = images_for(model)
    fast = mixerzoo.optimize(model, quantize="int8", compile=False, dtype=torch.float32)
    assert fast.report().program == "torchao"
    assert fast.report().passed_over["native"] == "it has to be compiled, and compile=False"
    with torch.no_grad():
        assert relative(fast(images), model(images)) < 0.03


def test_int8_without_a_program_names_what_to_install(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(EngineError, match=r"torchao is not installed \(pip install 'mixerzoo\[quant\]'\)"):
        mixerzoo.optimize(model, quantize="int8", compile=False)


@pytest.mark.parametrize(
    ("program", "quantize"),
    [
        ("compiled", None),
        ("fused", None),
        ("fp8", "fp8"),
        ("native", None),
        ("native", "int8"),
        ("torchao", "int8"),
    ],
)
def test_packed_tensors_are_free_of_the_model(program, quantize):
    """No graph of theirs keeps the model alive, and nobody's gradient reaches it."""
    model = randomised()
    device = torch.device("cpu")
    dtype = torch.float32 if program == "compiled" else torch.bfloat16
    request = make_request(model.config, device, dtype, quantize, True, None)
    if PROGRAMS[program].obstacle(request):
        pytest.skip(f"{program}: {PROGRAMS[program].obstacle(request)}")
    packed = PROGRAMS[program].pack(fold(model), request)
    assert not any(tensor.requires_grad for tensor in packed.values())
    theirs = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in packed.values()}
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_gradients_flow_past_an_optimized_model(model, eager):
    images = images_for(model)
    probe = nn.Linear(7, 2)
    logits = eager(images)
    logits += 1
    probe(logits).sum().backward()
    assert probe.weight.grad is not None
    assert not eager.forward_features(images.requires_grad_()).requires_grad


def test_nobodys_settings_change_the_result(model, eager):
    images = images_for(model)
    expected, features = eager(images), eager.forward_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(eager(images), expected)
        assert torch.equal(eager.forward_features(images), features)
        assert eager.forward_head(features).dtype == torch.float32


def test_copies_and_pickles_compute_the_same(model, eager):
    images = images_for(model)
    for twin in (copy.deepcopy(eager), pickle.loads(pickle.dumps(eager))):
        assert torch.equal(twin(images), eager(images))


def test_models_in_any_state_can_be_optimized(model, eager):
    images = images_for(model)
    expected = eager(images)
    training = copy_of(model).train().requires_grad_(False)
    assert torch.equal(mixerzoo.optimize(training, dtype=torch.float32, compile=False)(images), expected)
    assert training.training
    half = copy_of(model).half()
    assert relative(mixerzoo.optimize(half, dtype=torch.float32, compile=False)(images), expected) < 2e-3
    resized = copy_of(model)
    resized.set_input_size(24)
    with torch.no_grad():
        larger = images_for(resized)
        assert relative(mixerzoo.optimize(resized, dtype=torch.float32, compile=False)(larger), resized(larger)) < 1e-5


def test_no_compiler_at_all(model, monkeypatch):
    monkeypatch.setattr("mixerzoo.engine.programs.compiled.compiler", lambda: None)
    fast = mixerzoo.optimize(model, dtype=torch.float32)
    assert "run eagerly, because there is no C++ compiler" in str(fast.report())
    assert fast(images_for(model)).shape == (3, 7)


def test_a_program_that_is_held_back_runs_where_nothing_else_computes_what_was_asked_for(model, monkeypatch):
    held = dataclasses.replace(
        PROGRAMS["compiled"], name="held", obstacle=lambda _: None, reservation=lambda _: "it is not proven here"
    )
    monkeypatch.setattr(sys.modules["mixerzoo.engine.optimize"], "PROGRAMS", {"held": held})
    here = make_request(model.config, "cpu", torch.bfloat16, "int8", False, None)
    with pytest.raises(EngineError, match="it is not proven here"):  # interpreted kernels are nothing to fall back to
        choose(here)
    request = dataclasses.replace(here, device=torch.device("cuda"))
    program, passed_over = choose(request)
    assert program is held
    assert passed_over == {"held": "it is not proven here"}
    free = dataclasses.replace(held, name="free", reservation=lambda _: None)
    monkeypatch.setattr(sys.modules["mixerzoo.engine.optimize"], "PROGRAMS", {"held": held, "free": free})
    assert choose(request)[0] is free
