"""Optimized models in folders: written completely or not at all, read as data."""

import json
import subprocess
import sys

import pytest
import torch
from test_engine import images_for, randomised

import mixerzoo
from mixerzoo.errors import EngineError


@pytest.fixture
def saved(tmp_path):
    model = randomised()
    fast = mixerzoo.optimize(model, compile=False, max_batch_size=8)
    fast.save(tmp_path / "fast")
    return fast, tmp_path / "fast"


def test_another_process_computes_the_same(saved, tmp_path):
    fast, folder = saved
    images = images_for(fast)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, mixerzoo; fast = mixerzoo.load_optimized(sys.argv[1]);"
        "torch.save(fast(torch.load(sys.argv[2])), sys.argv[3]); print(fast.report())"
    )
    arguments = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "out.pt"), fast(images))
    assert done.stdout.strip() == str(fast.report())


def test_nothing_is_overwritten(saved):
    fast, folder = saved
    with pytest.raises(EngineError, match="exists already"):
        fast.save(folder)


def test_a_failed_write_leaves_nothing(saved, tmp_path, monkeypatch):
    fast, _ = saved

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("mixerzoo.engine.artefact.save_file", full)
    with pytest.raises(EngineError, match="No space left"):
        fast.save(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast"]


def cut(folder):
    data = (folder / "tensors.safetensors").read_bytes()
    (folder / "tensors.safetensors").write_bytes(data[: len(data) // 2])


def change(**fields):
    def apply(folder):
        described = json.loads((folder / "engine.json").read_text())
        (folder / "engine.json").write_text(json.dumps(described | fields))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "engine.json").unlink(), "engine.json is missing"),
        (lambda folder: (folder / "tensors.safetensors").unlink(), "missing|damaged"),
        (lambda folder: (folder / "engine.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "engine.json").write_text("[]"), "is damaged"),
        (cut, "is damaged"),
        (change(format=99), "has format 99"),
        (change(program="magic"), "for the program 'magic'"),
        (change(dtype="load"), "is damaged"),
        (change(device="bogus"), "cannot be used here: device='bogus'"),
        (change(device="cuda"), "cannot be used here: .*no such device"),
        (change(max_batch_size=-1), "cannot be used here: max_batch_size=-1"),
        (change(max_batch_size="x"), "cannot be used here: max_batch_size='x'"),
        (change(compile="yes"), "cannot be used here: compile='yes'"),
        (lambda folder: (folder / "engine.json").write_text("[" * 100_000), "is damaged"),
        (change(config={"img_size": 4}), "cannot be used here: img_size=4"),
    ],
    ids=[
        "no json",
        "no tensors",
        "half json",
        "list",
        "cut",
        "format",
        "program",
        "dtype",
        *(f"wrong {field}" for field in ("device", "cuda", "number", "words", "compile")),
        "nested",
        "config",
    ],
)
def test_damage_is_named(saved, damage, words):
    _, folder = saved
    damage(folder)
    with pytest.raises(EngineError, match=words):
        mixerzoo.load_optimized(folder)


def test_tensors_that_do_not_fit_are_refused(saved):
    from safetensors.torch import load_file, save_file

    _, folder = saved
    tensors = load_file(folder / "tensors.safetensors")
    del tensors["layers.1.w3"]
    save_file(tensors, folder / "tensors.safetensors")
    with pytest.raises(EngineError, match="is damaged"):
        mixerzoo.load_optimized(folder)


def test_code_in_a_folder_is_not_run_unless_it_is_trusted(saved):
    """A stranger's folder is data: a compiled file in it is not even opened."""
    fast, folder = saved
    (folder / "compiled.pt2").write_bytes(b"not a package")
    images = images_for(fast)
    assert torch.equal(mixerzoo.load_optimized(folder)(images), fast(images))


def test_trusted_code_that_is_damaged_is_named(saved):
    _, folder = saved
    change(compile=True, program="compiled")(folder)
    (folder / "compiled.pt2").write_bytes(b"not a package")
    with pytest.raises(EngineError, match="pt2 cannot be loaded"):
        mixerzoo.load_optimized(folder, trusted=True)


def test_trusted_code_of_another_machine_is_not_run(saved, monkeypatch):
    _, folder = saved
    change(compile=True, program="compiled", made_for={"torch": "1.0", "processor": "Z80"})(folder)
    (folder / "compiled.pt2").write_bytes(b"not a package")
    monkeypatch.setattr("mixerzoo.engine.programs.compiled.compiler", lambda: None)
    assert "run eagerly" in str(mixerzoo.load_optimized(folder, trusted=True).report())


def test_what_is_no_json_in_a_models_own_notes_is_left_out(tmp_path):
    model = randomised()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "someones": object(), "nested": [{"deep": object()}]}
    mixerzoo.optimize(model, compile=False).save(tmp_path / "fast")
    assert set(mixerzoo.load_optimized(tmp_path / "fast").pretrained_cfg) == {"mean"}
