"""verify: hashes of what lies in the cache, and the model against float64."""

import json
import shutil

import pytest
import torch
from flax_files import linen, save_npz
from helpers import TINY, TINY_TIMM_ARGS, randomise, run_cli, save_state, state_of, write_folder

import mixerzoo
from mixerzoo import Mixer, create_model
from mixerzoo.errors import HubError, ModelNameError, WeightsError
from mixerzoo.inference import verify as verify_module
from mixerzoo.inference.verify import TOLERANCE, verify
from mixerzoo.weights import official
from mixerzoo.zoo import WEIGHTS


def test_the_built_in_checkpoint():
    found = verify("mixer_ti4_32")
    assert found.problem is None
    assert found.file.sha256 == found.file.expected
    assert found.act == "tanh"
    assert 0 < found.block_error <= 5e-6
    assert 0 < found.logits_error <= 5e-6


@pytest.mark.parametrize("act", ["tanh", "erf"])
def test_a_wrong_computation_is_noticed(tmp_path, act, monkeypatch):
    """Weights with one GELU, a model with the other."""
    folder = write_folder(tmp_path / "m", randomise(Mixer(**TINY)), mixerzoo={"act": act})
    assert verify(f"local-dir:{folder}").problem is None
    create = create_model

    def wrong(name, **arguments):
        return create(name, **arguments, act="erf" if act == "tanh" else "tanh")

    monkeypatch.setattr(verify_module, "create_model", wrong)
    mixed = verify(f"local-dir:{folder}")
    assert mixed.problem is None  # the model is consistent with itself ...
    monkeypatch.setattr(verify_module.reference, "gelu", lambda x, _: x * (x > 0))
    found = verify(f"local-dir:{folder}")
    assert "differs from the float64 reference" in found.problem  # ... until it computes something else
    assert found.block_error > TOLERANCE


def test_hub_weights(hub, tmp_path):
    source = randomise(Mixer(**TINY, act="erf"))
    folder = write_folder(tmp_path / "m", source)
    hub.add("someone/tiny", {p.name: p.read_bytes() for p in folder.iterdir()})
    cache = tmp_path / "cache"
    found = verify("hf-hub:someone/tiny", cache_dir=cache)
    assert found.problem is None
    assert found.file.authority == "the Hub"
    assert found.file.sha256 == found.file.expected
    blob = found.file.path.resolve()
    status = blob.stat()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    import os

    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))  # damage that leaves size and time as they were
    rotten = verify("hf-hub:someone/tiny", cache_dir=cache)
    assert f"the Hub says {found.file.expected}: delete the file" in rotten.problem


def test_converted_weights(files, tmp_path):
    source = randomise(create_model("mixer_ti4_32"))
    files.files["/w.npz"] = save_npz(tmp_path / "w.npz", linen(state_of(source))).read_bytes()
    cfg = {"url": f"{files.url}/w.npz", "hf_hub_id": None, "file": None}
    create_model("mixer_ti4_32", pretrained=True, pretrained_cfg_overlay=cfg, cache_dir=tmp_path / "cache")
    from mixerzoo import get_pretrained_cfg
    from mixerzoo.weights.stored import stored_file

    described = get_pretrained_cfg("mixer_ti4_32")
    described.file, described.url = None, cfg["url"]
    found = stored_file(described, tmp_path / "cache")
    assert found.sha256 == found.expected
    record = official.read_record(official.entry_folder(cfg["url"], tmp_path / "cache"), cfg["url"])
    assert found.origin_sha256 == record.source_sha256
    content = bytearray(found.path.read_bytes())
    content[-1] ^= 1
    found.path.write_bytes(content)
    rotten = stored_file(described, tmp_path / "cache")
    assert rotten.sha256 != rotten.expected
    shutil.rmtree(tmp_path / "cache")
    assert stored_file(described, tmp_path / "cache") is None


def test_a_file_that_nobody_announced(tmp_path):
    folder = write_folder(tmp_path / "m", randomise(Mixer(**TINY, act="erf")))
    found = verify(f"local-dir:{folder}")
    assert found.file.expected is None
    assert found.problem is None


def test_nothing_is_hidden_by_nan(tmp_path):
    source = randomise(Mixer(**TINY, act="erf"))
    with torch.no_grad():
        source.norm.bias[0] = float("inf")
    folder = write_folder(tmp_path / "m", source)
    with pytest.raises(WeightsError, match=r"norm\.bias holds NaN or infinite"):
        verify(f"local-dir:{folder}")


def test_mistakes(tmp_path):
    with pytest.raises(ModelNameError):
        verify("mixer_b61")
    with pytest.raises(WeightsError, match="No weights were ever released"):
        verify("mixer_h14")
    with pytest.raises(HubError):
        verify("mixer_s16", cache_dir=tmp_path)


def test_command_line(tmp_path):
    result = run_cli("verify", "mixer_ti4_32", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["problem"] is None
    assert said["file"]["sha256"] == said["file"]["expected"]
    text = run_cli("verify", "mixer_ti4_32").stdout
    assert text.startswith("mixer_ti4_32: ok\n")
    assert "(as the package says)" in text
    missing = run_cli("verify", "mixer_s16", HF_HOME=str(tmp_path))
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: The official Flax file of mixer_s16.gsam_in1k")


def test_a_damaged_file_is_exit_status_one(tmp_path):
    folder = write_folder(tmp_path / "m", randomise(Mixer(**TINY)))
    save_state(randomise(Mixer(**TINY)), folder / "model.safetensors")
    assert run_cli("verify", f"local-dir:{folder}").returncode == 0
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert run_cli("verify", f"local-dir:{folder}").returncode == 1


def test_outputs_that_overflow_are_a_problem(tmp_path):
    """Finite weights, infinite activations in a middle layer: not a number is not a small difference."""
    source = randomise(Mixer(**TINY | {"depth": 4}, act="erf"))
    with torch.no_grad():
        source.blocks[2].mlp_channels.fc2.weight.mul_(1e38)
    folder = write_folder(tmp_path / "m", source, model_args=TINY_TIMM_ARGS | {"num_blocks": 4})
    found = verify(f"local-dir:{folder}")
    assert found.problem is not None
    result = run_cli("verify", f"local-dir:{folder}", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["logits_error"] is None


def test_models_without_pooling_and_with_a_fresh_head(tmp_path):
    for i, change in enumerate(({"global_pool": ""}, {"num_classes": 0})):
        model = randomise(Mixer(**TINY | change, act="erf"))
        mixerzoo.save_model(model, tmp_path / str(i))
        assert verify(f"local-dir:{tmp_path / str(i)}").problem is None
    mixerzoo.save_model(Mixer(**TINY), tmp_path / "zeros")
    assert verify(f"local-dir:{tmp_path / 'zeros'}").problem is None


def test_several_names_go_on_past_a_bad_one():
    result = run_cli("verify", "mixer_b61", "mixer_ti4_32")
    assert result.returncode == 1
    assert "There is no model 'mixer_b61'" in result.stderr
    assert result.stdout.startswith("mixer_ti4_32: ok")


@pytest.mark.parametrize("source", [None, "npz"])
def test_an_official_tag(files, tmp_path, monkeypatch, source):
    """By its name, at its real size; only the bucket is on this machine."""
    row = WEIGHTS["mixer_s32.gsam_in1k"]
    path = "/" + row.npz_url.partition("://")[2].partition("/")[2]
    weights = randomise(create_model(row.name))
    files.files[path] = save_npz(tmp_path / "w.npz", linen(state_of(weights))).read_bytes()
    download = official.download
    monkeypatch.setattr(official, "download", lambda url, *rest: download(files.url + path, *rest))
    found = verify(row.name, source=source, cache_dir=tmp_path / "cache")
    assert found.problem is None
    assert found.file.authority == "its provenance record"
    assert found.file.sha256 == found.file.expected
    assert found.file.origin == row.npz_url
    assert files.downloads() == [path]
