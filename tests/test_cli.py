"""The command line, run as a user runs it: what it prints, where, and how it exits."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import TINY, randomise, run_cli, write_folder
from hub_server import HubServer
from image_files import make_bomb, make_png, make_text
from typer.testing import CliRunner

import mixerzoo
from mixerzoo import Mixer
from mixerzoo.cli import app
from mixerzoo.config import PRESETS
from mixerzoo.errors import MixerzooError
from mixerzoo.zoo import WEIGHTS

BUILT_IN = ("--model", "mixer_ti4_32")


def invoke(*args):
    """The same commands inside this process: quick, for what needs no process of its own."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit | MixerzooError):
        raise result.exception
    return result


def test_list():
    result = invoke("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} == set(PRESETS)
    assert "59.9 M parameters" in result.stdout
    only = invoke("list", "*b16*")
    assert [line.split()[0] for line in only.stdout.splitlines()] == ["mixer_b16"]


def test_list_pretrained():
    result = invoke("list", "--pretrained")
    assert {line.split()[0] for line in result.stdout.splitlines()} == set(WEIGHTS)
    assert "in the package" in result.stdout
    assert "https://huggingface.co/timm/mixer_b16_224.miil_in21k" in result.stdout


def test_list_nothing():
    result = invoke("list", "resnet*")
    assert result.exit_code == 1
    assert "No model matches 'resnet*'" in result.stderr


def test_info_of_the_default_says_what_scores_higher():
    text = invoke("info", "mixer_b16").stdout
    assert "59,880,472" in text
    assert "14 x 14 = 196 tokens" in text
    assert "miil_in21k_ft_in1k scores higher (82.3 % ImageNet top-1)" in text
    assert "apache-2.0" in text
    assert "76.44 %" in text
    assert all(name in text for name in WEIGHTS if name.startswith("mixer_b16."))


def test_info_of_one_tag():
    text = invoke("info", "mixer_b16.miil_in21k_ft_in1k").stdout
    assert "82.314 %" in text
    assert "GELU             erf" in text
    assert "goog_in21k" not in text


def test_info_without_weights():
    assert "No released weights" in invoke("info", "mixer_h14").stdout


def test_info_of_a_folder(tmp_path):
    model = randomise(Mixer(**TINY, act="erf"))
    text = invoke("info", f"local-dir:{write_folder(tmp_path / 'm', model)}").stdout
    assert "layers           2" in text
    assert "GELU             erf" in text
    assert "goog_in1k" not in text


def test_predict_one_file(root):
    result = run_cli("predict", "examples/cat.png", *BUILT_IN, "--top-k", 2, cwd=root)
    assert result.returncode == 0, result.stderr
    first, *classes = result.stdout.splitlines()
    assert first == "examples/cat.png"
    assert len(classes) == 2
    assert all("%" in line for line in classes)
    assert result.stderr == ""


def test_predict_folder_as_json_goes_on_past_bad_files(tmp_path):
    make_png(tmp_path)
    bomb, text = make_bomb(tmp_path), make_text(tmp_path)
    result = run_cli("predict", tmp_path, *BUILT_IN, "--json", "--top-k", 1)
    assert result.returncode == 1
    rows = {row["source"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert len(rows) == 3
    assert rows[str(tmp_path / "a.png")]["error"] is None
    assert "pixels" in rows[str(bomb)]["error"]
    assert "not an image" in rows[str(text)]["error"]
    assert "2 of 3 images could not be read" in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_optimized(root):
    result = run_cli("predict", "examples/cat.png", *BUILT_IN, "--top-k", 1, "--optimize", cwd=root)
    assert result.returncode == 0, result.stderr
    assert "cat" in result.stdout
    assert result.stderr.startswith("program: ")
    refused = run_cli("predict", "examples/cat.png", *BUILT_IN, "--quantize", "fp8", cwd=root)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: Nothing can run quantize='fp8' on cpu")
    assert "Traceback" not in refused.stderr


def test_predict_bad_file_as_text(tmp_path):
    text = make_text(tmp_path)
    result = run_cli("predict", text, *BUILT_IN)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {text}: not an image in a format that is read (JPEG, PNG, ")
    assert result.stderr.count("\n") == 1


def test_predict_falls_back_to_the_built_in_model_and_says_so(root, tmp_path):
    """No network: nothing listens where the Hub should be."""
    closed = HubServer()
    url = closed.url
    closed.close()
    result = run_cli("predict", root / "examples/cat.png", HF_ENDPOINT=url, HF_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "note: using the small built-in model mixer_ti4_32.cifar10, which knows only 10 classes" in result.stderr
    assert "mixer_b16.goog_in1k cannot be had" in result.stderr
    assert len(result.stdout.splitlines()) == 6


def test_predict_does_not_fall_back_from_a_model_that_was_named(root, tmp_path, hub):
    result = run_cli("predict", root / "examples/cat.png", "--model", "mixer_b16", HF_HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: model.safetensors of the Hub repository timm/mixer_b16_224")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("predict", "/no/such.jpg", *BUILT_IN), "/no/such.jpg: there is no such file or folder."),
        (("predict", "PHOTO", "--model", "mixer_b61"), "Did you mean 'mixer_b16'"),
        (("predict", "PHOTO", "--device", "gpu"), "--device gpu cannot be used"),
        (("info", "mixer_b16.nothing"), "its tags are"),
        (("train", "--data", "/no/such", "--out", "/tmp/x"), "There is no folder /no/such"),
        (("train", "--data", "/no/such"), "needs --out"),
        (("train", "--data", "/no/such", "--out", "/tmp/x", "--model", "mixer_b61"), "Did you mean 'mixer_b16'"),
        (("train", "--data", "/no/such", "--recipe", "cifar"), "Did you mean 'cifar10_scratch'"),
        (("train", "--data", "/no/such", "--set", "learning_rate=1"), "no field 'learning_rate'"),
    ],
)
def test_mistakes_get_one_sentence(args, message, root):
    result = invoke(*(str(root / "examples" / "cat.png") if arg == "PHOTO" else arg for arg in args))
    assert isinstance(result.exception, MixerzooError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_no_traceback_reaches_the_user(tmp_path):
    result = run_cli("info", "mixer_b61")
    assert result.returncode == 1
    assert result.stderr.startswith("error: There is no model 'mixer_b61'. Did you mean 'mixer_b16'")
    assert result.stderr.count("\n") == 1


def test_wrong_label_is_a_note():
    result = run_cli("info", "mixer_b16.goog_in21k_ft_in1k")
    assert result.returncode == 0
    assert "note: mixer_b16.goog_in21k_ft_in1k is a wrong label and means mixer_b16.goog_in1k" in result.stderr
    assert "mixer_b16.goog_in1k (default)" in result.stdout


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "mixerzoo", "list", "--pretrained"]
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True)
    head.stdout.close()
    _, errors = head.communicate(timeout=120)
    assert "Traceback" not in errors


def test_version():
    assert invoke("--version").stdout == f"mixerzoo {mixerzoo.__version__}\n"


def test_installed_script():
    script = shutil.which("mixerzoo", path=os.path.dirname(sys.executable))
    if script is None:
        pytest.skip("mixerzoo is not installed in this environment (only on the path)")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    for command in ("list", "info", "predict", "train", "evaluate"):
        assert command in result.stdout
