"""Downloads through the real Hub client from a server on this machine, with everything that can go wrong."""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import TINY, assert_same_state, randomise, run_cli, save_state, state_of, write_folder
from hub_server import MAIN_COMMIT
from safetensors.torch import save_file

from mixerzoo import Mixer, create_model
from mixerzoo.errors import HubError, HubUnreachableError, StorageError, WeightsError
from mixerzoo.weights import hub as hub_module
from mixerzoo.weights import transfer
from mixerzoo.weights.checksums import file_digest

REPO = "someone/tiny-mixer"
NAME = f"hf-hub:{REPO}"


@pytest.fixture
def tiny():
    return randomise(Mixer(**TINY, act="erf")).eval()


@pytest.fixture
def files(tmp_path, tiny):
    folder = write_folder(tmp_path / "source", tiny)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    def switch(on=True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", on)

    return switch


def load(cache, name=NAME, **kwargs):
    return create_model(name, pretrained=True, cache_dir=cache, **kwargs)


def downloads(repository):
    return [file for method, file, _ in repository.requests if method == "GET"]


def test_download_then_cache(hub, files, cache, tiny):
    repository = hub.add(REPO, files)
    assert_same_state(load(cache), tiny)
    assert downloads(repository) == ["config.json", "model.safetensors"]
    assert_same_state(load(cache), tiny)
    assert len(downloads(repository)) == 2  # nothing is downloaded twice
    assert load(cache).pretrained_cfg["hf_hub_id"] == f"{REPO}@{MAIN_COMMIT}"


def test_without_pretrained_only_the_configuration_is_fetched(hub, files, cache):
    repository = hub.add(REPO, files)
    model = create_model(NAME, cache_dir=cache)
    assert model.config.depth == 2
    assert downloads(repository) == ["config.json"]


def test_a_new_revision_is_noticed_and_an_old_one_can_be_pinned(hub, files, cache, tiny, tmp_path):
    repository = hub.add(REPO, files)
    load(cache)
    newer = randomise(Mixer(**TINY, act="erf"), scale=2.0)
    second = "b" * 40
    save_state(newer, tmp_path / "newer.safetensors")
    repository.commits[second] = files | {"model.safetensors": (tmp_path / "newer.safetensors").read_bytes()}
    repository.branches |= {"main": second, "v1": MAIN_COMMIT}
    assert_same_state(load(cache), newer)
    assert_same_state(load(cache, f"{NAME}@v1"), tiny)
    assert_same_state(load(cache, f"{NAME}@{MAIN_COMMIT}"), tiny)
    asked = len(repository.requests)
    assert_same_state(load(cache, f"{NAME}@{second}"), newer)
    assert len(repository.requests) == asked  # a pinned commit in the cache needs no server
    with pytest.raises(HubError, match="no such revision"):
        load(cache, f"{NAME}@v9")


def test_offline_hit_and_miss(hub, files, cache, tiny, offline):
    repository = hub.add(REPO, files)
    offline()
    with pytest.raises(HubUnreachableError, match=r"config\.json of the Hub repository .*HF_HUB_OFFLINE is set"):
        load(cache)
    offline(False)
    load(cache)
    asked = len(repository.requests)
    offline()
    assert_same_state(load(cache), tiny)
    assert len(repository.requests) == asked


def test_offline_through_the_environment(hub, files, cache):
    """The variable itself, in a process that starts with it."""
    hub.add(REPO, files)
    code = f"import mixerzoo; mixerzoo.create_model({NAME!r}, pretrained=True, cache_dir={str(cache)!r})"
    import os

    def run():
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)

    miss = run()
    assert miss.returncode == 1
    assert "HF_HUB_OFFLINE is set: unset it once" in miss.stderr
    load(cache)
    hit = run()
    assert hit.returncode == 0, hit.stderr


def test_unknown_or_private_repository(hub, cache):
    with pytest.raises(HubError, match=r"no such repository, or it is private.*hf auth login"):
        load(cache, "hf-hub:nobody/nothing")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no such repository"),
        (401, "RepoNotFound", "hf auth login"),
        (403, "GatedRepo", "accept its terms"),
        (401, None, "status 401; the token is missing.*hf auth login"),
        (403, None, "status 403"),
        (404, None, "status 404; check the name"),
        (500, None, "status 500.*try again later"),
        (503, None, "status 503"),
        (429, None, "status 429"),
    ],
)
def test_server_errors(hub, files, cache, tiny, status, code, message):
    repository = hub.add(REPO, files, status=status, error_code=code)
    with pytest.raises(HubError, match=message) as caught:
        load(cache)
    assert REPO in str(caught.value)
    assert "config.json" in str(caught.value)
    repository.status = None
    assert_same_state(load(cache), tiny)  # the failure left nothing behind


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_server_does_not_matter_with_a_cache(hub, files, cache, tiny, status):
    repository = hub.add(REPO, files)
    load(cache)
    repository.status = status
    assert_same_state(load(cache), tiny)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_file(hub, files, cache, missing):
    hub.add(REPO, {name: content for name, content in files.items() if name != missing})
    with pytest.raises(HubError, match=f"{missing} of the Hub repository {REPO}.*no such file"):
        load(cache)


def test_pickles_on_the_hub_are_not_touched(hub, files, cache):
    repository = hub.add(REPO, {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."})
    with pytest.raises(HubError, match=r"model\.safetensors"):
        load(cache)
    assert "pytorch_model.bin" not in downloads(repository)


def test_a_cut_connection_is_resumed(hub, files, cache, tiny, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    repository = hub.add(REPO, files, cut_after=1000, cuts_left=2)
    assert_same_state(load(cache), tiny)
    ranges = [r for method, file, r in repository.requests if method == "GET" and file == "model.safetensors"]
    assert ranges[0] is None
    assert ranges[1].startswith("bytes=1000-")


def test_a_connection_that_is_always_cut_ends_in_an_error(hub, files, cache, tiny, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its attempts
    repository = hub.add(REPO, files, cut_after=0, cuts_left=1000)
    with pytest.raises(HubError, match=r"model\.safetensors of the Hub repository someone/tiny-mixer"):
        load(cache)
    repository.cuts_left = 0
    assert_same_state(load(cache), tiny)


def test_damaged_weights_are_noticed_and_removed(hub, files, cache, tiny):
    """The server announces one hash and sends other bytes of the same length: a single flipped bit."""
    good = files["model.safetensors"]
    flipped = bytearray(good)
    flipped[-1] ^= 1
    import hashlib

    repository = hub.add(
        REPO,
        files | {"model.safetensors": bytes(flipped)},
        announce={"model.safetensors": hashlib.sha256(good).hexdigest()},
    )
    with pytest.raises(HubError, match=r"model\.safetensors .*is damaged .*removed from the cache: try again"):
        load(cache)
    assert not list(cache.rglob("model.safetensors"))
    repository.commits[MAIN_COMMIT]["model.safetensors"] = good
    assert_same_state(load(cache), tiny)


def test_content_that_the_client_links_elsewhere_is_checked_and_kept(hub, files, cache, tiny):
    """Newer clients move downloaded content into a store shared by all repositories and link to it."""
    hub.add(REPO, files)
    path = hub_module.fetch(REPO, "model.safetensors", cache_dir=cache)
    blob = path.parent / path.readlink()
    store = cache / "blobs" / "ff" / ("f" * 64)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(store)
    assert_same_state(load(cache), tiny)
    hub_module.discard(path)
    assert not path.is_symlink()
    assert not blob.is_symlink()
    assert not store.exists()


def test_damage_is_noticed_without_links_too(hub, files, cache, monkeypatch):
    """Where the file system has no symbolic links the cache holds plain files under their own names."""
    import hashlib

    from huggingface_hub import file_download

    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *a, **k: False)
    good = files["model.safetensors"]
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    announced = {"model.safetensors": hashlib.sha256(good).hexdigest()}
    hub.add(REPO, files | {"model.safetensors": flipped}, announce=announced)
    with pytest.raises(HubError, match="is damaged"):
        load(cache)


def test_another_architecture_is_refused_and_left_in_the_cache(hub, files, cache):
    config = json.loads(files["config.json"]) | {"architecture": "resnet50"}
    hub.add(REPO, {"config.json": json.dumps(config).encode()})
    with pytest.raises(WeightsError, match="'resnet50' is not an MLP-Mixer"):
        load(cache)
    assert list(cache.rglob("config.json"))


def test_a_programming_error_is_not_called_a_network_error(cache, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", broken)
    with pytest.raises(TypeError, match="unexpected keyword"):
        load(cache)


def test_weights_that_are_no_safetensors_are_removed(hub, files, cache, tiny):
    repository = hub.add(REPO, files | {"model.safetensors": b"<html>not found</html>"})
    with pytest.raises(HubError, match="in the cache is damaged and was removed: try again"):
        load(cache)
    repository.commits[MAIN_COMMIT]["model.safetensors"] = files["model.safetensors"]
    assert_same_state(load(cache), tiny)


def test_a_cached_file_that_rots_is_removed(hub, files, cache, tiny):
    hub.add(REPO, files)
    load(cache)
    (path,) = cache.rglob("model.safetensors")
    path.resolve().write_bytes(b"rotten")
    with pytest.raises(HubError, match="removed from the cache"):
        load(cache)
    assert_same_state(load(cache), tiny)


def test_content_that_was_never_checked_is_checked_once(hub, files, cache, tiny, monkeypatch):
    """A file that another program put into the cache, or whose download was killed before its hash was compared."""
    hub.add(REPO, files)
    path = Path(huggingface_hub.hf_hub_download(REPO, "model.safetensors", cache_dir=cache))
    good = path.read_bytes()
    path.resolve().write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(HubError, match=r"model\.safetensors .*is damaged .*removed from the cache"):
        load(cache)
    assert_same_state(load(cache), tiny)
    hashed = []
    monkeypatch.setattr(hub_module, "file_digest", lambda path: hashed.append(path) or file_digest(path))
    load(cache)
    assert hashed == []  # noted, not hashed again
    (path,) = cache.rglob("model.safetensors")
    path.resolve().write_bytes(good)
    assert_same_state(load(cache), tiny)
    assert len(hashed) == 1  # another file


def test_a_read_only_cache_is_read(hub, files, cache, tiny, monkeypatch):
    hub.add(REPO, files)
    load(cache)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(huggingface_hub, "cached_assets_path", refuse)
    assert_same_state(load(cache), tiny)


def test_damaged_configuration_is_removed(hub, files, cache, tiny):
    repository = hub.add(REPO, files | {"config.json": b"{"})
    with pytest.raises(WeightsError, match=f"config.json of hf-hub:{REPO} is not valid JSON"):
        load(cache)
    assert not list(cache.rglob("config.json"))
    repository.commits[MAIN_COMMIT]["config.json"] = files["config.json"]
    assert_same_state(load(cache), tiny)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:a b/c", "hf-hub:../../etc/passwd"])
def test_malformed_repository_names(hub, cache, name):
    with pytest.raises(HubError, match="hf-hub:organisation/name"):
        load(cache, name)


def test_nobody_listens(cache, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _point_at(monkeypatch, f"http://127.0.0.1:{port}")
    with pytest.raises(HubUnreachableError, match=r"cannot be reached.*local-dir:"):
        load(cache)


@pytest.fixture
def waits(monkeypatch):
    """Shorten the deadline of a request for this test; count the requests that were waited for."""
    assert 2 * transfer.REACH_DEADLINE < 10  # a model needs two files, and the user knows within ten seconds
    monkeypatch.setattr(transfer, "REACH_DEADLINE", 0.5)
    counted = []
    ask = hub_module._ask_server

    def count(*args):
        counted.append(args)
        return ask(*args)

    monkeypatch.setattr(hub_module, "_ask_server", count)
    return counted


@pytest.mark.parametrize("half", [False, True], ids=["empty cache", "configuration cached"])
def test_a_silent_server_is_waited_for_once_a_file(hub, files, cache, monkeypatch, waits, half):
    """A socket that accepts and never answers. Were it waited for without a deadline, this test would hang."""
    if half:
        hub.add(REPO, files)
        create_model(NAME, cache_dir=cache)
        waits.clear()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(HubUnreachableError, match=r"cannot be reached \(no answer within"):
            load(cache)
    assert len(waits) == (2 if half else 1)


def test_a_resolver_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(transfer, "REACH_DEADLINE", 0.2)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *a, **k: time.sleep(2))
    with pytest.raises(HubUnreachableError, match="no answer within"):
        hub_module.fetch(REPO, "config.json")


def _point_at(monkeypatch, url):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_cache_that_cannot_be_written(hub, files, tmp_path):
    hub.add(REPO, files)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be stored"):
        load(tmp_path / "file" / "cache")


def test_registered_tags_come_from_their_hub_repository(hub, cache):
    """The flagship tag by its plain name, served at its real size with random weights."""
    source = randomise(create_model("mixer_b16"))
    path = save_state(source, cache.parent / "b16.safetensors")
    repository = hub.add("timm/mixer_b16_224.goog_in21k_ft_in1k", {"model.safetensors": path.read_bytes()})
    model = create_model("mixer_b16", pretrained=True, cache_dir=cache)
    assert downloads(repository) == ["model.safetensors"]
    assert_same_state(model, source)
    assert model.config.act == "tanh"
    features = create_model("mixer_b16.goog_in1k", pretrained=True, cache_dir=cache, features_only=True)
    stored = state_of(source)["blocks.0.norm1.weight"]
    assert torch.equal(features.model.blocks[0].norm1.weight, stored)
    path.unlink()
    shutil.rmtree(cache)


def test_command_line_predicts_with_a_hub_model(hub, files, cache, root):
    config = json.loads(files["config.json"]) | {"label_names": ["ant", "bee", "cat", "dog", "eel"]}
    hub.add(REPO, files | {"config.json": json.dumps(config).encode()})
    result = run_cli("predict", root / "examples" / "cat.png", "--model", NAME, "--json", HF_HOME=str(cache))
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)["labels"]) == {"ant", "bee", "cat", "dog", "eel"}


# what others put on the Hub


PREFIXES = ["model.", "module.", "vision_encoder.", "model.vision_encoder.", "_orig_mod.module."]


def with_prefix(model, prefix, path):
    save_file({prefix + name: tensor for name, tensor in state_of(model).items()}, path)
    return path.read_bytes()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_taken_off(hub, files, cache, tiny, tmp_path, prefix):
    hub.add(REPO, files | {"model.safetensors": with_prefix(tiny, prefix, tmp_path / "p.safetensors")})
    assert_same_state(load(cache), tiny)


def test_what_does_not_belong_to_the_mixer_is_named(hub, files, cache, tiny, tmp_path):
    state = {f"model.{name}": tensor for name, tensor in state_of(tiny).items()} | {"loss.weight": torch.ones(2)}
    save_file(state, tmp_path / "p.safetensors")
    hub.add(REPO, files | {"model.safetensors": (tmp_path / "p.safetensors").read_bytes()})
    with pytest.raises(WeightsError, match=r"unexpected loss\.weight"):
        load(cache)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("channels", [2, 10, 12])
def test_bigearthnet_mixers(hub, cache, tmp_path, channels, nested):
    """ConfigILM's classifiers: their own config.json, a prefix, 120 pixels, 19 labels, 2, 10 or 12 bands."""
    source = randomise(create_model("mixer_b16", in_chans=channels, num_classes=19, img_size=120, act="erf"))
    config = {
        "channels": channels,
        "classes": 19,
        "drop_rate": 0.15,
        "drop_path_rate": 0.15,
        "image_size": 120,
        "network_type": 0,
        "timm_model_name": "mixer_b16_224",
        "visual_features_out": 512,
    }
    content = {"config": config, "lr": 0.001, "warmup": None} if nested else config
    repository = "bigearthnet/mixer"
    weights = with_prefix(source, "model.vision_encoder.", tmp_path / "p.safetensors")
    hub.add(repository, {"config.json": json.dumps(content).encode(), "model.safetensors": weights})
    model = create_model(f"hf-hub:{repository}", pretrained=True, cache_dir=cache)
    assert model.config == dataclasses.replace(source.config, drop_rate=0.15, drop_path_rate=0.15)
    assert model.config.grid_size == (7, 7)
    assert_same_state(model, source)
    larger = create_model(f"hf-hub:{repository}", pretrained=True, cache_dir=cache, img_size=224, in_chans=3)
    assert larger.config.tokens_mlp_dim == 4 * 384  # 14 x 14 patches are two by two of 7 x 7
    shutil.rmtree(cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timm_model_name": "resnet50"}, "'resnet50' is not an MLP-Mixer"),
        ({"timm_model_name": 7}, "not an MLP-Mixer"),
        ({"image_size": "large"}, "must be an integer"),
        ({"channels": 0}, "must be an integer"),
        ({"classes": -1}, "num_classes"),
        ({"class_names": ["one"]}, "label_names must be 19 names"),
        ({"class_names": 5}, "label_names must be 19 names"),
    ],
)
def test_bad_configurations_of_others_are_refused(hub, cache, change, message):
    config = {"timm_model_name": "mixer_b16_224", "channels": 2, "classes": 19, "image_size": 120} | change
    hub.add(REPO, {"config.json": json.dumps({"config": config}).encode()})
    with pytest.raises(WeightsError, match=message):
        load(cache)
