"""Names, arguments and what create_model makes of them; folders and files as sources of weights."""

import json
import warnings

import pytest
import timm
import torch
from helpers import TINY, TINY_TIMM_ARGS, assert_same_state, randomise, save_state, state_of, write_folder

import mixerzoo
from mixerzoo import Mixer, create_model
from mixerzoo.config import PRESETS
from mixerzoo.errors import ConfigError, DamagedFileError, LabelsUnknownError, ModelNameError, WeightsError
from mixerzoo.zoo import DEFAULT_TAGS, WEIGHTS


@pytest.fixture
def tiny():
    return randomise(Mixer(**TINY)).eval()


@pytest.mark.parametrize("name", PRESETS)
def test_every_variant_by_name(name):
    model = create_model(name, device="meta")
    assert isinstance(model, Mixer)
    assert model.config == PRESETS[name]
    assert model.pretrained_cfg["architecture"] == name


def test_arguments_reach_the_model():
    model = create_model(
        "mixer_s32",
        num_classes=7,
        in_chans=2,
        img_size=(64, 96),
        act="erf",
        tokens_mlp_dim=10,
        drop_rate=0.1,
        drop_path_rate=0.2,
        global_pool="",
        device="cpu",
        dtype=torch.bfloat16,
    )
    c = model.config
    assert (c.num_classes, c.in_chans, c.image_hw, c.act, c.tokens_mlp_dim) == (7, 2, (64, 96), "erf", 10)
    assert (c.drop_rate, c.drop_path_rate, c.global_pool) == (0.1, 0.2, "")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    images = torch.randn(1, 2, 64, 96, dtype=torch.bfloat16)
    assert model(images).shape == (1, 6, 7)


def test_without_weights_is_initialised():
    model = create_model("mixer_ti4_32")
    assert model.training
    assert model.blocks[0].mlp_tokens.fc1.weight.std() > 0.05
    assert (model.head.weight == 0).all()


def test_features_only_with_weights():
    model = create_model("mixer_ti4_32", pretrained=True, features_only=True, out_indices=[0, 2]).eval()
    full = create_model("mixer_ti4_32", pretrained=True).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first, third = model(images)
        _, maps = full.forward_intermediates(images, indices=[0, 2])
    assert torch.equal(first, maps[0])
    assert torch.equal(third, maps[1])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mixer_b61", "'mixer_b16'"),
        ("vit_base_patch16_224", "list_models"),
        ("mixer_b16.goog_in2k", "'goog_in21k'"),
        ("mixer_l32.goog_in1k", "no weights were ever released"),
        ("hf_hub:org/name", "'hf-hub'"),
        ("http://example.com/model", "local-dir:path"),
        ("timm/mixer_b16_224.goog_in21k", "hf-hub:timm/mixer_b16_224.goog_in21k"),
        ("local-dir:/no/such/folder", "config.json"),
        ("", "no model"),
    ],
)
def test_wrong_names_get_a_hint(name, hint):
    with pytest.raises(ModelNameError) as caught:
        create_model(name, pretrained=True)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["mixer_l32", "mixer_h14"])
def test_variants_without_weights_say_which_have_some(name):
    with pytest.raises(WeightsError) as caught:
        create_model(name, pretrained=True)
    assert all(variant in str(caught.value) for variant in DEFAULT_TAGS)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("mixer_b16.goog_in21k_ft_in1k", "goog_in1k"),
        ("mixer_l16.goog_in21k_ft_in1k", "goog_in1k"),
        ("mixer_b16_224.goog_in21k_ft_in1k", "goog_in1k"),
    ],
)
def test_wrong_labels_resolve_with_the_reason(name, truth):
    with pytest.warns(UserWarning, match=f"{truth}: those weights were trained on ImageNet-1k alone") as caught:
        model = create_model(name, device="meta")
    assert model.pretrained_cfg["tag"] == truth
    assert caught[0].filename == __file__


def test_timm_names_are_understood():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = create_model("mixer_b16_224.goog_in21k", device="meta")
    assert isinstance(model, Mixer)
    assert model.num_classes == 21843


def test_list_models():
    assert set(mixerzoo.list_models()) == set(PRESETS)
    assert set(mixerzoo.list_models(pretrained=True)) == set(WEIGHTS)
    assert mixerzoo.list_models("*_l*") == ["mixer_l16", "mixer_l32"]
    assert mixerzoo.list_models("mixer_b32.*") == ["mixer_b32.gsam_in1k", "mixer_b32.sam_in1k"]
    assert set(mixerzoo.list_models("*gsam*", pretrained=True)) == {n for n in WEIGHTS if "gsam" in n}
    assert mixerzoo.list_models("resnet*") == []


def test_is_model():
    assert mixerzoo.is_model("mixer_b16")
    assert mixerzoo.is_model("mixer_b16.sam_in1k")
    assert mixerzoo.is_model("mixer_b16_224.goog_in21k_ft_in1k")
    assert not mixerzoo.is_model("mixer_b16.nonsense")
    assert not mixerzoo.is_model("resnet50")


def test_get_pretrained_cfg():
    assert mixerzoo.get_pretrained_cfg("mixer_b16").tag == "goog_in1k"
    cfg = mixerzoo.get_pretrained_cfg("mixer_b16.miil_in21k")
    assert (cfg.num_classes, cfg.mean, cfg.interpolation) == (11221, (0.0, 0.0, 0.0), "bilinear")
    cfg.num_classes = 1  # a copy
    assert mixerzoo.get_pretrained_cfg("mixer_b16.miil_in21k").num_classes == 11221
    with pytest.raises(ModelNameError):
        mixerzoo.get_pretrained_cfg("mixer_b16.x")


def test_labels():
    assert mixerzoo.labels("mixer_b16")[0] == "tench, Tinca tinca"
    assert len(mixerzoo.labels("mixer_b16.goog_in21k")) == 21843
    assert len(mixerzoo.labels("mixer_b16.miil_in21k")) == 11221
    assert mixerzoo.labels("mixer_ti4_32")[:2] == ["airplane", "automobile"]
    model = create_model("mixer_ti4_32", pretrained=True)
    assert mixerzoo.labels(model)[-1] == "truck"
    model.reset_classifier(3)
    with pytest.raises(LabelsUnknownError, match="not known"):
        mixerzoo.labels(model)


def test_out_indices_without_features_only_is_refused():
    with pytest.raises(ConfigError, match="features_only"):
        create_model("mixer_ti4_32", out_indices=[1])


@pytest.mark.parametrize("field", [{"act": "relu"}, {"img_size": 3}, {"in_chans": 0}, {"num_classes": -1}])
def test_bad_arguments_are_named(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        create_model("mixer_ti4_32", **field)


# weights from files


def test_checkpoint_path_is_loaded_strictly(tmp_path):
    source = randomise(create_model("mixer_ti4_32"))
    path = save_state(source, tmp_path / "w.safetensors")
    model = create_model("mixer_ti4_32", checkpoint_path=path)
    assert_same_state(model, source)
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    again = create_model("mixer_ti4_32", num_classes=10, checkpoint_path=str(path), dtype=torch.bfloat16)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    with pytest.raises(WeightsError, match=r"head.weight has shape \(10, 128\), the model needs \(11, 128\)"):
        create_model("mixer_ti4_32", num_classes=11, checkpoint_path=path)


def test_checkpoint_path_for_another_geometry(tmp_path):
    arguments = {"img_size": 64, "in_chans": 1, "num_classes": 3, "tokens_mlp_dim": 24}
    source = randomise(create_model("mixer_ti4_32", **arguments))
    path = save_state(source, tmp_path / "w.safetensors")
    assert_same_state(create_model("mixer_ti4_32", checkpoint_path=path, **arguments), source)


def test_training_does_not_write_into_the_mapped_file(tmp_path):
    path = save_state(randomise(create_model("mixer_ti4_32")), tmp_path / "w.safetensors")
    before = path.read_bytes()
    model = create_model("mixer_ti4_32", checkpoint_path=path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before


def _drop(state):
    del state["blocks.1.mlp_tokens.fc2.bias"]


def _add(state):
    state["blocks.8.norm1.weight"] = torch.ones(128)


def _misshape(state):
    state["norm.bias"] = torch.zeros(127)


def _integers(state):
    state["norm.bias"] = torch.zeros(128, dtype=torch.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, "lacks blocks.1.mlp_tokens.fc2.bias"),
        (_add, "unexpected blocks.8.norm1.weight"),
        (_misshape, r"norm.bias has shape \(127,\), the model needs \(128,\)"),
        (_integers, "floating-point"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, damage, message):
    from safetensors.torch import save_file

    state = state_of(create_model("mixer_ti4_32"))
    damage(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        create_model("mixer_ti4_32", checkpoint_path=tmp_path / "w.safetensors")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = save_state(create_model("mixer_ti4_32"), tmp_path / "w.safetensors")
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            create_model("mixer_ti4_32", checkpoint_path=path)
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="`mixerzoo convert` reads"):
        create_model("mixer_ti4_32", checkpoint_path=tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no weights file"):
        create_model("mixer_ti4_32", checkpoint_path=tmp_path / "absent.safetensors")
    (tmp_path / "w.npz").write_bytes(b"PK")
    with pytest.raises(DamagedFileError, match=r"not a whole \.npz archive"):
        create_model("mixer_ti4_32", checkpoint_path=tmp_path / "w.npz")


def test_pretrained_with_another_head_and_stem():
    full = create_model("mixer_ti4_32", pretrained=True)
    model = create_model("mixer_ti4_32", pretrained=True, num_classes=3, in_chans=1)
    assert (model.head.weight == 0).all()
    assert model.head.weight.shape == (3, 128)
    assert torch.allclose(model.stem.proj.weight, full.stem.proj.weight.sum(dim=1, keepdim=True))
    assert torch.equal(model.blocks[3].mlp_channels.fc1.weight, full.blocks[3].mlp_channels.fc1.weight)
    headless = create_model("mixer_ti4_32", pretrained=True, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled = full.eval().forward_head(full.forward_features(images), pre_logits=True)
        assert torch.equal(headless(images), pooled)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 10, 12])
def test_stem_follows_timms_rule(in_chans):
    """One channel: kernels are summed. More: they repeat in order, rescaled so that sums over channels keep size."""
    stored = create_model("mixer_ti4_32", pretrained=True).stem.proj.weight
    adapted = create_model("mixer_ti4_32", pretrained=True, in_chans=in_chans).stem.proj.weight
    assert adapted.shape[1] == in_chans
    if in_chans == 1:
        assert torch.allclose(adapted, stored.sum(dim=1, keepdim=True), atol=1e-6)
    else:
        for channel in range(in_chans):
            assert torch.allclose(adapted[:, channel], stored[:, channel % 3] * 3 / in_chans, atol=1e-6)


def test_stem_adapts_from_other_numbers_than_three(tmp_path):
    source = randomise(Mixer(**TINY, in_chans=2, act="erf")).eval()
    folder = write_folder(tmp_path / "m", source)
    for in_chans in (1, 3, 4):
        model = create_model(f"local-dir:{folder}", pretrained=True, in_chans=in_chans).eval()
        grey = torch.rand(1, 1, 32, 32)
        if in_chans != 3:  # whole repeats (or the sum): equal channels give the same answer
            with torch.no_grad():
                expected = source(grey.expand(-1, 2, -1, -1))
                assert torch.allclose(model(grey.expand(-1, in_chans, -1, -1)), expected, atol=1e-5)
        assert model.stem.proj.weight.shape[1] == in_chans


# folders


def test_local_folder(tmp_path, tiny):
    folder = write_folder(tmp_path / "m", tiny)
    model = create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert_same_state(model, tiny)
    assert model.config.act == "erf"  # a timm model that is not Google's
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    empty = create_model(f"local-dir:{folder}")
    assert empty.config == model.config
    assert (empty.head.weight == 0).all()


@pytest.mark.parametrize(
    ("change", "act"),
    [
        ({"tag": "goog_in21k_ft_in1k"}, "tanh"),
        ({"tag": "goog_in21k"}, "tanh"),
        ({"tag": "miil_in21k"}, "erf"),
        ({"mixerzoo": {"act": "tanh"}}, "tanh"),
        ({"model_args": TINY_TIMM_ARGS | {"drop_path_rate": 0.1}}, "erf"),
        ({"model_args": TINY_TIMM_ARGS | {"act_layer": "gelu_tanh"}}, "tanh"),
        ({"architecture": "mixer_b16", "model_args": TINY}, "tanh"),
        ({"architecture": "mixer_b16", "model_args": TINY, "mixerzoo": {"act": "erf"}}, "erf"),
    ],
)
def test_gelu_of_a_folder(tmp_path, tiny, change, act):
    folder = write_folder(tmp_path / "m", tiny, **change)
    assert create_model(f"local-dir:{folder}", pretrained=True).config.act == act


def test_folder_with_another_head_and_channels(tmp_path, tiny):
    folder = write_folder(tmp_path / "m", tiny, label_names=["a", "b", "c", "d", "e"])
    model = create_model(f"local-dir:{folder}", pretrained=True, num_classes=2, in_chans=1)
    assert (model.num_classes, model.in_chans) == (2, 1)
    assert mixerzoo.labels(create_model(f"local-dir:{folder}", pretrained=True)) == ["a", "b", "c", "d", "e"]
    assert mixerzoo.labels(f"local-dir:{folder}") == ["a", "b", "c", "d", "e"]


def test_old_flat_config(tmp_path, tiny):
    folder = write_folder(tmp_path / "m", tiny)
    config = json.loads((folder / "config.json").read_text())
    flat = config.pop("pretrained_cfg") | config
    (folder / "config.json").write_text(json.dumps(flat))
    assert_same_state(create_model(f"local-dir:{folder}", pretrained=True), tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet50"}, "not an MLP-Mixer"),
        ({"architecture": "gmixer_24_224"}, "not an MLP-Mixer"),
        ({"architecture": ["mixer_b16"]}, "not an MLP-Mixer"),
        ({"model_args": {"stem_norm": True}}, "stem_norm"),
        ({"model_args": {"embed_dim": -1}}, "embed_dim"),
        ({"model_args": {"num_blocks": 10**9}}, "depth"),
        ({"model_args": {"embed_dim": 10**8}}, "embed_dim"),
        ({"model_args": {"img_size": 10**6}}, "img_size"),
        ({"model_args": {"mlp_ratio": [0.5]}}, "mlp_ratio"),
        ({"model_args": {"mlp_ratio": "big"}}, "mlp_ratio"),
        ({"model_args": {"act_layer": "relu"}}, "act_layer"),
        ({"model_args": [1]}, "objects"),
        ({"mixerzoo": {"layers": 3}}, "mixerzoo.layers"),
        ({"architecture": "mixer_b16", "model_args": {"num_blocks": 2}}, "model_args.num_blocks"),
        ({"pretrained_cfg": {"input_size": [3, 32]}}, "input_size"),
        ({"pretrained_cfg": {"input_size": [3, 32, "x"]}}, "input_size"),
        ({"pretrained_cfg": {"mean": "grey"}}, "mean"),
        ({"pretrained_cfg": {"std": [0.5, "x", 0.5]}}, "std"),
        ({"pretrained_cfg": {"tag": 7}}, "tag"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct"),
        ({"pretrained_cfg": {"crop_pct": 0.01}}, "crop_pct"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std"),
        ({"pretrained_cfg": {"mean": [10**400] * 3}}, "mean"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation"),
        ({"model_args": {"num_blocks": 512, "embed_dim": 8192, "mlp_ratio": 4.0}}, "number of parameters"),
        ({"pretrained_cfg": {"interpolation": "magic"}}, "interpolation"),
        ({"pretrained_cfg": 7}, "pretrained_cfg"),
        ({"num_classes": "many"}, "num_classes"),
        ({"label_names": ["too", "few"]}, "label_names"),
    ],
)
def test_bad_folder_configs_are_refused(tmp_path, tiny, change, message):
    folder = write_folder(tmp_path / "m", tiny, **change)
    with pytest.raises(WeightsError, match=message):
        create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("content", ["", "[]", "{", '"mixer_b16"', "\x00", "[" * 100_000])
def test_config_that_is_no_json_object(tmp_path, tiny, content):
    folder = write_folder(tmp_path / "m", tiny)
    (folder / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        create_model(f"local-dir:{folder}", pretrained=True)


def test_a_pickle_is_never_opened(tmp_path, tiny):
    folder = write_folder(tmp_path / "m", tiny)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        create_model(f"local-dir:{folder}", pretrained=True)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin.*can run code"):
        create_model(f"local-dir:{folder}", pretrained=True)


def test_loading_never_initialises(monkeypatch):
    """Neither our initialisation nor torch's draws a number when weights are loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("initialised")

    monkeypatch.setattr("mixerzoo.model.lecun_normal_", refuse)
    state = torch.get_rng_state()
    create_model("mixer_ti4_32", pretrained=True)
    create_model("mixer_ti4_32", pretrained=True, num_classes=0, in_chans=1, features_only=True)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError, match="initialised"):
        create_model("mixer_ti4_32")


def test_tag_as_pretrained_cfg():
    model = create_model("mixer_b16", pretrained_cfg="miil_in21k", device="meta")
    assert (model.config.act, model.num_classes) == ("erf", 11221)


def test_dtype_must_be_a_floating_point_type():
    with pytest.raises(ConfigError, match="floating-point"):
        create_model("mixer_ti4_32", dtype=torch.int64)


def test_devices():
    model = create_model("mixer_ti4_32", pretrained=True, device="cpu", num_classes=3)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    with torch.device("meta"):
        assert all(p.is_meta for p in create_model("mixer_ti4_32", pretrained=True, num_classes=3).parameters())


@pytest.mark.parametrize("argument", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_unknown_entries_of_a_configuration_are_named(argument):
    with pytest.raises(ConfigError, match=f"{argument} has no entry 'meann'. Did you mean 'mean'"):
        create_model("mixer_ti4_32", **{argument: {"meann": 1}})


def test_a_configuration_of_ones_own(tmp_path):
    source = randomise(create_model("mixer_ti4_32"))
    path = save_state(source, tmp_path / "w.safetensors")
    model = create_model("mixer_ti4_32", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert_same_state(model, source)
    own = {"file": str(path), "input_size": (3, 32, 32), "num_classes": 10, "mean": (0.1, 0.2, 0.3)}
    model = create_model("mixer_ti4_32", pretrained=True, pretrained_cfg=own)
    assert_same_state(model, source)
    assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    with pytest.raises(WeightsError, match="names no source of weights"):
        create_model("mixer_ti4_32", pretrained=True, pretrained_cfg={"num_classes": 10})


def test_a_saved_folder_comes_back(tmp_path):
    """Every field of the configuration survives, in this package and in timm's loader."""
    source = Mixer(**TINY | {"img_size": (32, 48)}, in_chans=2, act="erf", norm_eps=1e-5, drop_path_rate=0.1)
    randomise(source)
    preprocessing = {"mean": (0.1, 0.2), "std": (0.3, 0.4), "interpolation": "bilinear", "crop_pct": 0.9}
    names = ["a", "b", "c", "d", "e"]
    mixerzoo.save_model(source, tmp_path / "m", preprocessing=preprocessing, label_names=names)
    model = create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert_same_state(model, source)
    assert model.config == source.config
    assert mixerzoo.labels(model) == names
    through_timm = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert_same_state(through_timm, source)
    assert through_timm.config == source.config
    assert mixerzoo.create_transform(model).transforms[-1].mean.tolist() == pytest.approx([0.1, 0.2])
    half = tmp_path / "half"
    mixerzoo.save_model(source, half, preprocessing=preprocessing, dtype=torch.float16)
    assert (half / "model.safetensors").stat().st_size < (tmp_path / "m" / "model.safetensors").stat().st_size
    assert create_model(f"local-dir:{half}", pretrained=True).norm.weight.dtype == torch.float32


def test_a_model_of_a_tag_saved_by_timm_keeps_its_gelu(tmp_path):
    model = create_model("mixer_b16.miil_in21k_ft_in1k", num_classes=2, dtype=torch.float16)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert create_model(f"local-dir:{tmp_path}", pretrained=True).config.act == "erf"


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    path = save_state(create_model("mixer_ti4_32"), tmp_path / "w.safetensors")

    def no_more_files(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("mixerzoo.weights.files.load_file", no_more_files)
    with pytest.raises(WeightsError, match=r"cannot be read .*Too many open files") as caught:
        create_model("mixer_ti4_32", checkpoint_path=path)
    assert not isinstance(caught.value, DamagedFileError)
