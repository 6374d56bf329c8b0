"""Google's Flax checkpoints: every layout comes out true, every damage is refused by name."""

import io
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from flax_files import LAYOUTS, linen, pre_linen, save_npz
from helpers import TINY, assert_same_state, randomise, relative_error, state_of

from mixerzoo import Mixer, create_model, load_npz, reference
from mixerzoo.errors import ConfigError, DamagedFileError, WeightsError
from mixerzoo.weights.google import read_npz

TOLERANCE = 1e-5  # fp32 against float64, relative to the largest value; the wrong GELU is 2e-4 away


@pytest.fixture
def tiny():
    return randomise(Mixer(**TINY)).eval()


def assert_true_to_the_reference(model, state):
    c = model.config
    images = torch.randn(2, c.in_chans, *c.image_hw, generator=torch.Generator().manual_seed(2))
    blocks, logits = reference.mixer(state, images, patch=c.patch_size, act="tanh")
    with torch.no_grad():
        tokens, outputs = model.forward_intermediates(images, output_fmt="NLC")
        for actual, expected in zip(outputs, blocks, strict=True):
            assert relative_error(actual, expected) <= TOLERANCE
        assert relative_error(model.forward_head(tokens), logits) <= TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_small_mixer(tmp_path, tiny, layout):
    path = save_npz(tmp_path / "w.npz", LAYOUTS[layout](state_of(tiny)))
    model = Mixer(**TINY).eval()
    load_npz(model, path)
    assert_same_state(model, tiny)
    assert_true_to_the_reference(model, state_of(tiny))


@pytest.mark.parametrize(
    ("name", "layout"), [("mixer_b16", "linen"), ("mixer_b16", "pre-linen"), *(("mixer_s32", name) for name in LAYOUTS)]
)
def test_real_sizes(tmp_path, name, layout):
    source = randomise(create_model(name))
    path = save_npz(tmp_path / "w.npz", LAYOUTS[layout](state_of(source)))
    model = create_model(name, device="meta").eval()
    load_npz(model, path)
    assert model.config.act == "tanh"
    assert_same_state(model, source)
    assert_true_to_the_reference(model, state_of(source))


@pytest.mark.parametrize(("norm", "axis"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)])
def test_pre_linen_with_axes_anywhere_and_either_numbering(tmp_path, tiny, norm, axis):
    path = save_npz(tmp_path / "w.npz", pre_linen(state_of(tiny), norm, axis))
    model = Mixer(**TINY)
    load_npz(model, path)
    assert_same_state(model, tiny)


def test_pre_linen_widths_of_one_are_no_surplus_axes(tmp_path):
    sizes = TINY | {"tokens_mlp_dim": 1, "img_size": 16, "embed_dim": 2}  # one token, one hidden unit
    source = randomise(Mixer(**sizes))
    model = Mixer(**sizes)
    load_npz(model, save_npz(tmp_path / "w.npz", pre_linen(state_of(source))))
    assert_same_state(model, source)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_types_orders_and_compression(tmp_path, tiny, dtype, order, compressed):
    half = tiny.half().float() if dtype == "<f2" else tiny
    arrays = {key: np.asarray(array.astype(dtype), order=order) for key, array in linen(state_of(half)).items()}
    model = Mixer(**TINY)
    load_npz(model, save_npz(tmp_path / "w.npz", arrays, compressed=compressed))
    assert_same_state(model, half)


def test_bfloat16(tmp_path, tiny):
    """NumPy has no bfloat16 and stores it as two untyped bytes."""
    rounded = tiny.bfloat16()
    arrays = {}
    for key, array in linen({n: t.float() for n, t in state_of(rounded).items()}).items():
        bits = torch.from_numpy(array).bfloat16().view(torch.int16).numpy()
        arrays[key] = bits.view("V2")
    model = Mixer(**TINY)
    load_npz(model, save_npz(tmp_path / "w.npz", arrays))
    assert_same_state(model, rounded.float())


def test_the_models_own_type_and_device_stay(tmp_path, tiny):
    path = save_npz(tmp_path / "w.npz", linen(state_of(tiny)))
    model = Mixer(**TINY, dtype=torch.bfloat16)
    load_npz(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.head.weight, tiny.head.weight.bfloat16())


def test_checkpoint_path_and_file_take_npz_too(tmp_path):
    source = randomise(create_model("mixer_ti4_32"))
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    assert_same_state(create_model("mixer_ti4_32", checkpoint_path=path), source)
    adapted = create_model(
        "mixer_ti4_32", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, img_size=64, num_classes=2
    )
    assert (adapted.num_classes, adapted.config.tokens_mlp_dim) == (2, 256)


def test_a_model_without_a_head(tmp_path):
    source = randomise(Mixer(**TINY | {"num_classes": 0}))
    model = Mixer(**TINY | {"num_classes": 0})
    load_npz(model, save_npz(tmp_path / "w.npz", linen(state_of(source))))
    assert_same_state(model, source)
    with pytest.raises(WeightsError, match=r"lacks head\.bias, head\.weight"):
        load_npz(Mixer(**TINY), tmp_path / "w.npz")


def test_token_bias_is_loaded_though_the_logits_never_show_it(tmp_path, tiny):
    arrays = linen(state_of(tiny))
    key = "MixerBlock_1/token_mixing/Dense_1/bias"
    changed = arrays | {key: arrays[key] + 1.0}
    models = [Mixer(**TINY).eval(), Mixer(**TINY).eval()]
    for model, content in zip(models, (arrays, changed), strict=True):
        load_npz(model, save_npz(tmp_path / "w.npz", content))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(models[0](images), models[1](images)) < 1e-5
    assert torch.equal(models[1].blocks[1].mlp_tokens.fc2.bias, models[0].blocks[1].mlp_tokens.fc2.bias + 1.0)


# damage


def _missing(arrays):
    del arrays["MixerBlock_1/channel_mixing/Dense_0/bias"]


def _missing_norm(arrays):
    del arrays["pre_head_layer_norm/scale"]


def _missing_last_block(arrays):
    for key in [k for k in arrays if k.startswith("MixerBlock_1/")]:
        del arrays[key]


def _missing_first_block(arrays):
    for key in [k for k in arrays if k.startswith("MixerBlock_0/")]:
        del arrays[key]


def _extra_block(arrays):
    for key in [k for k in arrays if k.startswith("MixerBlock_1/")]:
        arrays[key.replace("_1/", "_2/", 1)] = arrays[key]


def _extra(arrays):
    arrays["MixerBlock_1/LayerNorm_2/bias"] = np.zeros(16, np.float32)


def _misshapen(arrays):
    arrays["MixerBlock_1/channel_mixing/Dense_1/kernel"] = np.zeros((16, 64), np.float32)


def _surplus_axis(arrays):
    arrays["head/kernel"] = arrays["head/kernel"][None]


def _no_kernel(arrays):
    arrays["stem/kernel"] = np.zeros((16, 8, 3, 16), np.float32)


def _nan(arrays):
    arrays["MixerBlock_0/LayerNorm_0/scale"][3] = np.nan


def _infinite(arrays):
    arrays["head/bias"] = np.full(5, 1e300)  # becomes infinite in float32


def _integers(arrays):
    arrays["head/bias"] = np.zeros(5, np.int64)


def _pickled(arrays):
    arrays["head/bias"] = np.array([{"code": "runs"}] * 5, dtype=object)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "lacks MixerBlock_1/channel_mixing/Dense_0/bias"),
        (_missing_norm, "lacks pre_head_layer_norm/scale"),
        (_missing_last_block, r"lacks blocks\.1\."),
        (_missing_first_block, "lacks MixerBlock_0/"),
        (_extra_block, r"unexpected blocks\.2\."),
        (_extra, "unexpected MixerBlock_1/LayerNorm_2/bias"),
        (_misshapen, r"MixerBlock_1/channel_mixing/Dense_1/kernel has shape \(16, 64\).* \(64, 16\)"),
        (_surplus_axis, r"head/kernel has shape \(1, 16, 5\)"),
        (_no_kernel, r"stem/kernel has shape \(16, 8, 3, 16\)"),
        (_nan, "MixerBlock_0/LayerNorm_0/scale holds NaN"),
        (_infinite, "head/bias holds NaN or infinite"),
        (_integers, "head/bias holds int64"),
        (_pickled, "head/bias is a pickled array"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_damage_is_refused_by_name(tmp_path, tiny, damage, message):
    arrays = linen(state_of(tiny))
    damage(arrays)
    path = save_npz(tmp_path / "w.npz", arrays)
    model = randomise(Mixer(**TINY))
    before = state_of(model)
    with pytest.raises(WeightsError, match=message):
        load_npz(model, path)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())  # untouched


def test_names_are_the_files_own_in_older_layouts(tmp_path, tiny):
    arrays = pre_linen(state_of(tiny))
    arrays["Mixer/encoderblock_0/token_mixing_phase_0/kernel2"] = np.zeros((3, 1, 4), np.float32)
    with pytest.raises(WeightsError, match=r"Mixer/encoderblock_0/token_mixing_phase_0/kernel2 has shape \(3, 1, 4\)"):
        read_npz(save_npz(tmp_path / "w.npz", arrays))


def test_strange_arrays_beside_a_training_state_are_refused(tmp_path, tiny):
    arrays = linen(state_of(tiny), "opt/target/") | {"surprise": np.zeros(2)}
    with pytest.raises(WeightsError, match="has unexpected surprise"):
        read_npz(save_npz(tmp_path / "w.npz", arrays))


@pytest.mark.parametrize("cut", [0, 10, 1000, -30, -1])
def test_truncated_archives(tmp_path, tiny, cut):
    path = save_npz(tmp_path / "w.npz", linen(state_of(tiny)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFileError, match=r"not a whole \.npz archive"):
        read_npz(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_anywhere_in_the_data_is_noticed(tmp_path, tiny, compressed):
    path = save_npz(tmp_path / "w.npz", linen(state_of(tiny)), compressed=compressed)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in (members[0], members[len(members) // 2], members[-1]):
        end = member.header_offset + 30 + len(member.filename) + member.compress_size
        damaged = bytearray(whole)
        damaged[end - 1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises((DamagedFileError, WeightsError)):
            read_npz(path)


def test_an_array_longer_than_its_header_says(tmp_path, tiny):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in linen(state_of(tiny)).items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{key}.npy", file.getvalue() + b"\0" * (4 if key == "head/bias" else 0))
    with pytest.raises(DamagedFileError, match="head/bias is not as long as its header says"):
        read_npz(path)


def test_the_same_array_twice(tmp_path, tiny):
    path = save_npz(tmp_path / "w.npz", linen(state_of(tiny)))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("head/bias.npy", b"")
    with pytest.raises(WeightsError, match=r"head/bias\.npy is there twice"):
        read_npz(path)


def _npy_header(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("stem/kernel.npy", _npy_header((1, 1, 1, 1)) + b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="would unpack to more than 100 times its size"):
        read_npz(path)


def test_a_header_that_claims_too_much_allocates_nothing(tmp_path, tiny):
    arrays = linen(state_of(tiny))
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            content = file.getvalue()
            if key == "stem/kernel":
                content = _npy_header((16, 16, 3, 10**12)) + content[-100:]
            archive.writestr(f"{key}.npy", content)
    with pytest.raises(WeightsError, match="embed_dim"):
        read_npz(path)


def test_far_too_many_arrays(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(10_001):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(WeightsError, match="10001 arrays"):
        read_npz(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "whole"), (b"hello", "whole"), (b"\x80\x04cos\nsystem\n.", "whole")]
)
def test_files_that_are_no_archives(tmp_path, content, message):
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=message):
        read_npz(path)


def test_archives_of_other_things(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"readme\.txt is not an array"):
        read_npz(path)
    save_npz(path, {"a": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"no whole Flax checkpoint of a Mixer: it lacks .* and has unexpected a"):
        read_npz(path)
    with pytest.raises(WeightsError, match=re.escape("There is no weights file")):
        read_npz(tmp_path / "absent.npz")


def test_load_npz_takes_npz_files_only(tmp_path):
    with pytest.raises(WeightsError, match="checkpoint_path takes others"):
        load_npz(Mixer(**TINY), tmp_path / "w.safetensors")


ODD_HEADERS = {
    "unterminated": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,",
    "no type": b"{'descr': (), 'fortran_order': False, 'shape': (1,)}\n",
    "unhashable": b"{[]: 1}\n",
    "no text": b"\xff\xfe\n",
    "too little": b"{'shape': (1,)}\n",
}


@pytest.mark.parametrize("header", ODD_HEADERS.values(), ids=ODD_HEADERS)
def test_headers_that_numpy_stumbles_over(tmp_path, tiny, header):
    path = save_npz(tmp_path / "w.npz", linen(state_of(tiny)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("odd.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(DamagedFileError, match="odd has no header that NumPy reads"):
        read_npz(path)


def test_a_damaged_lzma_member(tmp_path, tiny):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for key, array in linen(state_of(tiny)).items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{key}.npy", file.getvalue())
    content = bytearray(path.read_bytes())
    content[60:400] = bytes(340)
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        read_npz(path)


def test_names_of_the_other_layout_are_unexpected(tmp_path, tiny):
    """Nothing is renamed onto something else: the surplus array would win."""
    arrays = pre_linen(state_of(tiny))
    for stray in ("MixerBlock_0/LayerNorm_0/scale", "stem/kernel", "Mixer/encoderblock_0/LayerNorm_1/scale"):
        with pytest.raises(WeightsError, match=f"unexpected {stray}"):
            read_npz(save_npz(tmp_path / "w.npz", arrays | {stray: np.full(16, 9.0, np.float32)}))


def test_missing_arrays_are_named_as_the_file_spells_them(tmp_path, tiny):
    arrays = pre_linen(state_of(tiny))
    del arrays["Mixer/encoderblock_1/token_mixing_phase_0/kernel2"]
    with pytest.raises(WeightsError, match="lacks Mixer/encoderblock_1/token_mixing_phase_0/kernel2"):
        read_npz(save_npz(tmp_path / "w.npz", arrays))
    arrays = linen(state_of(tiny), "params/")
    del arrays["params/head/bias"]
    with pytest.raises(WeightsError, match="lacks params/head/bias"):
        read_npz(save_npz(tmp_path / "w.npz", arrays))


def test_a_feature_extractor_is_refused(tmp_path):
    features = create_model("mixer_ti4_32", features_only=True)
    with pytest.raises(ConfigError, match=r"takes a mixerzoo\.Mixer, not a FeatureGetterNet"):
        load_npz(features, tmp_path / "w.npz")
