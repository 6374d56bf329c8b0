"""Checkpoint files of others as folders: recognised by their shapes, refused if they are anything else."""

import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from flax_files import LAYOUTS, linen, save_npz
from helpers import TINY, assert_same_state, randomise, run_cli, save_state, state_of
from safetensors.torch import save_file

import mixerzoo
from mixerzoo import Mixer, convert, create_model
from mixerzoo.config import PRESETS
from mixerzoo.errors import ConfigError, DamagedFileError, ModelNameError, StorageError, WeightsError
from mixerzoo.weights.sizes import config_of, variant_of


@pytest.fixture
def source():
    return randomise(create_model("mixer_ti4_32"))


def converted(folder):
    return create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flax_archives(tmp_path, source, layout):
    path = save_npz(tmp_path / "w.npz", LAYOUTS[layout](state_of(source)))
    assert convert(path, tmp_path / "out").variant == "mixer_ti4_32"
    model = converted(tmp_path / "out")
    assert_same_state(model, source)
    assert model.config == PRESETS["mixer_ti4_32"]


def _nested(state):
    return {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}


def _averaged(state):
    return {"state_dict": {n: torch.zeros_like(t) for n, t in state.items()}, "state_dict_ema": state}


def _compiled(state):
    return {f"module._orig_mod.{n}": t for n, t in state.items()}


@pytest.mark.parametrize("wrap", [dict, _nested, _averaged, _compiled])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_pickled_state_dicts(tmp_path, source, wrap, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(wrap(state_of(source)), path)
    assert convert(path, tmp_path / "out").variant == "mixer_ti4_32"
    assert_same_state(converted(tmp_path / "out"), source)


def test_safetensors(tmp_path, source):
    convert(save_state(source, tmp_path / "w.safetensors"), tmp_path / "out")
    assert_same_state(converted(tmp_path / "out"), source)


def test_gelu_is_the_formats_unless_a_tag_or_the_user_says(tmp_path, source):
    flax = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    timms = save_state(source, tmp_path / "w.safetensors")
    cases = [
        (flax, {}, "tanh"),
        (flax, {"act": "erf"}, "erf"),
        (timms, {}, "erf"),
        (timms, {"act": "tanh"}, "tanh"),
        (timms, {"model": "mixer_ti4_32"}, "erf"),
        (timms, {"model": "mixer_ti4_32.cifar10"}, "tanh"),
    ]
    for i, (path, arguments, act) in enumerate(cases):
        convert(path, tmp_path / str(i), **arguments)
        assert converted(tmp_path / str(i)).config.act == act


def test_a_tag_brings_labels_preprocessing_and_scores(tmp_path, source):
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    convert(path, tmp_path / "out", model="mixer_ti4_32.cifar10")
    model = converted(tmp_path / "out")
    assert mixerzoo.labels(model)[3] == "cat"
    assert model.pretrained_cfg["crop_pct"] == 1.0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| CIFAR-10 top-1 | 83.91 % |" in card
    assert "license: \"apache-2.0\"" in card  # fmt: skip
    assert "w.npz" in card
    assert not (tmp_path / "out" / "provenance.json").exists()


def test_a_released_file_at_its_real_size_loads_in_timm_and_here(tmp_path):
    import timm

    source = randomise(create_model("mixer_s32.gsam_in1k"))
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    assert convert(path, tmp_path / "out", model="mixer_s32.gsam_in1k").variant == "mixer_s32"
    ours = converted(tmp_path / "out").eval()
    assert_same_state(ours, source)
    assert ours.config == source.config
    assert mixerzoo.labels(ours)[0] == "tench, Tinca tinca"
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert type(theirs).__name__ == "MlpMixer"
    assert_same_state(theirs, source)
    assert "exact GELU" in (tmp_path / "out" / "README.md").read_text()


def test_a_tiled_model_converts_like_any_other(tmp_path):
    tiled = create_model("mixer_ti4_32", pretrained=True, img_size=(64, 32))
    path = save_npz(tmp_path / "w.npz", linen(state_of(tiled)))
    with pytest.raises(WeightsError, match=r"128 patches are no square grid: .*--img-size"):
        convert(path, tmp_path / "out")
    with pytest.raises(WeightsError, match=r"makes 256 patches of 4 pixels; .* is for 128"):
        convert(path, tmp_path / "out", img_size=64)
    assert convert(path, tmp_path / "out", img_size=(64, 32)).variant == "mixer_ti4_32"
    model = converted(tmp_path / "out")
    assert model.config.tokens_mlp_dim == 128
    assert_same_state(model, tiled)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("times", [1, 2])
def test_every_variant_is_recognised_at_any_size(tmp_path, name, times):
    size = PRESETS[name].img_size * times
    for arguments in ({}, {"resize": "tile"}, {"in_chans": 5, "num_classes": 3}):
        model = create_model(name, img_size=size, device="meta", **arguments)
        found = config_of(model.state_dict(), tmp_path, act="tanh")
        assert found == model.config
        assert variant_of(found) == name
    interpolated = create_model(name, img_size=size + PRESETS[name].patch_size, device="meta")
    assert variant_of(config_of(interpolated.state_dict(), tmp_path, act="tanh")) == name


def test_only_without_a_head_is_accepted_as_such(tmp_path, source):
    source.reset_classifier(0)
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    convert(path, tmp_path / "out")
    assert converted(tmp_path / "out").num_classes == 0


# refusals


def _lose_last_block(state):
    for name in [n for n in state if n.startswith("blocks.7.")]:
        del state[name]


def _lose_middle_block(state):
    for name in [n for n in state if n.startswith("blocks.3.")]:
        del state[name]


def _extra_block(state):
    for name in [n for n in state if n.startswith("blocks.7.")]:
        state[name.replace("blocks.7.", "blocks.8.")] = state[name].clone()


def _lose_one(state):
    del state["blocks.2.norm2.bias"]


def _extra(state):
    state["blocks.2.gamma"] = torch.ones(3)


def _misshape(state):
    state["blocks.2.mlp_channels.fc1.weight"] = torch.zeros(512, 127)


def _nan(state):
    state["norm.weight"][5] = float("nan")


def _integers(state):
    state["norm.weight"] = torch.ones(128, dtype=torch.int32)


def _no_stem(state):
    del state["stem.proj.weight"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose_last_block, "nearest is mixer_ti4_32, but it has depth 7 instead of 8"),
        (_extra_block, "depth 9 instead of 8"),
        (_lose_middle_block, r"lacks blocks\.3\."),
        (_lose_one, r"lacks blocks\.2\.norm2\.bias"),
        (_extra, r"unexpected blocks\.2\.gamma"),
        (_misshape, r"blocks\.2\.mlp_channels\.fc1\.weight has shape \(512, 127\)"),
        (_nan, r"norm\.weight holds NaN"),
        (_integers, r"norm\.weight holds torch\.int32"),
        (_no_stem, r"stem\.proj\.weight is not there"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_state_dicts_that_are_no_whole_mixer(tmp_path, source, damage, message, suffix):
    state = state_of(source)
    damage(state)
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    with pytest.raises(WeightsError, match=message):
        convert(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("lost", ["MixerBlock_7/", "MixerBlock_4/LayerNorm_0/bias"])
def test_flax_archives_that_are_not_whole(tmp_path, source, lost):
    arrays = {key: array for key, array in linen(state_of(source)).items() if not key.startswith(lost)}
    path = save_npz(tmp_path / "w.npz", arrays)
    with pytest.raises(WeightsError, match=f"depth 7 instead of 8|lacks {lost}"):
        convert(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.npz"]


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": {"w": torch.ones(1)}, "extra": _Malicious(str(trap))}, tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Malicious(str(trap))))
    for name in ("w.pth", "plain.pth"):
        with pytest.raises(WeightsError, match="refused"):
            convert(tmp_path / name, tmp_path / "out")
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut"])
def test_pickles_that_are_none(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"no checkpoint of torch's|not a whole checkpoint"):
        convert(tmp_path / "w.pth", tmp_path / "out")


def test_a_pickle_without_a_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        convert(tmp_path / "w.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("mixer_b16", WeightsError, "holds mixer_ti4_32, not mixer_b16"),
        ("mixer_s16.gsam_in1k", WeightsError, "holds mixer_ti4_32, not mixer_s16"),
        ("mixer_b61", ModelNameError, "Did you mean 'mixer_b16'"),
    ],
)
def test_a_file_that_is_another_model(tmp_path, source, model, error, message):
    with pytest.raises(error, match=message):
        convert(save_state(source, tmp_path / "w.safetensors"), tmp_path / "out", model=model)


def test_a_file_that_is_another_tag(tmp_path):
    source = create_model("mixer_ti4_32", num_classes=7)
    with pytest.raises(WeightsError, match=r"is not mixer_ti4_32\.cifar10: num_classes 7 instead of 10"):
        convert(save_state(source, tmp_path / "w.safetensors"), tmp_path / "out", model="mixer_ti4_32.cifar10")


def test_sizes_of_nobody(tmp_path):
    path = save_state(Mixer(**TINY), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="fits no variant; the nearest is"):
        convert(path, tmp_path / "out")


def _new(folder):
    folder.mkdir()
    return folder


def test_nothing_is_overwritten(tmp_path, source, monkeypatch):
    path = save_state(source, tmp_path / "w.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty: give a new folder"):
        convert(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        convert(path, path)
    monkeypatch.chdir(_new(tmp_path / "here"))
    with pytest.raises(ConfigError, match="is the current folder"):
        convert(path, ".")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    convert(path, tmp_path / "empty")
    assert_same_state(converted(tmp_path / "empty"), source)


def test_a_folder_that_cannot_be_made(tmp_path, source):
    path = save_state(source, tmp_path / "w.safetensors")
    with pytest.raises(StorageError, match="cannot be written"):
        convert(path, path / "out")


def test_missing_files(tmp_path):
    for name in ("w.npz", "w.pth", "w.safetensors", "nothing"):
        with pytest.raises(WeightsError, match="There is no weights file"):
            convert(tmp_path / name, tmp_path / "out")
    (tmp_path / "w.txt").write_text("hello")
    with pytest.raises(DamagedFileError, match="not a whole safetensors file"):
        convert(tmp_path / "w.txt", tmp_path / "out")


_KILLED = """
import sys
import mixerzoo.weights.save as save
original = save.write_tensors
def write(*args):
    original(*args)
    print("here", flush=True)
    sys.stdin.read()
save.write_tensors = write
import mixerzoo
mixerzoo.convert(sys.argv[1], sys.argv[2])
"""


def test_a_killed_conversion_leaves_no_folder(tmp_path, source):
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    command = [sys.executable, "-c", _KILLED, str(path), str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout.readline() == "here\n", process.stderr.read()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    convert(path, tmp_path / "out")
    assert_same_state(converted(tmp_path / "out"), source)


def test_command_line(tmp_path, source):
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    result = run_cli("convert", path, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"mixer_ti4_32, tanh GELU (Flax's): local-dir:{tmp_path / 'out'}\n"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "mixer_ti4_32"
    again = run_cli("convert", path, tmp_path / "out")
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
    rectangular = create_model("mixer_ti4_32", pretrained=True, img_size=(64, 32))
    wide = save_npz(tmp_path / "wide.npz", linen(state_of(rectangular)))
    result = run_cli("convert", wide, tmp_path / "wide", "--img-size", 64, 32, "--act", "erf")
    assert result.returncode == 0, result.stderr
    assert converted(tmp_path / "wide").config.image_hw == (64, 32)


@pytest.mark.parametrize("kind", ["sparse", "meta", "expanded"])
def test_tensors_that_are_none(tmp_path, source, kind):
    state = state_of(source)
    state["norm.weight"] = {
        "sparse": torch.ones(128).to_sparse(),
        "meta": torch.ones(128, device="meta"),
        "expanded": torch.ones(1, 1).expand(10**7, 128),
    }[kind]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="more than 100 times" if kind == "expanded" else "is no dense tensor"):
        convert(tmp_path / "w.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_share_memory_are_stored_apart(tmp_path, source):
    state = state_of(source)
    state["blocks.1.norm1.bias"] = state["blocks.0.norm1.bias"]
    state["blocks.1.norm2.bias"] = state["blocks.2.mlp_channels.fc1.bias"][:128]
    torch.save(state, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "out")
    model = converted(tmp_path / "out")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


def test_a_configuration_beside_the_weights_is_heeded(tmp_path):
    """A folder of ours whose file is converted once more: nothing that the configuration says is guessed or lost."""
    model = create_model("mixer_ti4_32", pretrained=True, img_size=(64, 32))
    mixerzoo.save_model(model, tmp_path / "m", preprocessing={"mean": (0.1, 0.2, 0.3)})
    found = convert(tmp_path / "m" / "model.safetensors", tmp_path / "out")
    assert mixerzoo.labels(f"local-dir:{tmp_path / 'out'}")[3] == "cat"
    assert converted(tmp_path / "out").pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert found.act_reason == "as the config.json beside it says"
    assert found.config == model.config
    assert_same_state(converted(tmp_path / "out"), model)


def test_tiled_and_then_interpolated(tmp_path):
    model = create_model("mixer_ti4_32", pretrained=True, img_size=64)
    model.set_input_size(48)
    found = convert(save_npz(tmp_path / "w.npz", linen(state_of(model))), tmp_path / "out")
    assert (found.variant, found.config.tokens_mlp_dim) == ("mixer_ti4_32", 256)


def test_other_channels_get_their_own_preprocessing(tmp_path):
    source = randomise(create_model("mixer_ti4_32", in_chans=12))
    convert(save_state(source, tmp_path / "w.safetensors"), tmp_path / "out")
    described = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert len(described["mean"]) == len(described["std"]) == 12


def test_a_known_official_file_is_not_mistaken(tmp_path, monkeypatch):
    """The shapes of SAM's, GSAM's and the paper's B/16 are the same; their hashes are not."""
    row = mixerzoo.zoo.WEIGHTS["mixer_s32.gsam_in1k"]
    source = randomise(create_model("mixer_s32.gsam_in1k"))
    (tmp_path / "checksums.json").write_text(json.dumps({row.npz_url: "0" * 64}))
    monkeypatch.setattr("mixerzoo.weights.checksums.CHECKSUMS_FILE", tmp_path / "checksums.json")
    path = save_npz(tmp_path / "w.npz", linen(state_of(source)))
    with pytest.raises(WeightsError, match=r"is not mixer_s32\.gsam_in1k, whose official file has SHA-256 0000"):
        convert(path, tmp_path / "out", model="mixer_s32.gsam_in1k")


def test_half_precision_archives_become_float32(tmp_path, source):
    arrays = {key: array.astype(np.float16) for key, array in linen(state_of(source)).items()}
    convert(save_npz(tmp_path / "w.npz", arrays), tmp_path / "out")
    model = converted(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.norm.weight, source.norm.weight.half().float())
