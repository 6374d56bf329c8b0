"""FP8 channel mixing: its definition, the interpreted kernels against it, and what rounding to three bits costs."""

import tarfile

import pytest
import torch
from op_checks import distance
from test_engine_cuda import exact_results, images_for, make_model
from torch.nn import functional as F  # noqa: N812

import mixerzoo
from mixerzoo.data.folder import open_folder
from mixerzoo.engine.fp8_reference import Fp8Layer, channel_mlp, emulate, pack_channels
from mixerzoo.errors import EngineError
from mixerzoo.kernels import layer_norm, linear, linear_tiles
from mixerzoo.kernels.fp8_format import FP8, LARGEST, hidden_factors, quantise_rows, row_factor
from mixerzoo.kernels.inference import Fp8ChannelWeights, mix_channels_fp8

WIDE = {"embed_dim": 128, "channels_mlp_dim": 192}


def fp8_layer(channels=64, hidden=96):
    """A layer of which only channel mixing is used, and its float32 weights."""
    w3, w4 = torch.randn(hidden, channels) * channels**-0.5, torch.randn(channels, hidden) * hidden**-0.5
    weights = w3, 0.3 * torch.randn(hidden), w4, 0.3 * torch.randn(channels)
    return Fp8Layer(*[w3.new_empty(0)] * 5, *pack_channels(*weights)), weights


@pytest.mark.parametrize("act", ["tanh", "erf"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_kernels_compute_their_definition(dtype, act):
    config = make_model(act=act).config
    layer, _ = fp8_layer(80, 112)  # neither fills a step
    x = (3.0 * torch.randn(2, 49, 80) + torch.randn(2, 49, 1)).to(dtype)
    expected = channel_mlp(x, layer, config)
    mix_channels_fp8(x, Fp8ChannelWeights(*layer[5:]), config.norm_eps, act)
    assert distance(x, expected) < 1e-3  # a sum in another order may round to the next FP8 number


@pytest.mark.parametrize("numbers", ["bfloat16", "fp8"])
def test_nothing_is_read_or_written_beside_a_buffer(numbers):
    """Bytes around every tensor stay as they are and make no difference; 98 rows, 80 and 112 columns fill no tile."""
    results = []
    for canary in (0x55, 0xFF):  # 0xFF is NaN in every type
        buffers = []

        def put(tensor, canary=canary, buffers=buffers):
            size = tensor.numel() * tensor.element_size()
            buffer = torch.full((size + 512,), canary, dtype=torch.uint8)
            buffers.append((buffer, size))
            view = buffer[256 : 256 + size].view(tensor.dtype).view(tensor.shape)
            return view.copy_(tensor)

        launches, written = engine_launches(numbers, put)
        for launch in launches:
            launch()
        assert all((b[:256] == canary).all() and (b[256 + size :] == canary).all() for b, size in buffers)
        results.append([tensor.float() for tensor in written])
    for tame, wild in zip(*results, strict=True):
        assert torch.equal(tame, wild)
        assert torch.isfinite(tame).all()
        assert tame.any()


def engine_launches(numbers, put):
    """Channel mixing's kernels on tensors that ``put`` places, and what they write."""
    torch.manual_seed(0)
    x, (mean, rstd) = put(torch.randn(2, 49, 80).bfloat16()), (put(torch.zeros(98)) for _ in range(2))
    layer, _ = fp8_layer(80, 112)
    w3, scale3, b3, factor3, w4, scale4, b4 = (put(tensor) for tensor in layer[5:])
    less, tile = put(torch.randn(80)), linear_tiles.LinearTile(32, 32, 32, 4, 2)
    if numbers == "fp8":
        y, z = put(torch.zeros(98, 80).to(FP8)), put(torch.zeros(98, 112).to(FP8))
        launches = [
            layer_norm.describe_layer_norm(x, None, None, y, mean, rstd, 1e-6, row_factor(80), less),
            linear.describe_fp8_gelu(y, w3, scale3, b3, factor3, z, "tanh", tile),
            linear.describe_linear_residual(z, w4, b4, x, None, x, tile, scale4),
        ]
        return launches, (y, z, x, mean, rstd)
    w3, z = put(w3.bfloat16() / 80), put(torch.zeros(98, 112).bfloat16())
    launches = [
        layer_norm.describe_layer_norm(x, None, None, None, mean, rstd, 1e-6),
        linear.describe_normalised_gelu(x, (mean, rstd), w3, put(w3.float().sum(1)), b3, z, "erf", tile),
    ]
    return launches, (z, mean, rstd)


def test_fp8_is_near_float32():
    """The error of a layer is what rounding to three bits makes it, and no image can overflow."""
    config = make_model().config
    layer, (w3, b3, w4, b4) = fp8_layer()
    x = torch.randn(4, 49, 64)
    x[0, :, 3] = 1e4  # one channel as large as LayerNorm allows
    x[1] = 7.0  # nothing left of it
    y = F.layer_norm(x, (64,), eps=config.norm_eps)
    exact = F.linear(F.gelu(F.linear(y, w3, b3), approximate="tanh"), w4, b4)
    assert distance(channel_mlp(x, layer, config) - x, exact) < 0.06


def test_bounds_hold_for_the_worst_row():
    w3, b3 = torch.randn(16, 32), torch.randn(16)
    w3 -= w3.mean(1, keepdim=True)
    worst = F.layer_norm(w3, (32,), eps=0.0)  # the rows that the weights answer to most
    hidden = F.gelu(F.linear(worst, w3, b3.abs())).diagonal() * hidden_factors(w3, b3)
    assert hidden.max() <= LARGEST * 1.0001
    assert hidden.min() > 0.9 * LARGEST
    spike = F.layer_norm(torch.eye(32), (32,), eps=0.0)
    assert 0.9 * LARGEST < spike.max() * row_factor(32) <= LARGEST
    numbers, scale = quantise_rows(torch.zeros(2, 8))
    assert not numbers.float().any()
    assert torch.isfinite(scale).all()


def test_interpreted_rounding_to_fp8_is_pytorch_s():
    x = torch.randn(8, 512) * torch.logspace(-6, 0, 512)
    y = torch.empty(8, 512, dtype=FP8)
    mean, rstd = torch.empty(8), torch.empty(8)
    layer_norm.describe_layer_norm(x, None, None, y, mean, rstd, 1e-6, 16.0)()
    expected = ((x - mean[:, None]) * (16.0 * rstd)[:, None]).to(FP8)
    assert (y.float() != expected.float()).sum() <= 4


@pytest.mark.parametrize("act", ["tanh", "erf"])
def test_the_fp8_program_is_its_emulation(act):
    model = make_model(**WIDE, act=act)
    fast = mixerzoo.optimize(model, quantize="fp8", program="fp8")
    images = images_for(model)
    with torch.inference_mode():
        emulated = emulate(fast._tensors, fast.request)
        assert distance(fast(images), emulated.logits(images)) < 5e-3
    logits, features = exact_results(model, images)
    assert distance(fast(images), logits) < 0.06
    assert distance(fast.forward_features(images), features) < 0.06
    assert "float8_e4m3fn" in str(fast.report())


@pytest.mark.parametrize(
    ("changes", "arguments", "reason"),
    [
        ({}, {}, "quantize='fp8' asks for it"),
        ({}, {"quantize": "fp8", "dtype": torch.float32}, "not in float32"),
        ({"embed_dim": 72}, {"quantize": "fp8"}, "multiples of 16, and embed_dim is 72"),
        ({"channels_mlp_dim": 100}, {"quantize": "fp8"}, "channels_mlp_dim is 100"),
    ],
)
def test_fp8_says_what_it_cannot_run(changes, arguments, reason):
    with pytest.raises(EngineError, match=f"'fp8' cannot run this: .*{reason}"):
        mixerzoo.optimize(make_model(**changes), program="fp8", **arguments)


def test_fp8_agrees_with_float32_on_real_photographs(shared_data, tmp_path):
    """A few hundred of the test split, in emulation."""
    with tarfile.open(shared_data / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            if member.name.removeprefix("./").startswith("test/") and member.name.endswith("37.jpg"):
                archive.extract(member, tmp_path, filter="data")
    model = mixerzoo.create_model("mixer_ti4_32.cifar10", pretrained=True).eval()
    dataset = open_folder(tmp_path, ("test",), mixerzoo.create_transform(model))
    images = torch.stack([image for image, _ in dataset])
    fast = mixerzoo.optimize(model, quantize="fp8", program="fp8")
    with torch.inference_mode():
        agree = emulate(fast._tensors, fast.request).logits(images).argmax(1) == model(images).argmax(1)
    assert len(agree) == 100
    assert agree.double().mean() >= 0.95  # 98.5 % of all ten thousand; here one standard error is 1.2 %
