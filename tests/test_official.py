"""Official Flax files: downloaded, checked, converted once, kept; and whatever can go wrong on the way."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from flax_files import linen, pre_linen, save_npz
from helpers import assert_same_state, randomise, run_cli, save_state, state_of

import mixerzoo
from mixerzoo import create_model
from mixerzoo.errors import ConfigError, HubError, HubUnreachableError, StorageError, WeightsError
from mixerzoo.weights import official, transfer
from mixerzoo.zoo import WEIGHTS

PATH = "/mixer_models/own/Mixer-Ti_4.npz"


@pytest.fixture
def source():
    return randomise(create_model("mixer_ti4_32"))


@pytest.fixture
def npz(files, tmp_path, source):
    """The bytes of an official file, offered by the server."""
    files.files[PATH] = save_npz(tmp_path / "w.npz", linen(state_of(source))).read_bytes()
    return files.files[PATH]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def impatient(monkeypatch):
    """A client that writes small pieces, and does not wait between its attempts."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(time, "sleep", lambda _: None)


def load(files, cache, **arguments):
    overlay = {"file": None, "url": files.url + PATH}
    return create_model("mixer_ti4_32", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache, **arguments)


def left_over(cache):
    """What of a checkpoint lies in the cache, finished or not."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def test_downloaded_and_converted_once(files, npz, cache, source):
    assert_same_state(load(files, cache), source)
    assert files.downloads() == [PATH]
    asked = len(files.requests)
    assert_same_state(load(files, cache), source)
    assert len(files.requests) == asked  # not even asked
    assert left_over(cache) == ["model.safetensors", "provenance.json"]  # the Flax file is not kept


def test_the_record_says_where_it_comes_from(files, npz, cache):
    files.announce_google_hash(PATH)
    load(files, cache)
    (record,) = cache.rglob("provenance.json")
    result = record.with_name("model.safetensors")
    said = json.loads(record.read_text())
    assert said["source_url"] == files.url + PATH
    assert said["source_size"] == len(npz)
    assert said["source_sha256"] == hashlib.sha256(npz).hexdigest()
    assert said["checked"].keys() == {"crc32c", "md5"}
    assert said["checked"]["md5"] == hashlib.md5(npz).hexdigest()
    assert said["result_size"] == result.stat().st_size
    assert said["result_sha256"] == hashlib.sha256(result.read_bytes()).hexdigest()
    assert said["converter"] == official.CONVERTER
    assert said["mixerzoo"] == mixerzoo.__version__
    assert said["date"].endswith("+00:00")


def test_weights_are_mapped_not_read(files, npz, cache):
    load(files, cache)
    (path,) = cache.rglob("model.safetensors")
    model = load(files, cache)
    address = model.head.weight.data_ptr()
    ranges = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in ranges]
    assert any(start <= address < end for start, end in spans)


def test_older_conversions_are_made_anew(files, npz, cache, source, monkeypatch):
    load(files, cache)
    monkeypatch.setattr(official, "CONVERTER", official.CONVERTER + 1)
    assert_same_state(load(files, cache), source)
    assert len(files.downloads()) == 2


def test_another_address_is_another_entry(files, npz, cache, tmp_path):
    load(files, cache)
    other = randomise(create_model("mixer_ti4_32"), scale=2.0)
    files.files["/other/Mixer-Ti_4.npz"] = save_npz(tmp_path / "o.npz", linen(state_of(other))).read_bytes()
    overlay = {"file": None, "url": files.url + "/other/Mixer-Ti_4.npz"}
    model = create_model("mixer_ti4_32", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)
    assert_same_state(model, other)


def test_every_argument_works_with_converted_weights(files, npz, cache, source):
    model = load(files, cache, img_size=64, in_chans=1, num_classes=3, dtype=torch.bfloat16)
    assert (model.config.tokens_mlp_dim, model.in_chans, model.num_classes) == (256, 1, 3)
    assert torch.equal(model.norm.weight, source.norm.weight.bfloat16())


# the way there


def test_a_cut_download_goes_on_where_it_ended(files, npz, cache, source, impatient):
    files.cuts = [1_000_000, 1_000_000]
    assert_same_state(load(files, cache), source)
    ranges = [asked for method, _, asked in files.requests if method == "GET"]
    assert ranges[0] is None
    assert all(int(asked[len("bytes=") : -1]) > 0 for asked in ranges[1:])
    assert len(ranges) == 3


def test_a_process_that_was_killed_while_downloading_is_taken_up(files, npz, cache, source):
    files.slow = 0.05  # 46 pieces
    with _start(files, cache) as process:
        _wait_for(lambda: any(p.stat().st_size > 500_000 for p in cache.rglob("*.part")), process)
        process.kill()
    files.slow = 0.0
    (part,) = cache.rglob("*.part")
    kept = part.stat().st_size
    assert 0 < kept < len(npz)
    assert_same_state(load(files, cache), source)
    assert files.requests[-1][2] == f"bytes={kept}-"
    assert left_over(cache) == ["model.safetensors", "provenance.json"]


def test_another_version_on_the_server_is_not_glued_to_half_of_the_first(files, npz, cache, tmp_path, impatient):
    files.cuts = [1_000_000] + [0] * 100
    with pytest.raises(HubUnreachableError):
        load(files, cache)
    files.cuts = []
    newer = randomise(create_model("mixer_ti4_32"), scale=3.0)
    files.files[PATH] = save_npz(tmp_path / "n.npz", linen(state_of(newer))).read_bytes()
    assert_same_state(load(files, cache), newer)
    assert left_over(cache) == ["model.safetensors", "provenance.json"]


def test_a_server_without_ranges(files, npz, cache, source, impatient):
    files.ignore_ranges, files.cuts = True, [1_000_000]
    assert_same_state(load(files, cache), source)


def _digest_field(files, content):
    import base64

    encoded = base64.b64encode(hashlib.sha256(content).digest()).decode()
    files.announce[PATH] = {"Repr-Digest": f"sha-256=:{encoded}:"}


def _google_md5(files, content):
    files.announce_google_hash(PATH, content)


def _google_crc32c(files, content):
    files.announce_google_hash(PATH, content, composite=True)


@pytest.mark.parametrize("announce", [_google_md5, _google_crc32c, _digest_field])
def test_announced_hashes_are_checked(files, npz, cache, source, announce, monkeypatch):
    announce(files, npz)
    damaged = bytearray(npz)
    damaged[2_000_000] ^= 1
    files.files[PATH] = bytes(damaged)
    with pytest.raises(HubError, match=r"arrived damaged \((crc32c|md5|sha256) .*was removed: try again"):
        load(files, cache)
    assert left_over(cache) == []
    files.files[PATH] = npz
    assert_same_state(load(files, cache), source)


@pytest.mark.parametrize(
    ("status", "message"), [(404, "status 404"), (403, "status 403"), (500, "status 500.*try again later")]
)
def test_server_errors(files, npz, cache, status, message):
    files.status = status
    with pytest.raises(HubError, match=f"The official Flax file of mixer_ti4_32.cifar10.*{message}"):
        load(files, cache)
    assert left_over(cache) == []


def test_hashes_that_are_none_are_not_believed(files, npz, cache, source):
    files.announce[PATH] = {"x-goog-hash": "md5=,crc32c=AAAA", "ETag": f'"{"f" * 64}"', "Digest": "sha-256=abc"}
    assert_same_state(load(files, cache), source)


def test_a_server_that_answers_no_head(files, npz, cache, source):
    files.no_head = True
    assert_same_state(load(files, cache), source)


def test_without_an_announced_size_half_a_download_starts_anew(files, npz, cache, source):
    files.no_head = True
    folder = official.entry_folder(files.url + PATH, cache)
    (folder / f"Mixer-Ti_4.npz.{hashlib.sha256(b'').hexdigest()[:8]}.part").write_bytes(npz)
    assert_same_state(load(files, cache), source)
    assert files.requests[-1][2] is None


def test_a_full_disk_is_called_that(files, npz, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mixerzoo.weights.download.http_get", full)
    with pytest.raises(StorageError, match="cannot be stored: No space left on device"):
        load(files, cache)


def test_a_download_that_outlived_its_conversion_is_swept(files, npz, cache):
    load(files, cache)
    (record,) = cache.rglob("provenance.json")
    (record.parent / "Mixer-Ti_4.npz.01234567.part").write_bytes(b"x")
    load(files, cache)
    assert left_over(cache) == ["model.safetensors", "provenance.json"]


def test_nobody_listens(files, npz, cache):
    files.close()
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        load(files, cache)


def test_offline(files, npz, cache, source, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        load(files, cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    load(files, cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_same_state(load(files, cache), source)


def test_a_silent_server_is_waited_for_once(cache, monkeypatch):
    import socket

    monkeypatch.setattr(transfer, "REACH_DEADLINE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        overlay = {"file": None, "url": f"http://127.0.0.1:{silent.getsockname()[1]}/w.npz"}
        with pytest.raises(HubUnreachableError, match="no answer within"):
            create_model("mixer_ti4_32", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)


def test_a_file_that_is_not_the_one_known_is_refused(files, npz, cache, source, monkeypatch, tmp_path):
    known = {files.url + PATH: hashlib.sha256(b"another").hexdigest()}
    (tmp_path / "checksums.json").write_text(json.dumps(known))
    monkeypatch.setattr("mixerzoo.weights.checksums.CHECKSUMS_FILE", tmp_path / "checksums.json")
    with pytest.raises(HubError, match=r"is another file .* than the mixer_ti4_32\.cifar10 that mixerzoo knows"):
        load(files, cache)
    assert left_over(cache) == []
    known[files.url + PATH] = hashlib.sha256(npz).hexdigest()
    (tmp_path / "checksums.json").write_text(json.dumps(known))
    assert_same_state(load(files, cache), source)


# damage that no hash announces


def _drop(arrays):
    del arrays["MixerBlock_3/LayerNorm_1/scale"]


def _drop_last_block(arrays):
    for key in [k for k in arrays if k.startswith("MixerBlock_7/")]:
        del arrays[key]


def _extra_block(arrays):
    for key in [k for k in arrays if k.startswith("MixerBlock_7/")]:
        arrays[key.replace("_7/", "_8/", 1)] = arrays[key]


def _misshape(arrays):
    arrays["MixerBlock_2/token_mixing/Dense_0/kernel"] = np.zeros((63, 64), np.float32)


def _nan(arrays):
    arrays["head/kernel"][0, 0] = np.nan


def _pickle(arrays):
    arrays["head/bias"] = np.array([None] * 10, dtype=object)


def _other_classes(arrays):
    arrays["head/kernel"], arrays["head/bias"] = np.ones((128, 7), np.float32), np.ones(7, np.float32)


def _other_grid(arrays):
    larger = create_model("mixer_ti4_32", img_size=64)
    arrays.update(linen(state_of(larger)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, "lacks MixerBlock_3/LayerNorm_1/scale"),
        (_drop_last_block, "depth 7 instead of 8"),
        (_extra_block, "depth 9 instead of 8"),
        (_misshape, "MixerBlock_2/token_mixing/Dense_0/kernel has shape"),
        (_nan, "head/kernel holds NaN"),
        (_pickle, "head/bias is a pickled array"),
        (_other_classes, "num_classes 7 instead of 10"),
        (_other_grid, "makes 64 patches of 4 pixels; .* is for 256"),
    ],
)
def test_a_file_that_is_not_the_checkpoint_leaves_nothing(files, cache, tmp_path, source, damage, message):
    arrays = linen(state_of(source))
    damage(arrays)
    files.files[PATH] = save_npz(tmp_path / "w.npz", arrays).read_bytes()
    with pytest.raises(WeightsError, match=message):
        load(files, cache)
    assert left_over(cache) == []


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", b"PK\x03\x04"])
def test_a_page_instead_of_a_file_leaves_nothing(files, cache, content):
    files.files[PATH] = content
    with pytest.raises(WeightsError, match="not a whole"):
        load(files, cache)
    assert left_over(cache) == []


def test_a_truncated_archive_leaves_nothing(files, npz, cache):
    files.files[PATH] = npz[:-1000]
    with pytest.raises(WeightsError, match="not a whole"):
        load(files, cache)
    assert left_over(cache) == []


def test_a_cache_entry_that_rots_is_noticed_and_made_anew(files, npz, cache, source):
    load(files, cache)
    (path,) = cache.rglob("model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # another size than the record says
    assert_same_state(load(files, cache), source)
    (path,) = cache.rglob("model.safetensors")
    path.write_bytes(b"\xff" * len(whole))  # the right size
    with pytest.raises(HubError, match="damaged and was removed: try again"):
        load(files, cache)
    assert_same_state(load(files, cache), source)
    (record,) = cache.rglob("provenance.json")
    record.write_text("{}")
    assert_same_state(load(files, cache), source)


def test_a_cache_that_cannot_be_written(files, npz, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be created"):
        load(files, tmp_path / "file" / "cache")


# several processes, and kills

_CHILD = """
import sys
import huggingface_hub, torch
from mixerzoo import create_model
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 100_000
stage, url, cache = sys.argv[1:4]
def stop(*args, **kwargs):
    print("here", flush=True)
    sys.stdin.read()
if stage != "none":
    import mixerzoo.weights.official as official
    module, name = {
        "read": (official, "read_npz"), "write": (official, "write_tensors"), "hash": (official, "file_digest"),
        "record": (official, "write_atomically"),
    }[stage]
    original = getattr(module, name)
    def paused(*args, **kwargs):
        result = original(*args, **kwargs) if stage in ("read", "write") else None
        stop()
        return result if stage in ("read", "write") else original(*args, **kwargs)
    setattr(module, name, paused)
overlay = {"file": None, "url": url}
model = create_model("mixer_ti4_32", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)
print(float(sum(p.double().sum() for p in model.parameters())))
"""


def _start(files, cache, stage="none"):
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, stage, files.url + PATH, str(cache)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def _wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["read", "write", "hash", "record"])
def test_a_kill_at_any_moment_leaves_a_cache_that_works(files, npz, cache, source, stage):
    with _start(files, cache, stage) as process:
        assert process.stdout.readline() == "here\n", process.stderr.read()
        process.send_signal(signal.SIGKILL)
    assert not list(cache.rglob("provenance.json"))
    assert_same_state(load(files, cache), source)
    assert files.downloads() == [PATH]  # the finished download of the killed process was used
    assert left_over(cache) == ["model.safetensors", "provenance.json"]


def test_two_processes_at_once_convert_once(files, npz, cache, source):
    files.slow = 0.02
    children = [_start(files, cache) for _ in range(2)]
    results = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    total = sum(p.double().sum().item() for p in source.parameters())
    assert [float(out) for out, _ in results] == pytest.approx([total, total])
    assert files.downloads() == [PATH]


def test_who_waits_is_told(files, npz, cache, source):
    with _start(files, cache, "read") as process:  # holds the lock until its standard input ends
        assert process.stdout.readline() == "here\n"
        threading.Timer(2.0, process.stdin.close).start()
        with pytest.warns(UserWarning, match="Waiting for another process that is converting mixer_ti4_32"):
            assert_same_state(load(files, cache), source)
    assert process.returncode == 0


# the Hub first, the Flax file where it fails


@pytest.fixture
def both(hub, files, npz, cache, source, monkeypatch):
    """A tag with a Hub repository and a Flax file; the Hub's weights are others, to tell them apart."""
    on_hub = randomise(create_model("mixer_ti4_32"), scale=2.0)
    content = save_state(on_hub, cache.parent / "hub.safetensors").read_bytes()
    repository = hub.add("official/ti4", {"model.safetensors": content})
    overlay = {"file": None, "hf_hub_id": "official/ti4", "url": files.url + PATH}

    def create(**arguments):
        return create_model(
            "mixer_ti4_32", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache, **arguments
        )

    return create, repository, on_hub


def test_the_hub_is_preferred(both, files):
    create, _, on_hub = both
    assert_same_state(create(), on_hub)
    assert files.requests == []


def test_the_flax_file_can_be_asked_for(both, files, source):
    create, repository, _ = both
    assert_same_state(create(source="npz"), source)
    assert repository.requests == []


@pytest.mark.parametrize("status", [404, 503])
def test_the_flax_file_steps_in(both, source, status):
    create, repository, _ = both
    repository.status = status
    said = "cannot be reached" if status == 503 else "does not have it"
    with pytest.warns(UserWarning, match=f"cifar10: using Google's Flax file, because the Hub {said}"):
        assert_same_state(create(), source)
    with pytest.raises(HubError, match="status"):
        create(source="hub")


def test_where_neither_can_be_had_both_reasons_are_given(both, files):
    create, repository, _ = both
    repository.status = files.status = 503
    with pytest.raises(HubUnreachableError, match=r"official/ti4.*status 503.*The original, http.*npz, cannot be had"):
        create()
    files.status = 404
    with pytest.raises(HubUnreachableError, match=r"official/ti4.*Nor can the original be had: .*status 404"):
        create()


def test_no_other_weights_step_in_for_a_repository_of_ones_own(hub, cache):
    overlay = {"hf_hub_id": "someone/absent"}
    with pytest.raises(HubError, match=r"someone/absent.*no such repository") as caught:
        create_model("mixer_b16.goog_in1k", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)
    assert "original" not in str(caught.value)


def test_sources_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="no Flax file"):
        create_model("mixer_b16.miil_in21k", pretrained=True, source="npz")
    with pytest.raises(ConfigError, match="no Hub repository"):
        create_model("mixer_s16", pretrained=True, source="hub")
    with pytest.raises(ConfigError, match="'hub' or 'npz'"):
        create_model("mixer_s16", pretrained=True, source="gcs")


# the released tags

OFFICIAL = [name for name, row in WEIGHTS.items() if row.npz_url]
RELEASED = [name for name, row in WEIGHTS.items() if not row.asset]


def test_there_are_thirteen_released_tags_and_eleven_official_files():
    assert len(RELEASED) == 13
    assert len(OFFICIAL) == len({row.npz_url for row in WEIGHTS.values() if row.npz_url}) == 11


@pytest.mark.parametrize("name", RELEASED)
def test_gelu_and_preprocessing_come_from_the_tag_alone(name):
    model = create_model(name, device="meta")
    google = "miil" not in name
    assert model.config.act == ("tanh" if google else "erf")
    config = mixerzoo.factory.data_config(model)
    assert config["mean"] == ((0.5,) * 3 if google else (0.0,) * 3)
    assert config["std"] == ((0.5,) * 3 if google else (1.0,) * 3)
    assert config["interpolation"] == ("bicubic" if google else "bilinear")
    assert config["crop_pct"] == 0.875
    assert config["input_size"] == (3, 224, 224)
    classes = {"goog_in21k": 21843, "miil_in21k": 11221}.get(name.partition(".")[2], 1000)
    assert model.num_classes == classes == len(mixerzoo.labels(name))


@pytest.mark.parametrize("name", ["mixer_s16.gsam_in1k", "mixer_b32.sam_in1k"])
@pytest.mark.parametrize("layout", [linen, pre_linen])
def test_official_tags_at_their_real_size(files, cache, tmp_path, name, layout, monkeypatch):
    """By their plain names; only the bucket is on this machine."""
    row = WEIGHTS[name]
    source = randomise(create_model(name))
    path = row.npz_url.removeprefix("https://storage.googleapis.com")
    files.files[path] = save_npz(tmp_path / "w.npz", layout(state_of(source))).read_bytes()
    monkeypatch.setattr("mixerzoo.weights.official.download", _redirect(files, official.download))
    model = create_model(name, pretrained=True, cache_dir=cache)
    assert_same_state(model, source)
    assert model.config == row.config
    assert files.downloads() == [path]
    (record,) = cache.rglob("provenance.json")
    assert json.loads(record.read_text())["source_url"] == row.npz_url


def _redirect(files, download):
    def redirected(url, *args):
        return download(url.replace("https://storage.googleapis.com", files.url), *args)

    return redirected


def test_the_command_line_says_what_it_cannot_reach(tmp_path, root):
    result = run_cli("predict", root / "examples/cat.png", "--model", "mixer_s16", HF_HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: The official Flax file of mixer_s16.gsam_in1k is not in the cache and https"
    )
    assert result.stderr.count("\n") == 1
