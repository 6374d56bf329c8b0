"""``mixerzoo train`` as it is typed."""

import json

import pytest
from helpers import run_cli
from training import write_data

from mixerzoo.cli import app
from mixerzoo.errors import MixerzooError

SMALL = ["--workers", "0", "--no-amp", "--set", "batch_size=8", "--set", "opt=adamw", "--set", "epochs=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_train_resume_evaluate(folder, tmp_path):
    """A run leaves a model, a card and curves; a second one needs --resume; what was printed is what is evaluated."""
    out = tmp_path / "run"
    command = ["train", "--data", folder, "--out", out, *SMALL, "--tensorboard"]
    first = run_cli(*command)
    assert first.returncode == 0, first.stderr
    assert f"model: local-dir:{out}" in first.stdout
    for name in ("model.safetensors", "config.json", "README.md", "training.md", "training.json", "metrics.jsonl"):
        assert (out / name).stat().st_size > 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())
    card = json.loads((out / "training.json").read_text())
    assert card["overrides"] == {"batch_size": 8, "opt": "adamw", "epochs": 2}
    assert (card["data"]["num_images"], card["data"]["unusable"], card["run"]["images_seen"]) == (24, 0, 48)
    assert card["recipe_name"] == "cifar10_scratch"
    refused = run_cli(*command)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "add --resume" in refused.stderr
    again = run_cli(*command, "--resume")
    assert again.returncode == 0, again.stderr
    top1 = next(line for line in again.stdout.splitlines() if line.startswith("top-1"))
    assert top1 in first.stdout
    evaluated = run_cli("evaluate", "--data", folder, "--model", f"local-dir:{out}", "--workers", 0)
    assert evaluated.returncode == 0, evaluated.stderr
    assert top1.partition(",")[0] in evaluated.stdout  # of two classes, top-5 says nothing there


def test_a_dry_run_says_what_a_run_would_take_and_trains_nothing(folder, tmp_path):
    text = run_cli("train", "--data", folder, "--dry-run", *SMALL, "--out", tmp_path / "run")
    assert text.returncode == 0, text.stderr
    assert "6 steps" in text.stdout
    assert "No throughput was measured for a GPU: no times." in text.stdout
    assert "hours" not in text.stdout
    assert not (tmp_path / "run").exists()
    synthetic = run_cli(
        "train", "--recipe", "imagenet1k_b16", "--set", "model=mixer_ti4_32", "--data", "synthetic", "--dry-run",
        "--json", "--workers", "0", "--throughput", tmp_path / "gpu.json",
    )  # fmt: skip
    assert synthetic.returncode == 0, synthetic.stderr
    plan = json.loads(synthetic.stdout)
    assert plan["num_images"] == 1_281_167 - round(0.01 * 1_281_167)
    assert plan["total_steps"] == 300 * (plan["num_images"] // 4096)
    assert plan["here"]["images_per_second"] > 0
    assert plan["loading"]["images_per_second"] > 0
    assert plan["throughput"] is None
    assert not (tmp_path / "gpu.json").exists()
    assert "gpu.json was not written: no GPU was measured here" in synthetic.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "imagenet1k"], "There is no recipe 'imagenet1k'. Did you mean 'imagenet1k_b16'"),
        (["--set", "lrr=1"], "no field 'lrr'. Did you mean 'lr'"),
        (["--set", "batch_size=8"], "Training needs --out FOLDER"),
        (["--out", "run", "--set", "batch_size=8", "--shard"], "start the command with torchrun"),
        (["--out", "run", "--set", "batch_size=99"], "24 images, fewer than one batch of 99"),
        (
            ["--out", "run", "--set", "batch_size=8", "--set", "warmup_steps=99", "--set", "steps=9"],
            "longer than the run",
        ),
        (["--out", "run", "--set", "batch_size=8", "--accumulate", "3"], "cannot be shared equally"),
        (["--out", "run", "--set", "batch_size=8", "--device", "nonsense"], "--device nonsense cannot be used"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MixerzooError) as caught:
        app(["train", "--data", str(folder), *arguments], standalone_mode=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
