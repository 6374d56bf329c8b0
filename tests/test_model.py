"""The model against the paper: sizes, function, initialisation, stochastic depth."""

import dataclasses
import inspect
import math

import pytest
import timm
import torch
from helpers import TINY, randomise, relative_error, state_of
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mixerzoo import Mixer, MixerBlock, MixerConfig, reference
from mixerzoo.config import PRESETS
from mixerzoo.errors import ConfigError, InputSizeError

PARAMETERS = {
    "mixer_s32": 19_104_624,
    "mixer_s16": 18_528_264,
    "mixer_s8": 20_646_504,
    "mixer_b32": 60_293_428,
    "mixer_b16": 59_880_472,
    "mixer_l32": 206_939_264,
    "mixer_l16": 208_196_168,
    "mixer_h14": 432_350_952,
    "mixer_ti4_32": 1_132_170,
}

# layers, patch, channels, tokens, channel-MLP width, token-MLP width: Table 1 of the paper
SIZES = {
    "mixer_s32": (8, 32, 512, 49, 2048, 256),
    "mixer_s16": (8, 16, 512, 196, 2048, 256),
    "mixer_s8": (8, 8, 512, 784, 2048, 256),
    "mixer_b32": (12, 32, 768, 49, 3072, 384),
    "mixer_b16": (12, 16, 768, 196, 3072, 384),
    "mixer_l32": (24, 32, 1024, 49, 4096, 512),
    "mixer_l16": (24, 16, 1024, 196, 4096, 512),
    "mixer_h14": (32, 14, 1280, 256, 5120, 640),
}

# Square, not square, remainder pixels, more channels, more tokens than channels.
GEOMETRIES = {
    "square": {},
    "wide": {"img_size": (32, 64)},
    "remainder": {"img_size": (37, 55), "patch_size": 8},
    "channels": {"in_chans": 5},
    "tall": {"img_size": (96, 32), "patch_size": 8, "embed_dim": 12},
}

FP32_TOLERANCE = 5e-6  # max |difference| / max |reference|


def images_for(config, n=2):
    return torch.randn(n, config.in_chans, *config.image_hw, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    model = Mixer.from_config(PRESETS[name], device="meta")
    assert sum(p.numel() for p in model.parameters()) == count == model.config.num_parameters


@pytest.mark.parametrize(("name", "sizes"), SIZES.items())
def test_sizes_are_the_papers(name, sizes):
    c = PRESETS[name]
    assert (c.depth, c.patch_size, c.embed_dim, c.num_tokens, c.channels_mlp_dim, c.tokens_mlp_dim) == sizes


@pytest.mark.parametrize(
    ("name", "giga"), [("mixer_s32", 1.00), ("mixer_s16", 3.78), ("mixer_b32", 3.24), ("mixer_b16", 12.60)]
)
def test_multiply_adds(name, giga):
    assert PRESETS[name].multiply_adds / 1e9 == pytest.approx(giga, abs=0.006)


def test_multiply_adds_count_what_the_matrix_products_do():
    from torch.utils.flop_counter import FlopCounterMode

    model = Mixer(**TINY)
    with FlopCounterMode(display=False) as counter:
        model(images_for(model.config, n=1))
    assert counter.get_total_flops() == 2 * model.config.multiply_adds


@pytest.mark.parametrize("act", ["tanh", "erf"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("scale", [1.0, 1e-2], ids=["unit", "small"])
def test_blocks_and_logits_equal_the_float64_reference(act, geometry, scale):
    model = randomise(Mixer(**TINY | GEOMETRIES[geometry], act=act)).eval()
    with torch.no_grad():  # a small residual stream makes LayerNorm's eps visible
        model.stem.proj.weight.mul_(scale)
        model.stem.proj.bias.mul_(scale)
        for block in model.blocks:
            for mlp in (block.mlp_tokens, block.mlp_channels):
                mlp.fc2.weight.mul_(scale)
                mlp.fc2.bias.mul_(scale)
    images = images_for(model.config)
    with torch.no_grad():
        _, blocks = model.forward_intermediates(images, output_fmt="NLC")
        logits = model(images)
    expected_blocks, expected_logits = reference.mixer(
        model.state_dict(), images, patch=model.config.patch_size, act=act
    )
    for actual, expected in zip(blocks, expected_blocks, strict=True):
        assert relative_error(actual, expected) <= FP32_TOLERANCE
    assert relative_error(logits, expected_logits) <= FP32_TOLERANCE


@pytest.mark.parametrize("act", ["tanh", "erf"])
def test_a_whole_variant_equals_the_float64_reference(act):
    """Mixer-S/32 at its real size, in fp32: rounding does not pile up over the layers."""
    model = randomise(Mixer.from_config(dataclasses.replace(PRESETS["mixer_s32"], act=act))).eval()
    images = images_for(model.config, n=1)
    with torch.no_grad():
        _, blocks = model.forward_intermediates(images, output_fmt="NLC")
        logits = model(images)
    expected_blocks, expected_logits = reference.mixer(model.state_dict(), images, patch=32, act=act)
    for actual, expected in zip(blocks, expected_blocks, strict=True):
        assert relative_error(actual, expected) <= FP32_TOLERANCE
    assert relative_error(logits, expected_logits) <= FP32_TOLERANCE


def test_reference_tells_the_flavours_apart():
    """The comparison above would notice the wrong GELU, a wrong eps and a lost bias."""
    model = randomise(Mixer(**TINY, act="tanh")).eval()
    images = images_for(model.config)
    state = state_of(model)
    right, _ = reference.mixer(state, images, patch=16, act="tanh")
    wrong, _ = reference.mixer(state, images, patch=16, act="erf")
    assert relative_error(torch.as_tensor(wrong[-1]), right[-1]) > 10 * FP32_TOLERANCE
    without = state | {"blocks.1.mlp_tokens.fc2.bias": torch.zeros(4)}
    wrong, _ = reference.mixer(without, images, patch=16, act="tanh")
    assert relative_error(torch.as_tensor(wrong[-1]), right[-1]) > 10 * FP32_TOLERANCE
    quiet = state | {"stem.proj.bias": torch.zeros(16)}  # a small residual stream, where eps shows
    right, wrong = (reference.mixer(quiet, images * 1e-2, patch=16, act="tanh", eps=eps)[0] for eps in (1e-6, 1e-5))
    assert relative_error(torch.as_tensor(wrong[0]), right[0]) > 10 * FP32_TOLERANCE


@pytest.mark.parametrize(("act", "layer"), [("tanh", "tanh"), ("erf", "none")])
@pytest.mark.parametrize("img_size", [32, (32, 64)])
def test_equals_timm_with_the_same_weights(act, layer, img_size):
    ours = randomise(Mixer(**TINY | {"img_size": img_size}, act=act)).eval()
    theirs = MlpMixer(
        num_classes=5,
        img_size=img_size,
        patch_size=16,
        num_blocks=2,
        embed_dim=16,
        mlp_ratio=(0.5, 4.0),
        act_layer=lambda: nn.GELU(approximate=layer),
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = images_for(ours.config)
    with torch.no_grad():
        assert relative_error(ours(images), theirs(images)) <= FP32_TOLERANCE
        mine, other = (m.forward_intermediates(images)[1] for m in (ours, theirs))
    for a, b in zip(mine, other, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) <= FP32_TOLERANCE


@pytest.mark.parametrize("name", [n for n in SIZES if n not in ("mixer_s8", "mixer_h14")])
def test_state_dicts_go_both_ways_with_timm(name):
    ours = Mixer.from_config(PRESETS[name], device="meta")
    theirs = timm.create_model(f"{name}_224", device="meta")
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_initialisation_is_the_official_one():
    model = Mixer(img_size=64, patch_size=8, embed_dim=128, depth=2, tokens_mlp_dim=96, channels_mlp_dim=512)
    kernels = {n: p for n, p in model.named_parameters() if p.ndim > 1 and not n.startswith("head")}
    assert len(kernels) == 1 + 2 * 4
    for name, kernel in kernels.items():
        fan_in = kernel[0].numel()
        std = fan_in**-0.5
        assert kernel.std().item() == pytest.approx(std, rel=0.05), name  # variance 1 / fan_in
        assert abs(kernel.mean().item()) < 4 * std / math.sqrt(kernel.numel()), name
        bound = 2 * std / 0.87962566103423978  # truncated at two standard deviations of the untruncated normal
        assert bound * 0.95 < kernel.abs().max().item() <= bound * (1 + 1e-6), name
    for name, parameter in model.named_parameters():
        if name.startswith("head") or name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_head_bias_can_start_elsewhere():
    model = Mixer(**TINY, head_bias=-6.9)
    assert (model.head.bias == -6.9).all()
    model.reset_classifier(3)
    assert (model.head.bias == -6.9).all()
    assert (model.head.weight == 0).all()


def test_stochastic_depth_grows_linearly_from_zero():
    model = Mixer(**TINY | {"depth": 5}, drop_path_rate=0.2)
    assert [b.drop_path.drop_prob for b in model.blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert [b.drop_path.drop_prob for b in Mixer(**TINY | {"depth": 1}, drop_path_rate=0.2).blocks] == [0.0]


@pytest.mark.parametrize("rescale", [False, True])
def test_stochastic_depth_drops_each_branch_of_each_sample_alone(rescale):
    """With constant branches t and c, a sample ends at x + {0, t} + {0, c}, rescaled by 1 / keep only if asked."""
    rate = 0.4
    block = MixerBlock(MixerConfig(**TINY, drop_path_rescale=rescale), drop_path_rate=rate)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.mlp_tokens.fc2.bias.fill_(1.0)
        block.mlp_channels.fc2.bias.fill_(10.0)
    n = 4000
    x = torch.zeros(n, 4, 16)
    factor = 1 / (1 - rate) if rescale else 1.0
    outcomes = (block.train()(x) / factor).detach()
    assert (outcomes == outcomes[:, :1, :1]).all()  # one draw a sample and branch
    values, counts = outcomes[:, 0, 0].round().unique(return_counts=True)
    assert values.tolist() == [0.0, 1.0, 10.0, 11.0]
    expected = [rate * rate, (1 - rate) * rate, rate * (1 - rate), (1 - rate) ** 2]
    assert (counts / n).tolist() == pytest.approx(expected, abs=0.04)
    assert (block.eval()(x) == 11.0).all()  # evaluation keeps every branch, unscaled


def test_keyword_arguments_are_the_configs_fields():
    signature = inspect.signature(Mixer.__init__).parameters
    ours = {n: p.default for n, p in signature.items() if n not in ("self", "device", "dtype")}
    assert list(ours.items()) == [(f.name, f.default) for f in dataclasses.fields(MixerConfig)]
    config = MixerConfig(**TINY | {"act": "erf", "norm_eps": 1e-5, "drop_path_rate": 0.1})
    assert Mixer.from_config(config).config == config


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MixerConfig().depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("img_size", 8),
        ("img_size", (224, 15)),
        ("img_size", (224, 224, 3)),
        ("img_size", "224"),
        ("img_size", 224.0),
        ("patch_size", 0),
        ("in_chans", 0),
        ("num_classes", -1),
        ("embed_dim", True),
        ("depth", 0),
        ("depth", 2.5),
        ("tokens_mlp_dim", -4),
        ("channels_mlp_dim", None),
        ("act", "relu"),
        ("norm_eps", 0.0),
        ("drop_rate", 1.0),
        ("drop_path_rate", -0.1),
        ("drop_path_rate", float("nan")),
        ("drop_path_rescale", "yes"),
        ("global_pool", "max"),
        ("head_bias", None),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        Mixer(**{field: value})


@pytest.mark.parametrize("shape", [(2, 3, 32, 31), (2, 3, 31, 32), (2, 1, 32, 32), (3, 32, 32), (2, 3, 64, 64)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(InputSizeError, match=r"\(batch, 3, 32, 32\)"):
        Mixer(**TINY)(torch.zeros(shape))


def test_remainder_pixels_do_not_matter():
    model = randomise(Mixer(**TINY | {"img_size": 120})).eval()
    assert model.config.grid_size == (7, 7)
    images = images_for(model.config)
    changed = images.clone()
    changed[..., 112:, :] = 9.0
    changed[..., :, 112:] = -9.0
    with torch.no_grad():
        assert torch.equal(model(images), model(changed))


def test_empty_batch():
    assert Mixer(**TINY)(torch.zeros(0, 3, 32, 32)).shape == (0, 5)


def test_head_dropout_acts_in_training_only():
    model = randomise(Mixer(**TINY, drop_rate=0.5))
    tokens = torch.randn(64, 4, 16)
    assert not torch.equal(model.train().forward_head(tokens), model.forward_head(tokens))
    assert torch.equal(model.eval().forward_head(tokens), model.forward_head(tokens))


def test_gradient_checkpointing_changes_nothing():
    model = randomise(Mixer(**TINY)).train()
    images = images_for(model.config)

    def gradients():
        model.zero_grad()
        model(images).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    runs = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    plain = gradients()
    assert len(runs) == 2
    model.set_grad_checkpointing()
    recomputed = gradients()
    assert len(runs) == 2 + 4  # each layer once more in the backward pass
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_compiles_to_one_graph():
    model = randomise(Mixer(**TINY)).eval()
    images = images_for(model.config)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(images), model(images)) <= FP32_TOLERANCE


def test_exports():
    model = randomise(Mixer(**TINY)).eval()
    images = images_for(model.config)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = images_for(model.config, n=7)
    with torch.no_grad():
        assert relative_error(program.module()(more), model(more)) <= FP32_TOLERANCE


def test_float64_model_is_exact_enough_to_be_a_reference():
    model = randomise(Mixer(**TINY, dtype=torch.float64)).eval()
    images = images_for(model.config).double()
    with torch.no_grad():
        _, expected = reference.mixer(model.state_dict(), images, patch=16, act="tanh")
        assert relative_error(model(images), expected) <= 1e-12
