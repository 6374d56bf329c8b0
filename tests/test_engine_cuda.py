"""The engine's program of fused kernels, interpreted on the CPU, and when a card runs it and its FP8 relative."""

import copy

import pytest
import torch
from helpers import randomise
from op_checks import distance
from torch.nn import functional as F  # noqa: N812

import mixerzoo
from mixerzoo.bench.gpu.tolerances import TOLERANCES
from mixerzoo.engine.optimize import choose
from mixerzoo.engine.program import Request
from mixerzoo.engine.programs import PROGRAMS, fused
from mixerzoo.errors import EngineError
from mixerzoo.kernels import layer_norm, linear, linear_tiles
from mixerzoo.kernels.launch import INTERPRETER
from mixerzoo.ops.cards import CardRecord, problem_key

SMALL = {"img_size": 28, "patch_size": 4, "embed_dim": 64, "depth": 2, "tokens_mlp_dim": 40, "channels_mlp_dim": 96}
"""49 tokens."""


def make_model(**sizes):
    return randomise(mixerzoo.Mixer(**{**SMALL, "num_classes": 7, **sizes})).eval()


def images_for(model, count=3):
    return torch.randn(count, model.config.in_chans, *model.config.image_hw)


def exact_results(model, images):
    """Logits and features in float64."""
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        return double(images.double()), double.forward_features(images.double())


def assert_as_good_as_pytorch(model, images, dtype, fast):
    """Logits and features within the table's limit of what the model gives in the same dtype."""
    logits, features = exact_results(model, images)
    plain = copy.deepcopy(model).to(dtype)
    tolerance = TOLERANCES[str(dtype).removeprefix("torch.")]
    with torch.no_grad():
        theirs = distance(plain(images.to(dtype)), logits), distance(plain.forward_features(images.to(dtype)), features)
    for ours, exact, error in zip(
        (fast(images), fast.forward_features(images)), (logits, features), theirs, strict=True
    ):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert distance(ours, exact) <= tolerance.limit(error)


# --- the fused program ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"act": "tanh"},
        {"act": "erf", "img_size": (57, 58), "embed_dim": 48},  # 196 tokens, and pixels beyond the last patch
        {"act": "tanh", "img_size": (15, 9), "patch_size": 3, "tokens_mlp_dim": 17},  # 15 tokens, patches of 27 numbers
        {"act": "erf", "img_size": 8, "global_pool": "", "in_chans": 1},
        {"act": "tanh", "img_size": 8, "num_classes": 0},
    ],
    ids=["49 tokens", "196 tokens", "odd", "unpooled", "headless"],
)
def test_fused_is_as_good_as_pytorch(sizes, dtype):
    model = make_model(**sizes)
    fast = mixerzoo.optimize(model, dtype=dtype, program="fused")
    assert_as_good_as_pytorch(model, images_for(model, 2), dtype, fast)


@pytest.mark.parametrize("max_batch_size", [None, 2])
def test_any_batch_size_gives_each_image_the_same(max_batch_size):
    model = make_model(img_size=8, depth=1)
    fast = mixerzoo.optimize(model, program="fused", max_batch_size=max_batch_size)
    images = images_for(model, 5)
    one_by_one = torch.cat([fast(image[None]) for image in images])
    for count in range(6):
        torch.testing.assert_close(fast(images[:count]), one_by_one[:count], rtol=1e-5, atol=1e-5)


def test_head_of_features_is_the_model_s():
    model = make_model(img_size=8)
    fast = mixerzoo.optimize(model, program="fused", dtype=torch.float32)
    images = images_for(model)
    assert distance(fast.forward_head(fast.forward_features(images)), fast(images)) < 1e-6


@pytest.mark.parametrize(("program", "arguments"), [("fused", {"dtype": torch.float32}), ("fp8", {"quantize": "fp8"})])
def test_later_changes_to_the_model_do_not_show(program, arguments):
    model = make_model(img_size=8)
    images = images_for(model)
    fast = mixerzoo.optimize(model, program=program, **arguments)
    expected = fast(images), fast.forward_features(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast(images), expected[0])
    assert torch.equal(fast.forward_features(images), expected[1])


@pytest.mark.parametrize("program", ["fused", "fp8"])
def test_saved_and_loaded_it_gives_the_same_bits(tmp_path, program):
    model = make_model(img_size=8)
    fast = mixerzoo.optimize(model, program=program, quantize="fp8" if program == "fp8" else None)
    fast.save(tmp_path / "fast")
    images = images_for(model)
    assert torch.equal(mixerzoo.load_optimized(tmp_path / "fast")(images), fast(images))


def test_weights_are_packed_once(monkeypatch):
    model = make_model(img_size=8)
    fast = mixerzoo.optimize(model, program="fused")
    expected = fast(images := images_for(model))
    monkeypatch.setattr("mixerzoo.kernels.token_mlp.pack", None)
    assert torch.equal(fast(images), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 5.0, 30.0])
def test_statistics_in_the_epilogue_lose_nothing(dtype, mean):
    """Against normalising first, with means many times the deviation and weights whose rows do not sum to zero."""
    x = (torch.randn(2, 49, 64) + mean * torch.randn(2, 49, 1).sign()).to(dtype)
    w, b = (torch.randn(96, 64) / 8 + 0.03).to(dtype), (0.3 * torch.randn(96)).to(dtype)
    exact = F.gelu(F.linear(F.layer_norm(x.double(), (64,), eps=1e-6), w.double(), b.double()))
    y, *stats = layer_norm.normalise(x, None, None, 1e-6, dtype)
    first, ours = torch.empty(2, 49, 96, dtype=dtype), torch.empty(2, 49, 96, dtype=dtype)
    tile = linear_tiles.LinearTile(32, 32, 32, 4, 2)
    linear.describe_linear_gelu(y, w, b, None, first, "erf", tile)()
    linear.describe_normalised_gelu(x, tuple(stats), w, w.double().sum(1).float(), b, ours, "erf", tile)()
    assert distance(ours, exact) <= 1.1 * distance(first, exact)


@pytest.mark.parametrize("features", [256, 300, 80])
def test_a_wide_tile_adds_the_residual_in_halves(features):
    z, w, x = torch.randn(2, 9, 32), torch.randn(features, 32), torch.randn(2, 9, features)
    b, keep = torch.randn(features), torch.tensor([0.5, 2.0])
    expected = x + keep[:, None, None] * F.linear(z, w, b)
    linear.describe_linear_residual(z, w, b, x, keep, x, linear_tiles.LinearTile(16, 256, 16, 4, 2))()
    assert distance(x, expected) < 1e-6


@pytest.mark.parametrize("element_size", [1, 2, 4])
@pytest.mark.parametrize("features", [128, 768, 3072])
def test_two_tiles_serve_every_number_of_rows(element_size, features):
    rows = [images * tokens for images in (1, 2, 3, 8, 64, 257) for tokens in (9, 49, 196)]
    assert len({linear_tiles.inference_tile(INTERPRETER, r, features, element_size, 0) for r in rows}) <= 2


@pytest.mark.parametrize(
    ("changes", "arguments", "reason"),
    [
        ({}, {"quantize": "fp8"}, "it has no quantised products"),
        ({}, {"compile": False}, "compile=False forbids"),
        ({}, {"dtype": torch.float64}, "no float64"),
        ({"img_size": 28 * 4, "patch_size": 4}, {}, "784 tokens do not fit"),
    ],
)
def test_fused_says_what_it_cannot_run(changes, arguments, reason):
    model = make_model(**changes)
    with pytest.raises(EngineError, match=f"'fused' cannot run this: .*{reason}"):
        mixerzoo.optimize(model, program="fused", **arguments)


def test_without_the_interpreter_a_cpu_is_no_place(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(EngineError, match="CUDA devices, not on cpu"):
        mixerzoo.optimize(make_model(img_size=8), program="fused")


# --- what runs by itself ---


def request_for(model, device="cpu", dtype=torch.bfloat16, quantize=None):
    return Request(model.config, torch.device(device), dtype, quantize, compile=True, max_batch_size=None)


def test_interpreted_kernels_are_not_chosen():
    program, passed_over = choose(request_for(make_model(img_size=8), dtype=torch.float16))
    assert program.name != "fused"
    assert passed_over["fused"] == "interpreted kernels are for tests"


@pytest.fixture
def card(monkeypatch):
    """A Hopper card, as far as it is asked."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "CARD")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("mixerzoo.kernels.branches.card_of", lambda _: INTERPRETER)
    monkeypatch.setattr("mixerzoo.kernels.launch.card_of", lambda _: INTERPRETER)


@pytest.mark.parametrize(("program", "quantize"), [("fused", None), ("fp8", "fp8")])
def test_a_card_needs_a_record(monkeypatch, card, program, quantize):
    request = request_for(make_model(embed_dim=128, channels_mlp_dim=256), "cuda", quantize=quantize)
    both = {"token_mlp": ["bfloat16"], "channel_mlp": ["bfloat16"]}
    for passed, runs in ((both, True), ({"token_mlp": ["bfloat16"]}, False), (None, False)):
        records = {} if passed is None else {"CARD": CardRecord(passed=passed)}
        monkeypatch.setattr(fused, "read_cards", lambda records=records: records)
        assert PROGRAMS[program].obstacle(request) is None
        reason = PROGRAMS[program].reservation(request)
        assert (reason is None) == runs
        assert runs or f"recorded for CARD; program={program!r} uses it" in reason


def test_fp8_needs_a_card_that_multiplies_it(monkeypatch, card):
    request = request_for(make_model(embed_dim=128, channels_mlp_dim=256), "cuda", quantize="fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert "8.9" in PROGRAMS["fp8"].obstacle(request)


def test_channel_mixing_is_the_library_s_where_that_was_fastest(monkeypatch, card):
    request = request_for(make_model(), "cuda")
    _, channels = fused.problems(request)
    for winner, expected in (("cublaslt", True), ("triton", False)):
        record = CardRecord(fastest={problem_key(channels): winner})
        monkeypatch.setattr(fused, "read_cards", lambda record=record: {"CARD": record})
        assert fused.library_is_faster(request) == expected
    assert not fused.library_is_faster(request_for(make_model(act="erf"), "cuda"))
    assert not fused.library_is_faster(request_for(make_model(), "cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_channel_mixing_by_the_library(monkeypatch, dtype):
    """On the CPU the library's epilogue computes the erf flavour, and is right for a model that has it."""
    monkeypatch.setattr(fused, "library_is_faster", lambda _: True)
    model = make_model(act="erf")
    fast = mixerzoo.optimize(model, dtype=dtype, program="fused")
    assert "cuBLASLt's two products" in str(fast.report())
    assert_as_good_as_pytorch(model, images_for(model), dtype, fast)
