"""Models saved as folders, read back here and by others, and uploaded through the real Hub client."""

import dataclasses
import hashlib
import io
import json
import os
import random
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from flax_files import linen
from helpers import TINY, assert_same_state, randomise, relative_error, run_cli, state_of
from hub_uploads import TOKEN, Uploads
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mixerzoo import Mixer, create_model, labels, push_to_hub, save_model
from mixerzoo.cli import app
from mixerzoo.config import PRESETS
from mixerzoo.errors import (
    ConfigError,
    DataError,
    HubError,
    HubUnreachableError,
    LabelsUnknownError,
    MixerzooError,
    ModelNameError,
    StorageError,
)
from mixerzoo.factory import data_config
from mixerzoo.publish import push_folder, push_official
from mixerzoo.weights import upload
from mixerzoo.weights.official import entry_folder
from mixerzoo.weights.save import _ratio
from mixerzoo.zoo import CIFAR10_LABELS, WEIGHTS

# huggingface_hub sends a large file with an argument that its HTTP client calls old-fashioned.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def tiny():
    return randomise(Mixer(**TINY, act="erf")).eval()


def saved(folder, model, **kwargs):
    save_model(model, folder, **kwargs)
    return folder


def load(folder, **kwargs):
    return create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def outputs(model):
    images = torch.randn(2, model.in_chans, *model.config.image_hw, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return images, model(images)


# --- folders, read back here


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"act": "erf", "norm_eps": 1e-5, "drop_rate": 0.1, "drop_path_rate": 0.2, "drop_path_rescale": True},
        {"img_size": (32, 48), "in_chans": 2, "head_bias": -6.9},
        {"num_classes": 0},
        {"global_pool": ""},
        {"embed_dim": 13, "tokens_mlp_dim": 7, "channels_mlp_dim": 3, "depth": 1},
    ],
    ids=str,
)
def test_a_mixer_of_any_sizes_survives(tmp_path, fields):
    model = randomise(Mixer(**TINY | fields)).eval()
    loaded = load(saved(tmp_path / "folder", model)).eval()
    assert loaded.config == model.config
    assert_same_state(loaded, model)
    images, expected = outputs(model)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected)


def test_a_tiled_model_keeps_its_width_and_its_labels(tmp_path):
    model = create_model("mixer_ti4_32", pretrained=True, img_size=64)
    assert model.config.tokens_mlp_dim == 256
    loaded = load(saved(tmp_path / "folder", model))
    assert loaded.config == model.config
    assert_same_state(loaded, model)
    assert labels(loaded) == list(CIFAR10_LABELS)
    again = load(saved(tmp_path / "again", loaded))
    assert_same_state(again, model)
    assert labels(again) == list(CIFAR10_LABELS)
    assert data_config(again) == data_config(model)


def test_an_interpolated_model_keeps_its_width(tmp_path):
    model = create_model("mixer_ti4_32", pretrained=True, img_size=48, resize="interpolate")
    assert model.config.tokens_mlp_dim == 64
    assert_same_state(load(saved(tmp_path / "folder", model)), model)


def test_a_pruned_model_with_a_new_head_survives_without_its_labels(tmp_path):
    model = create_model("mixer_ti4_32", pretrained=True, num_classes=3)
    model.prune_intermediate_layers([2], prune_head=False)
    loaded = load(saved(tmp_path / "folder", model))
    assert (loaded.config.depth, loaded.config.num_classes) == (3, 3)
    assert_same_state(loaded, model)
    with pytest.raises(LabelsUnknownError):
        labels(loaded)


def test_label_names_are_stored_in_the_order_of_the_outputs(tmp_path, tiny):
    names = ["dog", "ant", "dog", "", "käfer"]
    assert labels(load(saved(tmp_path / "folder", tiny, label_names=names))) == names


@pytest.mark.parametrize("names", [NAMES[:4], [*NAMES, "fox"], [], [1, 2, 3, 4, 5]])
def test_one_label_name_a_class(tmp_path, tiny, names):
    with pytest.raises(ConfigError, match="label_names must be 5 texts, one a class"):
        save_model(tiny, tmp_path / "folder", label_names=names)
    assert not (tmp_path / "folder").exists()


def test_preprocessing_is_stored(tmp_path, tiny):
    own = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "crop_pct": 0.95,
        "crop_mode": "squash",
    }
    loaded = load(saved(tmp_path / "folder", tiny, preprocessing=own))
    assert data_config(loaded) == own | {"input_size": (3, 32, 32)}


def test_dtype_is_that_of_the_stored_tensors(tmp_path, tiny):
    folder = saved(tmp_path / "folder", tiny, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert_same_state(load(folder), randomise(Mixer(**TINY)).bfloat16().float())
    assert tiny.stem.proj.weight.dtype == torch.float32


def test_saving_again_replaces_weights_and_configuration_but_not_the_card(tmp_path, tiny):
    folder = saved(tmp_path / "folder", tiny)
    (folder / "README.md").write_text("My own words.")
    other = randomise(Mixer(**TINY | {"depth": 3}), scale=2.0)
    save_model(other, folder)
    assert_same_state(load(folder), other)
    assert (folder / "README.md").read_text() == "My own words."
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("mask", [0o022, 0o027], ids=oct)
def test_files_get_the_permissions_of_new_files(tmp_path, tiny, mask):
    before = os.umask(mask)
    try:
        folder = saved(tmp_path / "folder", tiny)
    finally:
        os.umask(before)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name


def test_what_is_no_whole_mixer_is_refused(tmp_path):
    features = create_model("mixer_ti4_32", features_only=True)
    with pytest.raises(ConfigError, match=r"takes a mixerzoo\.Mixer, not a FeatureGetterNet"):
        save_model(features, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_cannot_be_written(tmp_path, tiny):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"model\.safetensors cannot be stored"):
        save_model(tiny, tmp_path / "file" / "folder")


# --- folders, read by others

_PLAIN_TIMM = """
import json, sys
from pathlib import Path
import timm, torch
from safetensors.torch import load_file, save_file

for folder in map(Path, sys.argv[1:]):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(load_file(folder / "images")["images"])
    save_file(model.state_dict() | {"logits": logits.contiguous()}, folder / "found")
    described = timm.data.resolve_model_data_config(model) | {"label_names": model.pretrained_cfg.get("label_names")}
    (folder / "found.json").write_text(json.dumps(described))
assert not any(name.startswith("mixerzoo") for name in sys.modules)
"""
"""timm on its own, in a process that never imports mixerzoo."""


def small(**kwargs):
    """A Mixer-S/32 as timm can express it, with narrow channel mixing."""
    sizes = {"img_size": 64, "channels_mlp_dim": 24, "num_classes": 7, "act": "erf"} | kwargs
    return timm.create_model("mixer_s32", **sizes)


TIMM_MODELS = {
    "native": lambda: create_model("mixer_s32", num_classes=7, img_size=64, act="erf"),
    "tiled": lambda: create_model("mixer_s32", num_classes=7, img_size=448, resize="tile", act="erf"),
    "tanh": lambda: small(act="tanh"),
    "two channels": lambda: small(in_chans=2),
    "one channel": lambda: small(in_chans=1),
    "not square": lambda: small(img_size=(64, 96)),
    "odd widths": lambda: small(tokens_mlp_dim=77, channels_mlp_dim=49),
    "no head": lambda: small(num_classes=0),
    "no pooling": lambda: small(global_pool=""),
    "dropout": lambda: small(drop_rate=0.1, drop_path_rate=0.1),
}


@pytest.fixture(scope="module")
def plain_timm(tmp_path_factory):
    """Every model of TIMM_MODELS, the folder it was saved in, and there what plain timm makes of it."""
    root = tmp_path_factory.mktemp("plain-timm")
    models = {name: (randomise(build()).eval(), root / name) for name, build in TIMM_MODELS.items()}
    for model, folder in models.values():
        save_model(model, folder, label_names=list("abcdefg") if model.num_classes else None)
        save_file({"images": outputs(model)[0]}, folder / "images")
    folders = [folder for _, folder in models.values()]
    subprocess.run([sys.executable, "-c", _PLAIN_TIMM, *folders], check=True, timeout=300)
    return models


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_plain_timm_loads_every_tensor_and_computes_the_same(plain_timm, name):
    model, folder = plain_timm[name]
    assert json.loads((folder / "config.json").read_text())["architecture"] == "mixer_s32_224"
    found = load_file(folder / "found")
    logits = found.pop("logits")
    expected = state_of(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    difference = relative_error(logits, outputs(model)[1])
    assert (1e-5 < difference < 1e-2) if name == "tanh" else difference < 1e-5


@pytest.mark.parametrize("name", ["native", "two channels", "one channel", "not square", "no head"])
def test_plain_timm_learns_preprocessing_and_labels(plain_timm, name):
    model, folder = plain_timm[name]
    found = json.loads((folder / "found.json").read_text())
    assert found.pop("label_names") == (list("abcdefg") if model.num_classes else None)
    assert found == json.loads(json.dumps(data_config(model)))


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_we_load_the_folders_that_timm_loads(plain_timm, name):
    """With what timm does not know: GELU flavour, stochastic depth."""
    model, folder = plain_timm[name]
    loaded = load(folder)
    assert loaded.config == model.config
    assert_same_state(loaded, model)


@pytest.mark.parametrize("fields", [{"patch_size": 16}, {"embed_dim": 48}, {"depth": 2}, {"norm_eps": 1e-5}], ids=str)
def test_what_timm_cannot_express_has_our_own_name(tmp_path, fields):
    model = randomise(small(**fields))
    folder = saved(tmp_path / "folder", model)
    assert json.loads((folder / "config.json").read_text())["architecture"] == "mixer_s32"
    loaded = load(folder)
    assert loaded.config == model.config
    assert_same_state(loaded, model)


def test_the_card_says_what_timm_does_differently(plain_timm):
    tanh, erf = ((plain_timm[name][1] / "README.md").read_text() for name in ("tanh", "native"))
    assert "timm's MLP-Mixer computes the exact GELU" in tanh
    assert "computes the exact GELU" not in erf
    assert 'library_name: "timm"' in tanh


def test_every_width_survives_timms_ratio():
    """timm computes ``int(ratio * channels)`` of a ratio that went through JSON."""
    generator = random.Random(0)
    widths = {(generator.randint(1, 1 << 14), generator.randint(1, 4096)) for _ in range(20_000)}
    for preset in PRESETS.values():
        widths |= {(preset.tokens_mlp_dim * copies, preset.embed_dim) for copies in range(1, 65)}
    plain_quotients = [int(width / channels * channels) == width for width, channels in widths]
    assert not all(plain_quotients)
    for width, channels in widths:
        assert int(json.loads(json.dumps(_ratio(width, channels))) * channels) == width


@pytest.mark.parametrize("name", ["native", "not square", "two channels"])
def test_transformers_loads_the_same_folder(plain_timm, name):
    transformers = pytest.importorskip("transformers", reason="the timm wrapper of Transformers is an extra")
    model, folder = plain_timm[name]
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images, expected = outputs(model)
    with torch.no_grad():
        assert relative_error(wrapped(images).logits, expected) < 1e-5
    assert [wrapped.config.id2label[i] for i in range(7)] == list("abcdefg")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mixer_s8", {"img_size": 16, "channels_mlp_dim": 24}),
        ("mixer_h14", {"img_size": 14, "tokens_mlp_dim": 3, "channels_mlp_dim": 5}),
        ("mixer_ti4_32", {}),
    ],
)
def test_timm_loads_our_own_variants_after_importing_us(tmp_path, name, sizes):
    model = randomise(timm.create_model(name, num_classes=4, **sizes)).eval()
    folder = saved(tmp_path / "folder", model)
    assert json.loads((folder / "config.json").read_text())["architecture"] == name
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert_same_state(loaded, model)
    images, expected = outputs(model)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected)


# --- uploads


@pytest.fixture
def uploads(hub, monkeypatch):
    """The server's record; large files go by git-lfs, whose every byte it understands."""
    hub.uploads = Uploads()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hub.uploads


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its attempts


def from_hub(name, cache):
    return create_model(f"hf-hub:{name}", pretrained=True, cache_dir=cache)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


ALL_FILES = ["README.md", "config.json", "model.safetensors"]


def test_push_and_load_back(uploads, hub, tiny, tmp_path):
    assert push_to_hub(tiny, "org/tiny", token=TOKEN, label_names=NAMES) == f"{hub.url}/org/tiny"
    assert uploads.commits == [("org/tiny", "main", ALL_FILES)]  # one commit
    assert uploads.visibility == {"org/tiny": "public"}
    loaded = from_hub("org/tiny", tmp_path)
    assert loaded.config == tiny.config
    assert_same_state(loaded, tiny)
    assert labels(loaded) == NAMES


def test_a_private_repository(uploads, tiny):
    push_to_hub(tiny, "org/tiny", token=TOKEN, private=True)
    assert uploads.visibility == {"org/tiny": "private"}


def test_the_token_of_the_login_is_used(uploads, tiny, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_to_hub(tiny, "org/tiny")
    assert len(uploads.commits) == 1


def test_pushing_again_sends_no_large_file_and_makes_no_commit(uploads, tiny):
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    assert len(uploads.sent) == 1
    assert len(uploads.commits) == 1


def test_pushing_changes_sends_what_changed(uploads, tiny, tmp_path):
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    push_to_hub(tiny, "org/tiny", token=TOKEN, label_names=NAMES)
    assert len(uploads.sent) == 1
    other = randomise(Mixer(**TINY, act="erf"), scale=2.0)
    push_to_hub(other, "org/tiny", token=TOKEN, label_names=NAMES)
    assert len(uploads.sent) == 2
    assert [files for _, _, files in uploads.commits] == [ALL_FILES, ["config.json"], ["model.safetensors"]]
    assert_same_state(from_hub("org/tiny", tmp_path), other)
    push_to_hub(tiny, "org/tiny", token=TOKEN, label_names=NAMES)
    assert len(uploads.sent) == 2  # the repository has had these weights


def test_pushing_to_a_branch(uploads, hub, tiny, tmp_path):
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    branches = hub.repositories["org/tiny"].branches
    branches["v2"] = branches["main"]
    other = randomise(Mixer(**TINY, act="erf"), scale=2.0)
    push_to_hub(other, "org/tiny", token=TOKEN, revision="v2")
    assert_same_state(from_hub("org/tiny@v2", tmp_path), other)
    assert_same_state(from_hub("org/tiny", tmp_path), tiny)


def test_a_branch_that_does_not_exist(uploads, tiny):
    with pytest.raises(HubError, match=r"upload to org/tiny: there is no such branch"):
        push_to_hub(tiny, "org/tiny", token=TOKEN, revision="v9")
    assert not uploads.commits


def test_training_checkpoints_stay_behind(uploads, hub, tiny, tmp_path):
    folder = saved(tmp_path / "run", tiny)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nMy own words.\n")
    (folder / "old").mkdir()
    for name in ("checkpoint.pt", ".env", "old/config.json", "old/model.safetensors", "notes.txt"):
        (folder / name).write_text("mine")
    push_folder(folder, "org/tiny", token=TOKEN)
    assert uploads.commits == [("org/tiny", "main", sorted([*ALL_FILES, "metrics.jsonl"]))]
    repository = hub.repositories["org/tiny"]
    assert b"My own words." in repository.commits[repository.branches["main"]]["README.md"]
    assert_same_state(from_hub("org/tiny", tmp_path / "cache"), tiny)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_none_of_ours(uploads, tiny, tmp_path, missing):
    folder = saved(tmp_path / "folder", tiny)
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"has no {missing}: give a folder that convert, train or save_model wrote"):
        push_folder(folder, "org/tiny", token=TOKEN)
    assert not uploads.steps


@pytest.mark.parametrize(
    ("token", "name", "status"),
    [(None, "org/tiny", 401), ("hf_expired", "org/tiny", 401), (TOKEN, "others/tiny", 403)],
    ids=["no token", "wrong token", "not a member"],
)
def test_who_may_not_write_is_told_to_log_in(uploads, hub, tiny, token, name, status):
    with pytest.raises(HubError, match=rf"^The upload to {name}: .* status {status}; .*`hf auth login`\.$") as caught:
        push_to_hub(tiny, name, token=token)
    assert not isinstance(caught.value, HubUnreachableError)
    assert not hub.repositories


def test_who_may_not_write_to_what_exists_is_told_to_log_in(uploads, hub, tiny):
    hub.add("others/tiny", {})
    with pytest.raises(HubError, match=r"upload to others/tiny.*`hf auth login`"):
        push_to_hub(tiny, "others/tiny", token=TOKEN)
    assert not uploads.commits


@pytest.mark.parametrize("name", ["", "org/", "/tiny", "org/a/b", "org/a b", "org/a--b", "org/../tiny"])
def test_malformed_repository_names(uploads, tiny, name):
    with pytest.raises(HubError, match="organisation/name"):
        push_to_hub(tiny, name, token=TOKEN)
    assert not uploads.steps


def test_a_repository_name_needs_an_organisation(uploads, hub, tiny):
    with pytest.raises(HubError, match="organisation/name"):
        push_to_hub(tiny, "tiny", token=TOKEN)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("step", "status"),
    [("create", 500), ("preupload", 503), ("batch", 502), ("put", 500), ("verify", 504), ("commit", 500)],
)
def test_a_server_that_fails_ends_in_an_error_and_the_next_push_succeeds(
    uploads, tiny, tmp_path, no_waiting, step, status
):
    uploads.failures[step, "org/tiny"] = status
    with pytest.raises(HubUnreachableError, match=r"^The upload to org/tiny") as caught:
        push_to_hub(tiny, "org/tiny", token=TOKEN)
    assert "\n" not in str(caught.value)
    assert not uploads.commits
    uploads.failures.clear()
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    assert len(uploads.commits) == 1
    assert len(uploads.sent) == 1
    assert_same_state(from_hub("org/tiny", tmp_path), tiny)


@pytest.mark.parametrize("step", ["put", "verify"])
def test_a_refused_large_file_is_called_by_its_status(uploads, tiny, step):
    uploads.failures[step, "org/tiny"] = 403
    with pytest.raises(HubError, match="status 403") as caught:
        push_to_hub(tiny, "org/tiny", token=TOKEN)
    assert not isinstance(caught.value, HubUnreachableError)


@pytest.fixture
def nobody_listens(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
        yield huggingface_hub.constants.ENDPOINT


def test_nobody_listens(uploads, tiny, nobody_listens):
    with pytest.raises(HubUnreachableError, match=f"^The upload to org/tiny.*{nobody_listens} cannot be reached"):
        push_to_hub(tiny, "org/tiny", token=TOKEN)


def test_a_silent_server_is_given_up(uploads, tiny, monkeypatch):
    """A socket that accepts and never answers. Were it waited for without a deadline, this test would hang."""
    monkeypatch.setattr(upload, "DEADLINE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(HubUnreachableError, match=r"upload to org/tiny.*no answer within"):
            push_to_hub(tiny, "org/tiny", token=TOKEN)


def test_an_upload_that_reaches_nobody_is_not_called_a_download(uploads, tiny, nobody_listens):
    with pytest.raises(HubUnreachableError, match="cannot be reached") as caught:
        push_to_hub(tiny, "org/tiny", token=TOKEN)
    for word in ("cache", "download", "checkpoint_path"):
        assert word not in str(caught.value)


def test_a_card_that_the_hub_refuses(uploads, tiny, tmp_path):
    folder = saved(tmp_path / "folder", tiny)
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(HubError, match=r"README\.md"):
        push_folder(folder, "org/tiny", token=TOKEN)


@pytest.fixture
def by_xet(uploads, monkeypatch):
    pytest.importorskip("hf_xet", reason="the client sends large files by git-lfs without it")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    return uploads


def test_by_xet_it_is_one_commit_too(by_xet, hub, tiny, tmp_path):
    assert push_to_hub(tiny, "org/tiny", token=TOKEN) == f"{hub.url}/org/tiny"
    assert by_xet.commits == [("org/tiny", "main", ALL_FILES)]
    assert ("batch", "org/tiny") not in by_xet.steps


def test_a_server_that_refuses_xet_ends_in_an_error(by_xet, tiny):
    by_xet.failures["xet-token", "org/tiny"] = 403
    with pytest.raises(HubError, match=r"^The upload to org/tiny.*403"):
        push_to_hub(tiny, "org/tiny", token=TOKEN)
    assert not by_xet.commits


# --- the official checkpoints


@pytest.fixture
def official(uploads, files, monkeypatch):
    """Two rows of the zoo that no Hub repository has, and their Flax files; by their names, the models in them."""
    built_in = WEIGHTS["mixer_ti4_32.cifar10"]
    rows, models = {}, {}
    for tag, seed in (("cifar10", 1.0), ("second", 2.0)):
        path = f"/{tag}/Mixer-Ti_4.npz"
        row = dataclasses.replace(built_in, tag=tag, asset=None, npz_url=files.url + path)
        rows[row.name], models[row.name] = row, randomise(Mixer.from_config(row.config), scale=seed)
        archive = io.BytesIO()
        np.savez(archive, **linen(state_of(models[row.name])))
        files.files[path] = archive.getvalue()
    on_the_hub = dataclasses.replace(rows["mixer_ti4_32.cifar10"], tag="third", hub_id="somebody/has-it")
    no_flax_file = WEIGHTS["mixer_b16.miil_in21k"]
    monkeypatch.setattr("mixerzoo.publish.WEIGHTS", rows | {row.name: row for row in (on_the_hub, no_flax_file)})
    known = {"mixer_ti4_32.second": "mixer_ti4_32.cifar10"}  # timm's registry has no second tag
    monkeypatch.setattr("mixerzoo.publish.data_config", lambda name: data_config(known.get(name, name)))
    return models


FIRST, SECOND = "mixer_ti4_32.cifar10", "mixer_ti4_32.second"


def push_all():
    return list(push_official("org", token=TOKEN))


def test_every_official_checkpoint_that_no_repository_has_is_uploaded(uploads, hub, official, files, tmp_path):
    assert push_all() == [(name, f"{hub.url}/org/{name}") for name in (FIRST, SECOND)]
    assert uploads.commits == [(f"org/{name}", "main", ALL_FILES) for name in (FIRST, SECOND)]
    assert files.downloads() == ["/cifar10/Mixer-Ti_4.npz", "/second/Mixer-Ti_4.npz"]
    for name, model in official.items():
        loaded = from_hub(f"org/{name}", tmp_path)
        assert loaded.config == model.config
        assert_same_state(loaded, model)
    assert labels(from_hub(f"org/{FIRST}", tmp_path)) == list(CIFAR10_LABELS)


def test_the_card_names_the_source_and_its_hash(uploads, hub, official, files):
    push_all()
    repository = hub.repositories[f"org/{SECOND}"]
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert f"{files.url}/second/Mixer-Ti_4.npz" in card
    assert sha256(files.files["/second/Mixer-Ti_4.npz"]) in card
    assert 'license: "apache-2.0"' in card
    assert "CIFAR-10 top-1 | 83.91 %" in card


def test_a_second_run_converts_and_uploads_nothing(uploads, official, files):
    push_all()
    stored = [entry_folder(f"{files.url}/{tag}/Mixer-Ti_4.npz") / "model.safetensors" for tag in ("cifar10", "second")]
    before = [path.stat().st_mtime_ns for path in stored]
    asked = len(files.requests)
    uploads.steps.clear()
    assert [name for name, _ in push_all()] == [FIRST, SECOND]
    assert [path.stat().st_mtime_ns for path in stored] == before
    assert len(files.requests) == asked
    assert uploads.steps == [("paths-info", f"org/{FIRST}"), ("paths-info", f"org/{SECOND}")]


def test_a_run_that_broke_off_goes_on_where_it_ended(uploads, official, files):
    uploads.failures["commit", f"org/{SECOND}"] = 500
    run = push_official("org", token=TOKEN)
    assert next(run)[0] == FIRST
    with pytest.raises(HubError, match=f"upload to org/{SECOND}"):
        next(run)
    assert [name for name, _, _ in uploads.commits] == [f"org/{FIRST}"]
    sent, asked = list(uploads.sent), len(files.requests)
    uploads.failures.clear()
    uploads.steps.clear()
    assert [name for name, _ in push_all()] == [FIRST, SECOND]
    assert [step for step, name in uploads.steps if name == f"org/{FIRST}"] == ["paths-info"]
    assert [name for name, _, _ in uploads.commits] == [f"org/{FIRST}", f"org/{SECOND}"]
    assert uploads.sent == sent  # the weights had come before the commit failed
    assert len(files.requests) == asked


def test_a_missing_official_file_stops_the_run_after_what_was_done(uploads, official, files):
    content = files.files.pop("/second/Mixer-Ti_4.npz")
    run = push_official("org", token=TOKEN)
    assert next(run)[0] == FIRST
    with pytest.raises(HubError, match=rf"official Flax file of {SECOND}.*404"):
        next(run)
    files.files["/second/Mixer-Ti_4.npz"] = content
    assert [name for name, _ in push_all()] == [FIRST, SECOND]
    assert len(uploads.sent) == 2


def test_other_weights_in_the_repository_are_replaced(uploads, official, tmp_path):
    push_to_hub(randomise(Mixer(**TINY)), f"org/{FIRST}", token=TOKEN)
    push_all()
    assert_same_state(from_hub(f"org/{FIRST}", tmp_path), official[FIRST])


def test_official_checkpoints_without_a_token(uploads, hub, official):
    with pytest.raises(HubError, match=f"upload to org/{FIRST}.*`hf auth login`"):
        next(push_official("org"))
    assert not hub.repositories


def test_official_checkpoints_for_a_hub_that_cannot_be_reached(uploads, official, nobody_listens):
    with pytest.raises(HubUnreachableError, match=f"upload to org/{FIRST}.*{nobody_listens} cannot be reached"):
        next(push_official("org", token=TOKEN))


# --- the command line


def invoke(*args):
    result = CliRunner().invoke(app, ["push", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit | MixerzooError):
        raise result.exception
    return result


def test_command_line_pushes_a_folder(uploads, hub, tiny, tmp_path):
    folder = saved(tmp_path / "folder", tiny)
    result = run_cli("push", folder, "org/tiny", "--private", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{hub.url}/org/tiny\n"
    assert uploads.visibility == {"org/tiny": "private"}
    assert_same_state(from_hub("org/tiny", tmp_path / "cache"), tiny)


def test_command_line_pushes_every_official_checkpoint(uploads, hub, official, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = invoke("--all-official", "org")
    assert result.stdout.splitlines() == [f"{name}: {hub.url}/org/{name}" for name in (FIRST, SECOND)]
    assert set(uploads.visibility.values()) == {"public"}


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ([], ConfigError, "mixerzoo push FOLDER ORGANISATION/NAME"),
        (["folder"], ConfigError, "mixerzoo push FOLDER ORGANISATION/NAME"),
        (["nowhere", "org/tiny"], DataError, r"nowhere has no config\.json"),
        (["folder", "--all-official", "org"], ConfigError, "leave folder and repository out"),
        (["folder", "org/tiny", "--all-official", "org"], ConfigError, "leave folder and repository out"),
    ],
)
def test_command_line_mistakes(uploads, tiny, tmp_path, monkeypatch, args, error, message):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "folder", tiny)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(error, match=message):
        raise invoke(*args).exception
    assert not uploads.steps


# what a user may not notice


def test_a_fine_tuned_model_does_not_keep_the_names_of_other_classes(tmp_path):
    model = create_model("mixer_ti4_32", pretrained=True)
    save_model(model, tmp_path / "as it is")
    assert labels(f"local-dir:{tmp_path / 'as it is'}")[3] == "cat"
    model.reset_classifier(10)  # ten classes of one's own
    save_model(model, tmp_path / "own")
    with pytest.raises(LabelsUnknownError):
        labels(f"local-dir:{tmp_path / 'own'}")
    again = create_model("mixer_ti4_32", pretrained=True, num_classes=3)
    again.reset_classifier(10)
    for fresh in (again, create_model("mixer_ti4_32")):
        with pytest.raises(LabelsUnknownError):
            labels(fresh)


def test_part_of_the_preprocessing_can_be_given(tmp_path, tiny):
    save_model(tiny, tmp_path / "m", preprocessing={"mean": (0.1, 0.2, 0.3)})
    described = create_model(f"local-dir:{tmp_path / 'm'}").pretrained_cfg
    assert described["mean"] == (0.1, 0.2, 0.3)
    assert described["std"] == (0.5, 0.5, 0.5)


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path, tiny):
    pruned = Mixer(**TINY)
    pruned.prune_intermediate_layers(1, prune_norm=True)
    with pytest.raises(ConfigError, match="whole Mixer"):
        save_model(pruned, tmp_path / "m")
    with pytest.raises(ConfigError, match="meta device"):
        save_model(Mixer(**TINY, device="meta"), tmp_path / "m")
    huge = Mixer(**TINY)
    huge.set_input_size((16, 16_400), resize="interpolate")
    with pytest.raises(ConfigError, match="img_size=16400"):
        save_model(huge, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_kill_between_two_files_leaves_no_mixture(tmp_path, tiny, monkeypatch):
    """New weights under an old configuration would load, with the wrong GELU for instance."""
    save_model(tiny, tmp_path / "m")
    other = randomise(Mixer(**TINY, act="tanh"), scale=2.0)

    def killed(path, write):
        raise KeyboardInterrupt

    monkeypatch.setattr("mixerzoo.weights.save.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(other, tmp_path / "m")
    monkeypatch.undo()
    with pytest.raises(ModelNameError, match=r"config\.json"):
        create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    save_model(other, tmp_path / "m")
    assert_same_state(create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True), other)


def test_threads_that_save_to_one_folder_do_not_meet(tmp_path, tiny):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(save_model, tiny, tmp_path / "m") for _ in range(12)]:
            done.result()
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same_state(create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True), tiny)


def test_a_card_that_was_edited_on_the_hub_stays(uploads, hub, tiny):
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    repository = hub.repositories["org/tiny"]
    commit = repository.branches["main"]
    repository.commits[commit]["README.md"] = b"edited"
    with torch.no_grad():
        tiny.head.bias.add_(1.0)
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    assert repository.commits[repository.branches["main"]]["README.md"] == b"edited"


def test_a_pushed_card_says_its_own_name(uploads, hub, tiny):
    push_to_hub(tiny, "org/tiny", token=TOKEN)
    repository = hub.repositories["org/tiny"]
    card = repository.commits[repository.branches["main"]]["README.md"].decode()
    assert 'mixerzoo.create_model("hf-hub:org/tiny", pretrained=True)' in card


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ({"crop": 0.9}, "no entry 'crop'. Did you mean 'crop_pct'"),
        ({"crop_pct": 3.0}, "crop_pct=3.0"),
        ({"mean": (0.5, 0.5)}, "mean="),
        ({"interpolation": "magic"}, "interpolation='magic'"),
    ],
)
def test_preprocessing_that_would_be_refused_is_not_saved(tmp_path, tiny, preprocessing, message):
    with pytest.raises(ConfigError, match=message):
        save_model(tiny, tmp_path / "m", preprocessing=preprocessing)
    assert not (tmp_path / "m").exists()


def test_a_card_says_where_the_weights_come_from_and_how_good_they_are(tmp_path, tiny):
    save_model(tiny, tmp_path / "unknown")
    text = (tmp_path / "unknown" / "README.md").read_text()
    assert "## Accuracy\n\nNone known." in text
    assert "## Where the weights come from" not in text
    scores = [("top-1", 69.17, "240 images | held\nout"), ("top-5", 90.0, "the same")]
    save_model(tiny, tmp_path / "known", origin={"trained": "by\nhand", "images": 5}, scores=scores)
    lines = (tmp_path / "known" / "README.md").read_text().splitlines()
    start = lines.index("## Where the weights come from")
    assert lines[start + 2 : start + 4] == ["- trained: by hand", "- images: 5"]
    start = lines.index("## Accuracy")
    assert lines[start + 4 : start + 6] == [
        "| top-1 | 69.17 % | 240 images \\| held out |",
        "| top-5 | 90 % | the same |",
    ]


def test_a_card_does_not_call_other_sizes_by_a_variants_name(tmp_path, tiny):
    save_model(tiny, tmp_path / "m")
    assert "# An MLP-Mixer of sizes of its own" in (tmp_path / "m" / "README.md").read_text()
    save_model(create_model("mixer_ti4_32"), tmp_path / "ti")
    assert "# Mixer-Ti/4, an MLP-Mixer" in (tmp_path / "ti" / "README.md").read_text()
