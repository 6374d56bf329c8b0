"""The distribution: a wheel that carries its assets and works far from the checkout."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

import mixerzoo

ASSET = "mixerzoo/assets/mixer_ti4_32.cifar10.safetensors"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    from conftest import ROOT

    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (path,) = out.glob("*.whl")
    return path


def test_wheel_carries_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.getinfo(ASSET).file_size <= 4 * 2**20
    assert "mixerzoo/py.typed" in names
    for source in ("mixer.cpp", "tile.h", "vectors.h", "model.h", "bf16.h", "int8.h"):
        assert f"mixerzoo/kernels/cpu/{source}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests") or "__pycache__" in name]


def test_wheel_works_far_from_the_checkout(wheel, tmp_path, root):
    """Only the wheel's files on the path, another working directory, no network: a model, a prediction."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
import json, sys
import mixerzoo
model = mixerzoo.create_model("mixer_ti4_32", pretrained=True)
(prediction,) = mixerzoo.predict(model, [sys.argv[1]], top_k=1)
print(json.dumps([mixerzoo.__file__, mixerzoo.__version__, prediction.labels]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(root / "examples" / "cat.png")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(site), "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert result.returncode == 0, result.stderr
    file, version, labels = json.loads(result.stdout)
    assert file.startswith(str(site))
    assert version == mixerzoo.__version__
    assert len(labels) == 1
