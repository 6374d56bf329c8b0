"""Appendix C of the paper and interpolation: what another image size preserves, in float64."""

import dataclasses

import pytest
import torch
from helpers import TINY, TINY_TIMM_ARGS, assert_same_state, randomise, relative_error, state_of, write_folder

import mixerzoo
from mixerzoo import Mixer, create_model
from mixerzoo.config import PRESETS
from mixerzoo.errors import ConfigError, WeightsError
from mixerzoo.resize import resize_token_mlp

SMALL = TINY | {"img_size": (24, 16), "patch_size": 8, "tokens_mlp_dim": 5}  # a grid of 3 x 2: rows are not columns
TILINGS = {"1x1": (1, 1), "1x2": (1, 2), "2x1": (2, 1), "2x2": (2, 2), "3x3": (3, 3), "3x2": (3, 2)}
EXACT = 1e-13


@pytest.fixture
def small():
    return randomise(Mixer(**SMALL, dtype=torch.float64)).eval()


def resized(model, img_size, resize=None):
    copy = Mixer.from_config(model.config, dtype=torch.float64)
    copy.load_state_dict(model.state_dict())
    copy.set_input_size(img_size, resize=resize)
    return copy.eval()


def images_for(model, n=2):
    shape = (n, model.in_chans, *model.config.image_hw)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def tiles_of(images, tiling):
    """The contiguous tiles of a batch in raster order, each a batch of small images."""
    rows, columns = tiling
    return [tile for band in images.chunk(rows, dim=2) for tile in band.chunk(columns, dim=3)]


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@torch.no_grad()
def test_every_layer_treats_each_tile_as_the_small_model_does(small, tiling):
    big = resized(small, (24 * tiling[0], 16 * tiling[1]), "tile")
    assert big.config.tokens_mlp_dim == 5 * tiling[0] * tiling[1]
    images = images_for(big)
    _, layers = big.forward_intermediates(images)  # (N, C, rows, columns)
    for position, tile in enumerate(tiles_of(images, tiling)):
        _, expected = small.forward_intermediates(tile)
        for actual, layer in zip(layers, expected, strict=True):
            assert relative_error(tiles_of(actual, tiling)[position], layer) <= EXACT


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@torch.no_grad()
def test_features_and_logits_are_the_mean_over_the_tiles(small, tiling):
    big = resized(small, (24 * tiling[0], 16 * tiling[1]), "tile")
    images = images_for(big)
    tiles = tiles_of(images, tiling)
    logits = torch.stack([small(tile) for tile in tiles]).mean(0)
    assert relative_error(big(images), logits) <= EXACT
    features = torch.stack([small.forward_head(small.forward_features(t), pre_logits=True) for t in tiles]).mean(0)
    assert relative_error(big.forward_head(big.forward_features(images), pre_logits=True), features) <= EXACT


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@torch.no_grad()
def test_copies_of_an_image_give_its_logits(small, tiling):
    big = resized(small, (24 * tiling[0], 16 * tiling[1]), "tile")
    images = images_for(small)
    assert relative_error(big(images.repeat(1, 1, *tiling)), small(images)) <= EXACT


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@torch.no_grad()
def test_one_patch_reaches_its_tile_and_no_other(small, tiling):
    rows, columns = tiling
    big = resized(small, (24 * rows, 16 * columns), "tile")
    images = images_for(big, n=1)
    changed = images.clone()
    changed[:, :, -24:-16, 8:16] += 1.0  # a patch of the lower left tile
    _, before = big.forward_intermediates(images)
    _, after = big.forward_intermediates(changed)
    difference = (after[-1] - before[-1]).abs().amax(dim=(0, 1)) > 0
    expected = torch.zeros(3 * rows, 2 * columns, dtype=torch.bool)
    expected[-3:, :2] = True
    assert torch.equal(difference, expected)


@torch.no_grad()
def test_twice_two_is_four(small):
    twice = resized(resized(small, (48, 32), "tile"), (96, 64), "tile")
    once = resized(small, (96, 64), "tile")
    assert twice.config == once.config
    images = images_for(once, n=1)
    assert relative_error(twice(images), once(images)) <= EXACT
    order = twice.blocks[0].mlp_tokens.fc1.bias.sort().values
    assert torch.equal(order, once.blocks[0].mlp_tokens.fc1.bias.sort().values)  # the same units, in another order


@torch.no_grad()
def test_tiling_composes_over_the_sides(small):
    down_then_across = resized(resized(small, (48, 16), "tile"), (48, 48), "tile")
    once = resized(small, (48, 48), "tile")
    images = images_for(once, n=1)
    assert relative_error(down_then_across(images), once(images)) <= EXACT


def test_weights_follow_the_papers_index_formula(small):
    """Element by element, kernels written (in, out) as in the paper."""
    big = resized(small, (48, 48), "tile")
    height, width, across, hidden = 3, 2, 3, 5
    old, new = ({n: p.detach() for n, p in m.blocks[1].mlp_tokens.named_parameters()} for m in (small, big))
    for y in range(6):
        for x in range(6):
            r, k, s = y * 6 + x, (y // height) * across + x // width, (y % height) * width + x % width
            column = torch.zeros(hidden * 6, dtype=torch.float64)
            column[k * hidden : (k + 1) * hidden] = old["fc1.weight"].t()[s]
            assert torch.equal(new["fc1.weight"].t()[r], column)
            column[k * hidden : (k + 1) * hidden] = old["fc2.weight"].t()[:, s]
            assert torch.equal(new["fc2.weight"].t()[:, r], column)
            assert new["fc2.bias"][r] == old["fc2.bias"][s]
    assert torch.equal(new["fc1.bias"], old["fc1.bias"].repeat(6))


UNTOUCHED = [((24 * rows, 16 * columns), "tile") for rows, columns in TILINGS.values()]
UNTOUCHED += [((48, 32), "interpolate"), ((40, 24), "interpolate")]


@pytest.mark.parametrize(("size", "resize"), UNTOUCHED)
def test_everything_else_is_untouched(small, size, resize):
    big = state_of(resized(small, size, resize))
    for name, tensor in state_of(small).items():
        if "mlp_tokens" not in name:
            assert torch.equal(big[name], tensor), name


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_off_diagonal_blocks_start_at_zero_and_learn(small, tiling):
    copies = tiling[0] * tiling[1]
    big = resized(small, (24 * tiling[0], 16 * tiling[1]), "tile")
    big(images_for(big)).square().sum().backward()
    for block in big.blocks:
        for layer in (block.mlp_tokens.fc1, block.mlp_tokens.fc2):
            off_diagonal = layer.weight == 0
            assert off_diagonal.sum() * copies == layer.weight.numel() * (copies - 1)
            if copies > 1:
                assert (layer.weight.grad[off_diagonal] != 0).float().mean() > 0.99


def test_parameter_counts_of_the_papers_large_images():
    for name, count in (("mixer_b16", 86_996_392), ("mixer_l16", 280_500_584)):
        model = create_model(name, img_size=448, resize="tile", device="meta")
        assert sum(p.numel() for p in model.parameters()) == count == model.config.num_parameters
        preset = PRESETS[name]
        assert model.config == dataclasses.replace(preset, img_size=448, tokens_mlp_dim=4 * preset.tokens_mlp_dim)


# interpolation


def maps(grid, hidden=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    return {
        "fc1.weight": torch.randn(hidden, tokens, dtype=torch.float64, generator=generator),
        "fc1.bias": torch.randn(hidden, dtype=torch.float64, generator=generator),
        "fc2.weight": torch.randn(tokens, hidden, dtype=torch.float64, generator=generator),
        "fc2.bias": torch.randn(tokens, dtype=torch.float64, generator=generator),
    }


GRIDS = [((4, 6), (9, 6)), ((4, 6), (3, 5)), ((7, 7), (14, 14)), ((14, 14), (7, 7)), ((5, 4), (6, 3))]


@pytest.mark.parametrize(("stored", "wanted"), GRIDS)
def test_constant_maps_keep_their_sums(stored, wanted):
    """A unit that averages all tokens does so on every grid, and a unit that adds the same everywhere too."""
    tensors = maps(stored)
    constant = {n: torch.full_like(t, 0.7) for n, t in tensors.items()}
    new = resize_token_mlp(constant, stored, wanted, "interpolate")
    assert torch.allclose(new["fc1.weight"].sum(1), constant["fc1.weight"].sum(1), rtol=1e-12)
    assert new["fc1.weight"].std() < 1e-12
    for name in ("fc2.weight", "fc2.bias"):
        assert torch.allclose(new[name], torch.full_like(new[name], 0.7), rtol=1e-12)
    assert torch.equal(new["fc1.bias"], constant["fc1.bias"])


@pytest.mark.parametrize(("stored", "wanted"), GRIDS)
def test_interpolation_is_linear_and_treats_rows_as_columns(stored, wanted):
    a, b = maps(stored, seed=1), maps(stored, seed=2)
    both = resize_token_mlp({n: 2 * a[n] + b[n] for n in a}, stored, wanted, "interpolate")
    new_a, new_b = (resize_token_mlp(t, stored, wanted, "interpolate") for t in (a, b))
    turned = {
        "fc1.weight": a["fc1.weight"].unflatten(1, stored).transpose(1, 2).flatten(1),
        "fc1.bias": a["fc1.bias"],
        "fc2.weight": a["fc2.weight"].unflatten(0, stored).transpose(0, 1).flatten(0, 1),
        "fc2.bias": a["fc2.bias"].unflatten(0, stored).t().flatten(),
    }
    new_turned = resize_token_mlp(turned, stored[::-1], wanted[::-1], "interpolate")
    for name, tensor in both.items():
        assert torch.allclose(tensor, 2 * new_a[name] + new_b[name], atol=1e-12), name
    back = new_turned["fc1.weight"].unflatten(1, wanted[::-1]).transpose(1, 2).flatten(1)
    assert torch.allclose(back, new_a["fc1.weight"], atol=1e-12)
    back = new_turned["fc2.weight"].unflatten(0, wanted[::-1]).transpose(0, 1).flatten(0, 1)
    assert torch.allclose(back, new_a["fc2.weight"], atol=1e-12)


def test_a_ramp_stays_a_ramp_inside():
    """Resampling happens at the centres of the patches: a linear map is sampled finer, not shifted."""
    ramp = torch.arange(16, dtype=torch.float64).add(0.5).div(16).repeat(3, 1)  # (3 rows, 16 columns)
    tensors = maps((3, 16)) | {"fc2.bias": ramp.flatten()}
    new = resize_token_mlp(tensors, (3, 16), (3, 32), "interpolate")["fc2.bias"].unflatten(0, (3, 32))
    expected = torch.arange(32, dtype=torch.float64).add(0.5).div(32)
    assert torch.allclose(new[:, 4:-4], expected[4:-4].expand(3, -1), atol=1e-12)


def test_shrinking_is_antialiased():
    """A checkerboard is finer than the smaller grid can show: it averages out instead of turning into stripes."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = ((y + x) % 2 * 2 - 1).double().flatten()
    tensors = maps((16, 16)) | {"fc2.bias": board}
    new = resize_token_mlp(tensors, (16, 16), (6, 6), "interpolate")["fc2.bias"]
    assert new.abs().max() < 0.15


@torch.no_grad()
def test_a_flat_image_gives_nearly_the_same_answer_at_another_size():
    """All tokens equal, so only the sums of the token-mixing maps matter."""
    model = create_model("mixer_ti4_32", pretrained=True, dtype=torch.float64).eval()
    first = model.blocks[0]
    for size in (48, (32, 40), 24):
        other = create_model("mixer_ti4_32", pretrained=True, img_size=size, resize="interpolate", dtype=torch.float64)
        flat = torch.full((1, 1, 128), 0.3, dtype=torch.float64) * torch.linspace(-1, 1, 128, dtype=torch.float64)
        hidden = first.mlp_tokens.fc1(flat.expand(1, 64, 128).transpose(1, 2))
        tokens = other.config.num_tokens
        resampled = other.blocks[0].mlp_tokens.fc1(flat.expand(1, tokens, 128).transpose(1, 2))
        assert relative_error(resampled, hidden) < 0.05


def test_half_precision_weights_are_resampled_in_float32():
    tensors = maps((8, 8))
    exact = resize_token_mlp(tensors, (8, 8), (11, 11), "interpolate")
    half = resize_token_mlp({n: t.half() for n, t in tensors.items()}, (8, 8), (11, 11), "interpolate")
    for name, tensor in half.items():
        assert tensor.dtype == torch.float16
        assert relative_error(tensor, exact[name]) < 2e-3


# through the factory and on models


@pytest.mark.parametrize("size", [64, (32, 64), 48, 24, (40, 96), 33])
@pytest.mark.parametrize("resize", [None, "interpolate"])
def test_the_factory_and_the_model_agree(size, resize):
    created = create_model("mixer_ti4_32", pretrained=True, img_size=size, resize=resize)
    moved = create_model("mixer_ti4_32", pretrained=True)
    moved.set_input_size(size, resize=resize)
    assert created.config == moved.config
    assert_same_state(created, moved)
    height, width = created.config.image_hw
    assert created(torch.zeros(1, 3, height, width)).shape == (1, 10)


def test_the_default_tiles_whole_multiples_and_interpolates_elsewhere():
    widths = {size: create_model("mixer_ti4_32", pretrained=True, img_size=size).config.tokens_mlp_dim for size in
              (32, 33, 64, (32, 96), 48, 16)}  # fmt: skip
    assert widths == {32: 64, 33: 64, 64: 256, (32, 96): 192, 48: 64, 16: 64}


def test_without_weights_the_widths_stay_the_variants():
    assert create_model("mixer_b16", img_size=448, device="meta").config.tokens_mlp_dim == 384
    assert create_model("mixer_b16", img_size=448, resize="interpolate", device="meta").config.tokens_mlp_dim == 384
    assert create_model("mixer_b16", img_size=448, resize="tile", device="meta").config.tokens_mlp_dim == 4 * 384
    assert create_model("mixer_b16", img_size=448, tokens_mlp_dim=99, device="meta").config.tokens_mlp_dim == 99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 48, "resize": "tile"}, "8 x 8 patches .* has 12 x 12"),
        ({"img_size": (64, 48), "resize": "tile"}, "8 x 8 patches .* has 16 x 12"),
        ({"img_size": 16, "resize": "tile"}, "has 4 x 4"),
        ({"img_size": 64, "resize": "stretch"}, "'tile' or 'interpolate'"),
        ({"tokens_mlp_dim": 32}, "tokens_mlp_dim=32: the weights have a token-mixing width of 64"),
        ({"img_size": 64, "tokens_mlp_dim": 128}, "tokens_mlp_dim=128: .* width of 256 at this image size"),
        ({"img_size": 64, "tokens_mlp_dim": 64}, "tokens_mlp_dim=64: .* width of 256 at this image size"),
        ({"img_size": 3}, "smaller than one patch"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_model("mixer_ti4_32", pretrained=True, **arguments)


def test_a_refused_size_leaves_the_model_as_it_was(small):
    before, config = state_of(small), small.config
    for size, resize in ((25, "tile"), (4, None), ("big", None), (48, "stretch")):
        with pytest.raises(ConfigError):
            small.set_input_size(size, resize=resize)
    assert small.config is config
    assert all(torch.equal(t, before[n]) for n, t in small.state_dict().items())


def test_moving_keeps_types_frozen_parameters_and_hooks():
    model = create_model("mixer_ti4_32", pretrained=True, dtype=torch.bfloat16)
    for parameter in model.blocks.parameters():
        parameter.requires_grad_(False)
    seen = []
    model.blocks[0].mlp_tokens.register_forward_hook(lambda *_: seen.append(1))
    model.eval().set_input_size(48)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.blocks.parameters())
    assert model.head.weight.requires_grad
    model(torch.zeros(1, 3, 48, 48, dtype=torch.bfloat16))
    assert seen
    layer = model.blocks[0].mlp_tokens.fc1
    assert (layer.in_features, layer.out_features) == (144, 64)
    assert mixerzoo.create_transform(model)(_grey(100)).shape == (3, 48, 48)


def _grey(side):
    from PIL import Image

    return Image.new("RGB", (side, side), (128, 128, 128))


def test_a_size_with_the_same_grid_changes_nothing_but_the_size(small):
    before = [id(p) for p in small.parameters()]
    small.set_input_size((30, 23))
    assert [id(p) for p in small.parameters()] == before
    assert small(torch.zeros(1, 3, 30, 23, dtype=torch.float64)).shape == (1, 5)


def test_a_model_without_storage_can_be_moved():
    model = create_model("mixer_s32", device="meta")
    model.set_input_size(448)
    assert model.config.tokens_mlp_dim == 1024
    assert all(p.is_meta for p in model.parameters())
    model.set_input_size(160)
    assert model.blocks[0].mlp_tokens.fc1.weight.shape == (1024, 25)


@pytest.mark.parametrize("in_chans", [1, 4, 12])
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("img_size", [64, (40, 48)])
@pytest.mark.parametrize("source", ["tag", "folder"])
def test_every_combination_from_every_source(tmp_path, source, img_size, num_classes, in_chans):
    arguments = {"img_size": img_size, "in_chans": in_chans, "num_classes": num_classes}
    if source == "tag":
        name = "mixer_ti4_32"
    else:
        stored = randomise(Mixer(**TINY | {"patch_size": 8}, act="erf"))
        folder = write_folder(tmp_path / "m", stored, model_args=TINY_TIMM_ARGS | {"patch_size": 8})
        name = f"local-dir:{folder}"
    native = create_model(name, pretrained=True)
    model = create_model(name, pretrained=True, **arguments)
    expected = create_model(name, pretrained=True, in_chans=in_chans, num_classes=num_classes)
    expected.set_input_size(img_size)
    assert model.config == expected.config
    assert_same_state(model, expected)
    assert torch.equal(model.blocks[1].mlp_channels.fc2.weight, native.blocks[1].mlp_channels.fc2.weight)
    out = model.eval()(torch.zeros(1, in_chans, *model.config.image_hw))
    assert out.shape == (1, num_classes or model.embed_dim)


def test_features_of_a_resized_model():
    model = create_model("mixer_ti4_32", pretrained=True, img_size=(64, 32), features_only=True, out_indices=[7])
    (features,) = model(torch.zeros(2, 3, 64, 32))
    assert features.shape == (2, 128, 16, 8)


def test_through_timm():
    import timm

    theirs = timm.create_model("mixer_ti4_32.cifar10", pretrained=True, img_size=64, in_chans=1)
    ours = create_model("mixer_ti4_32", pretrained=True, img_size=64, in_chans=1)
    assert theirs.config == ours.config
    assert_same_state(theirs, ours)


def test_a_checkpoint_path_must_fit_the_size_asked_for(tmp_path):
    from helpers import save_state

    tiled = create_model("mixer_ti4_32", pretrained=True, img_size=64)
    path = save_state(tiled, tmp_path / "w.safetensors")
    again = create_model("mixer_ti4_32", checkpoint_path=path, img_size=64, resize="tile")
    assert_same_state(again, tiled)
    with pytest.raises(WeightsError, match=r"fc1\.weight has shape"):
        create_model("mixer_ti4_32", checkpoint_path=path, img_size=64)


def test_compiles_at_another_size():
    model = create_model("mixer_ti4_32", pretrained=True).eval()
    model.set_input_size(64)
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(images), model(images)) < 5e-6
