"""Our C++ for CPUs: layouts and tables anywhere, the compiled code where the processor has AVX-512."""

import concurrent.futures
import ctypes.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch
from test_engine import images_for, randomised, relative
from torch.nn import functional as F  # noqa: N812

import mixerzoo
from mixerzoo.bench.agreement import measure_agreement
from mixerzoo.engine.folding import fold
from mixerzoo.errors import BuildError, EngineError
from mixerzoo.kernels.cpu import build
from mixerzoo.kernels.cpu.gelu_table import LIMIT, gelu_table, pieces_per_unit
from mixerzoo.kernels.cpu.packing import GELU_FLOOR, pack


def obstacle(number):
    from mixerzoo.engine.programs.native import _machine_obstacle

    return _machine_obstacle(number)


needs_bf16 = pytest.mark.skipif(bool(obstacle("bf16")), reason=f"bf16: {obstacle('bf16')}")
needs_int8 = pytest.mark.skipif(bool(obstacle("int8")), reason=f"int8: {obstacle('int8')}")
BOTH = [pytest.param(None, marks=needs_bf16), pytest.param("int8", marks=needs_int8)]


@pytest.mark.parametrize("act", ["tanh", "erf"])
def test_the_gelu_table(act):
    """Evaluated as the C++ does, in float64: within 1e-4, and what it must be far from 0."""
    table, scale = gelu_table(act), pieces_per_unit()
    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    t = x.abs().clamp(max=LIMIT)
    piece = (t * scale).round().long()
    assert piece.max() == 15
    c0, c1, c2 = table[:, piece]
    gelu = x.clamp(min=0) - (c0 + t * (c1 + t * c2))
    expected = F.gelu(x, approximate="tanh" if act == "tanh" else "none")
    assert (gelu - expected).abs().max() < 1e-4
    assert gelu.min() > -GELU_FLOOR


def test_weights_on_the_right_are_columns_of_words():
    weight = torch.arange(64 * 6).view(64, 6).float()
    words = pack(weight, None, "bf16", "w3")["words"]
    assert words.shape == (2, 3, 32, 2)
    for output, value in ((0, 0), (33, 5), (63, 2)):
        assert words[output // 32, value // 2, output % 32, value % 2] == weight[output, value].bfloat16()


def test_weights_on_the_left_are_rows_of_words():
    weight = torch.arange(1, 20 * 50 + 1).view(20, 50).float()
    words = pack(weight, None, "bf16", "w1")["words"]
    assert words.shape == (2, 2, 14, 32)
    for row, value in ((0, 0), (13, 31), (14, 32), (19, 49)):
        assert words[row // 14, value // 32, row % 14, value % 32] == weight[row, value].bfloat16()
    assert not words[1, :, 6:].any()
    assert not words[:, 1, :, 50 - 32 :].any()


@pytest.mark.parametrize("kind", ["stem", "w1", "w2", "w3", "w4"])
def test_quantised_weights_undo_the_offsets_of_activations(kind):
    """scale * (offset + sum q w) + bias is the product of what the bytes stand for."""
    weight, bias = torch.randn(32, 16), torch.randn(32)
    packed = pack(weight, bias, "int8", kind)
    scale = packed["scale"][:32].double()
    rounded = (weight.double() / scale[:, None]).round()
    assert rounded.abs().max() == 127
    assert (rounded * scale[:, None] - weight).abs().max() <= scale.max() / 2
    bytes_of = torch.randint(0, 256, (16,)).double()
    unit, floor = (0.01, GELU_FLOOR) if kind in ("w2", "w4") else (0.01, 128 * 0.01)
    expected = (rounded * scale[:, None]) @ (bytes_of * unit - floor) + bias
    found = unit * scale * (packed["offset"][:32] + rounded @ bytes_of) + packed["bias"][:32].double()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


SHAPES = [
    {},
    {"act": "erf", "global_pool": ""},
    {"num_classes": 0, "img_size": 28, "tokens_mlp_dim": 15},  # 49 tokens: odd, as are the hidden units
    {"img_size": 4, "tokens_mlp_dim": 1},  # one token
    {"img_size": (12, 20), "in_chans": 5, "norm_eps": 1e-3},
    {"patch_size": 14, "img_size": 196, "tokens_mlp_dim": 40, "embed_dim": 192},  # 196 tokens, 588 values a patch
    {"img_size": 18, "patch_size": 5, "in_chans": 1},  # pixels left over, 25 values a patch
]


@needs_bf16
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_bf16_is_as_exact_as_pytorch(changes):
    model = randomised(**changes)
    images = images_for(model)
    with torch.no_grad():
        twin = mixerzoo.Mixer.from_config(model.config).eval()
        twin.load_state_dict(model.state_dict())
        usual = twin.bfloat16()
        exact = twin_of(model).double()
        allowed = relative(usual(images.bfloat16()), exact(images.double()))
        allowed_features = relative(usual.forward_features(images.bfloat16()), exact.forward_features(images.double()))
        fast = mixerzoo.optimize(model, program="native")
        assert relative(fast(images), exact(images.double())) < 1.5 * allowed
        assert relative(fast.forward_features(images), exact.forward_features(images.double())) < allowed_features


def twin_of(model):
    twin = mixerzoo.Mixer.from_config(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def quantised_rows(x, below=None):
    """The numbers that the bytes of int8.h stand for, a scale for each row."""
    if below is None:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale
    scale = (x.abs().amax(-1, keepdim=True) + below) / 255
    return ((x + below) / scale).round().clamp(min=0) * scale - below


def quantised_weight(weight):
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    return (weight.double() / scale).round() * scale


def emulated_int8(model, images):
    """The definition of the int8 program in float64: which numbers are rounded to which bytes."""
    folded, config = fold(model), model.config
    gelu = "tanh" if config.act == "tanh" else "none"
    patches = F.unfold(images.double(), config.patch_size, stride=config.patch_size).transpose(1, 2)
    x = quantised_rows(patches) @ quantised_weight(folded.stem_weight).T + folded.stem_bias
    for layer in folded.layers:
        y = F.layer_norm(x, x.shape[-1:], layer.gamma1.double(), layer.beta1.double(), config.norm_eps)
        y = quantised_rows(y.transpose(1, 2))
        hidden = F.gelu(y @ quantised_weight(layer.w1).T + layer.b1, approximate=gelu)
        x = x + (quantised_rows(hidden, GELU_FLOOR) @ quantised_weight(layer.w2).T).transpose(1, 2)
        y = quantised_rows(F.layer_norm(x, x.shape[-1:], eps=config.norm_eps))
        hidden = F.gelu(y @ quantised_weight(layer.w3).T + layer.b3, approximate=gelu)
        x = x + quantised_rows(hidden, GELU_FLOOR) @ quantised_weight(layer.w4).T + layer.b4
    return F.layer_norm(x, x.shape[-1:], folded.norm_weight.double(), folded.norm_bias.double(), config.norm_eps)


@needs_int8
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_int8_computes_what_it_is_defined_to(changes):
    """Beside the definition only a few bytes may differ, where a number lies between two of them."""
    model = randomised(**changes)
    images = images_for(model)
    fast = mixerzoo.optimize(model, quantize="int8", program="native")
    with torch.no_grad():
        exact = twin_of(model).double().forward_features(images.double())
        defined = emulated_int8(model, images)
        found = fast.forward_features(images)
    assert relative(found, exact) < 1.15 * relative(defined, exact) + 1e-4
    assert relative(found, defined) < 0.6 * relative(defined, exact) + 1e-4
    assert relative(fast.forward_head(found), fast(images)) < 1e-5


@pytest.mark.parametrize("quantize", BOTH)
def test_results_depend_neither_on_the_batch_nor_on_the_threads(quantize):
    """To the last bit: few threads cut channel mixing into rows, many into rows and columns."""
    model = randomised(img_size=24)
    images = images_for(model, 7)
    fast = mixerzoo.optimize(model, quantize=quantize, program="native")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected, logits = fast.forward_features(images), fast(images)
        for number in (1, 2, 5, 19):
            torch.set_num_threads(number)
            for count in (1, 3, 6, 7):
                assert torch.equal(fast.forward_features(images[:count]), expected[:count])
                assert torch.allclose(fast(images[:count]), logits[:count], rtol=1e-5, atol=1e-5)  # the head is MKL's
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("quantize", BOTH)
def test_a_constant_token_is_finite(quantize):
    """LayerNorm of equal channels is 0, and 0 has no scale."""
    model = randomised()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.bias.fill_(3)
    out = mixerzoo.optimize(model, quantize=quantize, program="native")(torch.zeros(2, 3, 16, 16))
    assert torch.equal(out, torch.full((2, 7), 3.0))


@pytest.mark.parametrize("quantize", BOTH)
def test_several_threads_at_once(quantize):
    """Each with a team of its own."""
    model = randomised()
    fast = mixerzoo.optimize(model, quantize=quantize, program="native")
    batches = [images_for(model, 1 + i % 3) for i in range(8)]
    expected = [fast.forward_features(images) for images in batches]

    def run(images):
        torch.set_num_threads(2)
        return fast.forward_features(images)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = list(threads.map(run, batches * 4))
    assert all(torch.equal(result, expected[i % 8]) for i, result in enumerate(results))


@needs_int8
def test_saved_and_loaded(tmp_path):
    model = randomised()
    images = images_for(model)
    fast = mixerzoo.optimize(model, quantize="int8")
    fast.save(tmp_path / "fast")
    again = mixerzoo.load_optimized(tmp_path / "fast")
    assert again.report().program == "native"
    assert torch.equal(again(images), fast(images))
    assert [path.name for path in sorted((tmp_path / "fast").iterdir())] == ["engine.json", "tensors.safetensors"]


@needs_int8
def test_tensors_too_short_for_the_compiled_code_are_refused(tmp_path):
    """It reads addresses, so a stranger's file must not decide how far."""
    from safetensors.torch import load_file, save_file

    mixerzoo.optimize(randomised(), quantize="int8").save(tmp_path / "fast")
    path = tmp_path / "fast" / "tensors.safetensors"
    tensors = load_file(path)
    tensors["layers.0.w3.words"] = tensors["layers.0.w3.words"][:1].clone()
    save_file(tensors, path)
    with pytest.raises(EngineError, match="are not those of its configuration"):
        mixerzoo.load_optimized(tmp_path / "fast")


@pytest.mark.parametrize("quantize", BOTH)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(quantize, bad):
    """As in the model: one such pixel spoils its own image, all of it, and no other."""
    model = randomised()
    images = images_for(model)
    images[1, 0, 5, 5] = bad
    fast = mixerzoo.optimize(model, quantize=quantize, program="native")
    finite = fast(images).isfinite().all(1)
    assert finite.tolist() == [True, False, True]
    assert not fast.forward_features(images)[1].isfinite().any()


@needs_int8
def test_huge_hidden_values_stay_finite():
    """They wait in half precision, which ends at 65,504."""
    model = randomised()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp_channels.fc1.weight.mul_(1e6)
            block.mlp_channels.fc2.weight.mul_(1e-6)
        assert mixerzoo.optimize(model, quantize="int8", program="native")(images_for(model)).isfinite().all()


@pytest.mark.parametrize("quantize", BOTH)
def test_nobodys_defaults_reach_the_compiled_code(quantize):
    model = randomised()
    images = images_for(model)
    fast = mixerzoo.optimize(model, quantize=quantize, program="native")
    expected = fast(images)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float16, torch.float64):
            torch.set_default_dtype(dtype)
            assert torch.equal(fast(images), expected)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert torch.equal(fast(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images), expected)
    compiled = torch.compile(lambda batch: fast(batch) + 1, backend="eager")
    assert torch.equal(compiled(images), expected + 1)


@pytest.mark.parametrize("quantize", BOTH)
def test_more_images_than_go_through_at_once(quantize, monkeypatch):
    model = randomised()
    images = images_for(model, 7)
    fast = mixerzoo.optimize(model, quantize=quantize, program="native")
    expected, features = fast(images), fast.forward_features(images)
    monkeypatch.setattr("mixerzoo.kernels.cpu.library.AT_ONCE", 3)
    assert torch.equal(fast(images), expected)
    assert torch.equal(fast.forward_features(images), features)


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({"embed_dim": 48}, {}, "embed_dim=48 is no multiple of 64"),
        ({"channels_mlp_dim": 100}, {}, "channels_mlp_dim=100 is no multiple of 64"),
        ({"img_size": 256, "patch_size": 256}, {"quantize": "int8"}, "sums of 196,608 products"),
        ({}, {"quantize": "int8", "dtype": torch.float64}, "float32 at most"),
        ({}, {"dtype": torch.float16}, "bfloat16 and int8 products only"),
    ],
    ids=str,
)
def test_what_it_leaves_to_another_program(changes, arguments, words):
    with pytest.raises(EngineError, match=words):
        mixerzoo.optimize(randomised(**changes), program="native", **arguments)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """No cache folder yet, no other place for compiled code, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    return tmp_path


@pytest.fixture
def compiler(fresh, monkeypatch):
    """Stands for a compiler: copies a library that exists, or fails."""
    path = fresh / "c++"
    path.write_text(
        '#!/bin/sh\n[ -e "$0.broken" ] && { echo out of memory >&2; exit 1; }\n'
        'for last; do :; done\ncp "$0.so" "$last"\n'
    )
    path.chmod(0o755)
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    math = next(name for name in mapped if Path(name).name == ctypes.util.find_library("m"))
    (fresh / "c++.so").write_bytes(Path(math).read_bytes())
    monkeypatch.setenv("CXX", f"{path} -some-flag")
    return path


def kept(folder):
    return [path for path in (folder / "cache" / "mixerzoo").glob("*") if path.suffix == ".so"]


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(BuildError, match=r"CXX names \(no-such-compiler -O3\) does not exist: install g\+\+"):
        build.library("bf16")


def test_what_was_compiled_serves_without_a_compiler(compiler, fresh, monkeypatch):
    build.library("bf16")
    assert len(kept(fresh)) == 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.library("bf16")


def test_a_compiler_that_fails_leaves_nothing(compiler, fresh):
    Path(f"{compiler}.broken").touch()
    with pytest.raises(BuildError, match="failed: out of memory"):
        build.library("bf16")
    assert not list((fresh / "cache" / "mixerzoo").iterdir())


def test_damaged_compiled_code_is_compiled_again(compiler, fresh):
    flags = [*build.FLAGS, *build.INSTRUCTIONS["bf16"]]
    path = fresh / "cache" / "mixerzoo" / f"mixer-bf16-{build._fingerprint(flags)}.so"
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_bytes(b"cut short")
    build.library("bf16")
    assert path.read_bytes() == Path(f"{compiler}.so").read_bytes()


def test_a_cache_that_cannot_be_used_is_replaced_by_a_private_folder(compiler, fresh):
    (fresh / "cache").write_text("a file, not a folder")
    build.library("bf16")
    assert len(list((fresh / "temporary").glob("mixerzoo-*/*.so"))) == 1


def test_code_is_not_loaded_from_where_others_can_write(compiler, fresh):
    folder = fresh / "cache" / "mixerzoo"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (fresh / "temporary").rmdir()
    (fresh / "temporary").write_text("a file, not a folder")
    with pytest.raises(BuildError, match="others may write to it"):
        build.library("bf16")
    assert not list(folder.iterdir())


def test_no_home(compiler, fresh, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    build.library("bf16")
    assert len(list((fresh / "temporary").glob("mixerzoo-*/*.so"))) == 1


@needs_bf16
def test_processes_that_compile_at_the_same_moment(fresh):
    code = "from mixerzoo.kernels.cpu.build import library; print(library('bf16').mixer_forward is not None)"
    environment = os.environ | {"XDG_CACHE_HOME": str(fresh / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[0].strip() for process in started] == ["True"] * 2
    assert len(kept(fresh)) == 1


@pytest.mark.parametrize("quantize", BOTH)
def test_agreement_on_real_images(quantize, shared_data, tmp_path):
    """Every tenth photograph of the test split: ``mixerzoo bench --suite agreement`` takes all of them."""
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            if member.name.removeprefix("./").startswith("test/") and member.name.endswith("7.jpg"):
                archive.extract(member, tmp_path, filter="data")
    (row,) = measure_agreement(tmp_path, [quantize or "bf16"])
    assert row.program in ("native", "compiled")  # the second on processors with AMX
    assert row.num_images == 1000
    assert row.met
