"""The progress bar, the log, TensorBoard's files, the curves and the card of a run."""

import dataclasses
import json
import math
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from training import DATA_CONFIG, QUICK, small_model, write_data

from mixerzoo import save_model
from mixerzoo.distributed import World
from mixerzoo.errors import ConfigError, DataError, StorageError
from mixerzoo.train import watch as watch_module
from mixerzoo.train.card import CARD_FILE, command_line, evaluated_images, model_card_entries, write_card
from mixerzoo.train.curves import check_drawing, draw_curves
from mixerzoo.train.data import Data, DataName, open_data
from mixerzoo.train.machine import device_name
from mixerzoo.train.recipe import Recipe, get_recipe, list_recipes
from mixerzoo.train.watch import LOG_FILE, Watch


def make(out, first_step=0, **changes):
    settings = {
        "total_steps": 23,
        "steps_per_epoch": 10,
        "images_per_step": 8,
        "world": World(),
        "progress": False,
        "tensorboard": False,
        "every": 4,
    }
    return Watch(out, first_step=first_step, **settings | changes)


def loss_of(step):
    return 10.0 / (1 + step)


def run(watch, first, last):
    for step in range(first, last):
        watch.step(step, torch.tensor(loss_of(step)), lr=0.001 * step)


def refuse(text):
    raise AssertionError(f"{text} is not JSON")


def lines_of(out):
    text = (out / LOG_FILE).read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def without_clock(lines):
    return [{k: v for k, v in line.items() if k in ("step", "epoch", "loss", "lr", "top1", "note")} for line in lines]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    strftime, gmtime = staticmethod(time.strftime), staticmethod(time.gmtime)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watch_module, "time", clock)
    return clock


def test_a_line_every_few_steps_of_an_epoch_and_at_its_end(tmp_path):
    watch = make(tmp_path)
    assert [step + 1 for step in range(23) if watch.is_due(step)] == [4, 8, 10, 14, 18, 20, 23]
    run(watch, 0, 23)
    watch.close()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [4, 8, 10, 14, 18, 20, 23]
    done = 0
    for line in lines:
        steps = range(done, line["step"])
        assert line["loss"] == pytest.approx(sum(map(loss_of, steps)) / len(steps), rel=1e-6)
        assert line["lr"] == pytest.approx(0.001 * (line["step"] - 1))
        assert line["epoch"] == pytest.approx(line["step"] / 10)
        assert line["images_per_second"] > 0
        assert line["memory_gib"] > 0.01
        time.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ")
        done = line["step"]


def test_images_per_second_are_those_of_the_job_without_pauses(tmp_path, clock):
    watch = make(tmp_path)
    for step in range(8):
        clock.now += 0.5
        watch.step(step, 1.0, 0.1)
        with watch.paused():
            clock.now += 77.0
    watch.close()
    assert [(line["images_per_second"], line["seconds"]) for line in lines_of(tmp_path)] == [(16.0, 2.0)] * 2


def test_nested_pauses_count_once(tmp_path, clock):
    watch = make(tmp_path)
    for step in range(4):
        clock.now += 0.5
        with watch.paused():
            clock.now += 5.0
            with watch.paused("evaluating"):
                clock.now += 77.0
        watch.step(step, 1.0, 0.1)
    watch.close()
    assert [line["seconds"] for line in lines_of(tmp_path)] == [2.0]


@pytest.mark.parametrize(
    ("total", "lines"), [(1, 1), (5, 5), (15, 15), (199, 199), (200, 100), (1000, 100), (5000, 100), (10_000, 200)]
)
def test_short_runs_have_a_line_more_often(tmp_path, total, lines):
    watch = make(tmp_path, total_steps=total, steps_per_epoch=0, every=0)
    assert sum(map(watch.is_due, range(total))) == lines
    assert watch.is_due(total - 1)


def test_files_are_made_when_there_is_something_to_write(tmp_path):
    watch = make(tmp_path / "out", tensorboard=True)
    run(watch, 0, 3)
    watch.close()
    assert list(tmp_path.iterdir()) == []
    watch = make(tmp_path / "out", tensorboard=True)
    run(watch, 0, 4)
    watch.close()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOG_FILE, "tensorboard"]
    make(tmp_path / "out").close()  # all lines are of steps that will be done again
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tensorboard"]


def test_steps_without_epochs(tmp_path):
    watch = make(tmp_path, steps_per_epoch=0)
    run(watch, 0, 23)
    watch.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [4, 8, 12, 16, 20, 23]
    assert {line["epoch"] for line in lines_of(tmp_path)} == {None}


def test_evaluations_and_notes(tmp_path, capsys):
    watch = make(tmp_path, progress=True)
    run(watch, 0, 10)
    watch.evaluated(10, {"top1": 0.5, "top5": 0.875})
    watch.note("skipped a.jpg: damaged ü")
    watch.close()
    *_, evaluation, note = lines_of(tmp_path)
    assert {"step": 10, "epoch": 1.0, "top1": 0.5, "top5": 0.875}.items() <= evaluation.items()
    assert {"step": 10, "note": "skipped a.jpg: damaged ü"}.items() <= note.items()
    shown = capsys.readouterr()
    assert "epoch 1 (step 10): top-1 50.00 %, top-5 87.50 %" in shown.out
    assert "skipped a.jpg" in shown.out
    assert shown.err == ""  # no terminal, no bar


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_no_line_is_ever_other_than_json(tmp_path, loss):
    watch = make(tmp_path, tensorboard=True)
    for step in range(4):
        watch.step(step, torch.tensor(loss), math.nan)
    watch.evaluated(4, {"top1": math.nan})
    watch.close()
    training, evaluation = lines_of(tmp_path)
    assert training["loss"] is training["lr"] is evaluation["top1"] is None


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mixerzoo.distributed import World
from mixerzoo.train.watch import Watch
out, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
watch = Watch(out, total_steps=23, steps_per_epoch=10, images_per_step=8, first_step=first, world=World(),
              progress=False, tensorboard=True, every=4)
for step in range(first, last):
    watch.step(step, torch.tensor(10.0 / (1 + step)), 0.001 * step)
    if (step + 1) % 10 == 0:
        watch.evaluated(step + 1, {"top1": step / 100})
if last == 19:
    with open(out / "metrics.jsonl", "a") as file:  # what a kill in the middle of a write leaves
        file.write('{"step": 19, "loss": 0.')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_kills_the_log_is_that_of_an_uninterrupted_run(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    watch = make(straight)
    for step in range(23):
        watch.step(step, torch.tensor(loss_of(step)), 0.001 * step)
        if (step + 1) % 10 == 0:
            watch.evaluated(step + 1, {"top1": step / 100})
    watch.close()
    for first, last in ((0, 16), (10, 19)):  # a checkpoint was at 10 steps
        killed = subprocess.run([sys.executable, "-c", KILLED, str(broken), str(first), str(last)], timeout=120)
        assert killed.returncode == -signal.SIGKILL
    time.sleep(1.1)  # TensorBoard orders its files by the second
    watch = make(broken, first_step=10, tensorboard=True)
    watch.evaluated(10, {"top1": 0.09})  # done again after the resume; the log has it
    run(watch, 10, 20)
    watch.evaluated(20, {"top1": 0.19})
    run(watch, 20, 23)
    watch.close()
    assert without_clock(lines_of(broken)) == without_clock(lines_of(straight))
    assert sorted(path.name for path in broken.iterdir()) == [LOG_FILE, "tensorboard"]
    scalars = read_events(broken)
    assert [event.step for event in scalars["train/loss"]] == [4, 8, 10, 14, 18, 20, 23]
    assert [event.step for event in scalars["evaluation/top1"]] == [10, 20]


def read_events(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {name: events.Scalars(name) for name in events.Tags()["scalars"]}


def test_tensorboard_has_what_the_log_has(tmp_path):
    watch = make(tmp_path, tensorboard=True)
    run(watch, 0, 23)
    watch.evaluated(23, {"top1": 0.25, "top5": 0.5})
    watch.close()
    watch.close()
    scalars, lines = read_events(tmp_path), lines_of(tmp_path)
    for name in ("loss", "lr", "images_per_second", "memory_gib", "epoch"):
        logged = [(line["step"], line[name]) for line in lines if "loss" in line]
        assert [(e.step, e.value) for e in scalars[f"train/{name}"]] == [(s, pytest.approx(v)) for s, v in logged]
    assert [(e.step, e.value) for e in scalars["evaluation/top5"]] == [(23, 0.5)]


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"mixerzoo\[train\]"):
        make(tmp_path, tensorboard=True)
    make(tmp_path, tensorboard=True, world=World(rank=1, size=2)).close()  # writes none
    make(tmp_path).close()


def test_only_the_first_process_writes(tmp_path, capsys):
    watch = make(tmp_path / "out", world=World(rank=1, size=2), progress=True, tensorboard=True)
    for step in range(23):
        watch.step(step, 1.0, 0.1)
    watch.evaluated(23, {"top1": 1.0})
    watch.note("hello")
    watch.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


TWO = """
import sys
from pathlib import Path
import torch
from mixerzoo.distributed import job
from mixerzoo.train.watch import Watch
with job() as world:
    watch = Watch(Path(sys.argv[1]), total_steps=6, steps_per_epoch=6, images_per_step=8, first_step=0, world=world,
                  progress=True, tensorboard=False, every=3)
    for step in range(6):
        watch.step(step, torch.tensor(step + 100.0 * world.rank), 0.1)
    watch.close()
"""


def test_the_loss_is_the_mean_over_processes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, str(tmp_path / "out")], check=True, timeout=300, capture_output=True)
    assert [line["loss"] for line in lines_of(tmp_path / "out")] == [51.0, 54.0]
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / LOG_FILE]


class Terminal:
    """A terminal that remembers."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_terminal_shows_one_bar_for_the_whole_run(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    watch = make(tmp_path, first_step=1000, total_steps=1010, steps_per_epoch=1000, every=1, progress=True)
    for step in range(1000, 1006):
        time.sleep(0.2)
        watch.step(step, torch.tensor(2.5), 0.001)
    watch.evaluated(1006, {"top1": 0.5})
    watch.close()
    last = terminal.text.replace("\r", "\n").strip().splitlines()[-1]
    for part in ("1006/1010", "images/s", "loss 2.5", "lr 1.00e-03", "memory", "GiB"):
        assert part in last, last
    # at most 5 steps a second were done here: had the 1000 before been counted, no more time would be left
    assert "s/step" in last or float(last.split("step/s")[0].split()[-1].strip("[<,")) <= 5.0, last


def test_the_bar_says_what_is_done_during_a_pause(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    watch = make(tmp_path, every=1, progress=True)
    watch.step(0, torch.tensor(2.5), 0.001)
    with watch.paused():
        assert "saving" not in terminal.text
        with watch.paused("saving a checkpoint"):
            assert "saving a checkpoint" in last_shown(terminal)
        with watch.paused("evaluating"):
            shown = last_shown(terminal)
            assert "evaluating" in shown
            assert "1/23" in shown
            watch.evaluated(1, {"top1": 0.5})
            assert "evaluating" in last_shown(terminal)  # still there under the result
        shown = last_shown(terminal)
        assert "loss 2.5" in shown
        assert "evaluating" not in shown
    watch.close()


def last_shown(terminal):
    return terminal.text.replace("\r", "\n").rstrip().splitlines()[-1]


def test_a_log_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    for place in ("out", "out/deep/er"):
        with pytest.raises(StorageError, match="out is no folder"):
            make(tmp_path / place)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(StorageError, match="nothing can be written in"):
        make(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    make(tmp_path / "new", world=World(rank=1, size=2)).close()


# --- curves ---


def write_log(path, epochs=30, evaluations=True):
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for step in range(10, 10 * epochs + 1, 5):
            line = {
                "step": step,
                "epoch": step / 10,
                "loss": 3 * math.exp(-step / 90) + rng.normal(0, 0.05),
                "lr": 1e-3,
            }
            file.write(json.dumps(line) + "\n")
            if evaluations and step % 20 == 0:
                file.write(json.dumps({"step": step, "epoch": step / 10, "top1": 1 - math.exp(-step / 90)}) + "\n")
        file.write(json.dumps({"step": step, "note": "done"}) + '\n{"step": 9')
    return path


def count(path, colour, tolerance=30):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return (np.abs(pixels - colour).max(-1) <= tolerance).sum()


BLUE, ORANGE = (0x1F, 0x5F, 0xA8), (0xC2, 0x57, 0x1A)


def test_curves_show_loss_and_accuracy(tmp_path):
    draw_curves(write_log(tmp_path / LOG_FILE), tmp_path / "curves.png", title="a run")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 600
    assert count(tmp_path / "curves.png", BLUE) > 2000
    assert count(tmp_path / "curves.png", ORANGE) > 2000
    draw_curves(write_log(tmp_path / LOG_FILE, evaluations=False), tmp_path / "loss.png")
    assert count(tmp_path / "loss.png", BLUE) > 2000
    assert count(tmp_path / "loss.png", ORANGE) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".png", ".png"]


def test_curves_of_a_single_line_and_of_none(tmp_path):
    (tmp_path / LOG_FILE).write_text('{"step": 4, "epoch": null, "loss": 1.5, "lr": 0.1}\n')
    draw_curves(tmp_path / LOG_FILE, tmp_path / "curves.png")
    assert count(tmp_path / "curves.png", BLUE) > 0
    (tmp_path / LOG_FILE).write_text('{"step": 4, "loss": null}\n')
    with pytest.raises(DataError, match="nothing to draw"):
        draw_curves(tmp_path / LOG_FILE, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


GREY = (0x5B, 0x67, 0x70)


@pytest.mark.parametrize(("steps", "per_epoch"), [(1, 1), (1, 0), (5, 5), (5, 2), (15, 3)])
def test_short_runs_have_curves(tmp_path, steps, per_epoch):
    watch = make(tmp_path, total_steps=steps, steps_per_epoch=per_epoch, every=0)
    run(watch, 0, steps)
    draw_curves(tmp_path / LOG_FILE, tmp_path / "loss.png")
    watch.evaluated(steps, {"top1": 0.5})
    watch.close()
    draw_curves(tmp_path / LOG_FILE, tmp_path / "both.png")
    for name in ("loss.png", "both.png"):
        assert count_inside(tmp_path / name, BLUE, 0.08, 0.7) >= 20 * steps
        assert count_inside(tmp_path / name, GREY, 0.75, 0.93) >= 10 * steps
    marks = [count_inside(tmp_path / name, ORANGE, 0.08, 0.7, right=0.925) for name in ("loss.png", "both.png")]
    assert marks[0] == 0
    assert marks[1] >= 20


def count_inside(path, colour, top, bottom, right=1.0):
    """Pixels of a colour in a part of the picture: between labels, under the title; fractions, from above and left."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    inside = pixels[int(top * height) : int(bottom * height), int(0.1 * width) : int(right * width)]
    return (np.abs(inside - colour).max(-1) <= 30).sum()


def test_drawing_leaves_matplotlib_as_it_is(tmp_path):
    code = f"""
import sys
from pathlib import Path
from mixerzoo.train.curves import draw_curves
assert "matplotlib" not in sys.modules
import matplotlib
before = matplotlib.rcParams.copy()
draw_curves(Path({str(write_log(tmp_path / LOG_FILE))!r}), Path({str(tmp_path / "curves.png")!r}))
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_matplotlib_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mixerzoo\[train\]"):
        check_drawing()


# --- card ---


def write(out, recipe, name, **changes):
    content = {
        "data": {"name": "/home/someone/cifar10", "num_images": 50_000, "classes": [f"c{i}" for i in range(100)]},
        "metrics": {"top1": 0.87654321, "top5": 0.99},
        "run": {"device": "cpu", "world_size": 2, "images_seen": 123_456, "seconds": 4000.0},
    }
    write_card(out / CARD_FILE, recipe=recipe, recipe_name=name, **content | changes)
    return (out / CARD_FILE).read_text(), json.loads((out / "training.json").read_text(), parse_constant=refuse)


def test_the_card_says_what_was_done(tmp_path):
    text, content = write(tmp_path, Recipe(lr=0.25, mixup=0.125), "of my own")
    assert content["recipe"]["lr"] == 0.25
    assert content["differs_from_defaults"] == {"lr": 0.25, "mixup": 0.125}
    assert content["overrides"] is None
    assert content["metrics"] == {"top1": 0.87654321, "top5": 0.99}
    assert content["versions"]["torch"] == torch.__version__
    assert {"python", "timm", "mixerzoo"} <= content["versions"].keys()
    for part in ("87.65 %", "| lr | 0.25 |", "100: c0, c1", "1 h 06 min", torch.__version__):
        assert part in text, part
    fields = json.loads(text.split("```json")[1].split("```")[0])
    assert fields == content["recipe"]
    assert fields.keys() == {field.name for field in dataclasses.fields(Recipe)}


def test_the_card_reads_well(tmp_path):
    details = {
        "device": "cpu", "world_size": 2, "sharded": False, "amp": True, "compiled": False, "images_seen": 123_456,
        "seconds": 75.4, "other_thing": 1.5,
    }  # fmt: skip
    text, content = write(tmp_path, Recipe(), "of my own", run=details, evaluated_on="240 images of the test split")
    assert content["run"] == details  # programs read the plain names
    assert content["evaluated_on"] == "240 images of the test split"
    rows = text.splitlines()
    for row in (
        "| after the last step | of 240 images of the test split |",
        "| data set | cifar10 |",
        "| training images | 50,000 |",
        "| processes | 2 |",
        "| sharded over the processes | no |",
        "| bfloat16 autocast | yes |",
        "| torch.compile | no |",
        "| images seen | 123,456 |",
        "| training time, without evaluations | 1 min 15 s |",
        "| other thing | 1.5 |",
    ):
        assert row in rows, row
    for name in ("num_images", "world_size", "images_seen", "other_thing", "True", "False"):
        assert name not in text.replace(json.dumps(content["recipe"], indent=2), "")
    text, _ = write(tmp_path, Recipe(), "", metrics={})
    assert text.startswith("# Training card: mixer_b16\n\n## Result\n\nNothing was evaluated.\n")
    assert "A recipe of its own." in text
    assert "``" not in text.replace("```", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (3.21, "3.2 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.4, "59 min 59 s"),
     (3599.6, "1 h 00 min"), (90_000.0, "25 h 00 min"), (3_600_000.0, "1,000 h 00 min")],
)  # fmt: skip
def test_durations(tmp_path, seconds, words):
    text, _ = write(tmp_path, Recipe(), "x", run={"seconds": seconds})
    assert f"evaluations | {words} |" in text


def test_the_images_that_a_run_is_judged_by(tmp_path):
    folder = write_data(tmp_path / "two")
    name, opened = DataName(str(folder)), open_data(folder, QUICK, DATA_CONFIG)
    assert evaluated_images(12, QUICK, name, opened) == "12 images of the test split"
    (folder / "test").rename(folder / "val")
    assert evaluated_images(1, QUICK, name, open_data(folder, QUICK, DATA_CONFIG)) == "1 image of the val split"
    held = dataclasses.replace(QUICK, holdout=0.25)
    opened = open_data(folder, held, DATA_CONFIG)
    assert evaluated_images(6000, held, name, opened) == "6,000 images held out of the training split"
    other = DataName(str(folder), str(tmp_path / "elsewhere"))
    assert evaluated_images(12, QUICK, other, opened) == "12 images of elsewhere"
    assert evaluated_images(12, QUICK, DataName("x"), Data(opened.train)) == "12 images of the evaluation split"


def test_a_trained_models_card_says_where_it_comes_from(tmp_path):
    metrics = {"top1": 0.6916667, "top5": 0.9, "loss": 2.0, "top9": math.nan}
    name = DataName("https://me:pass@host/data/{0..9}.tar?token=abc")
    entries = model_card_entries(QUICK, "cifar10_scratch", name, 50_000, metrics, "240 images of the test split")
    save_model(small_model(), tmp_path, **entries)
    text = (tmp_path / "README.md").read_text()
    for part in (
        "- trained: by cifar10_scratch, see training.md",
        "- training data: https://host/data/{0..9}.tar, 50,000 images",
        "- started from: random weights",
        "| top-1 | 69.17 % | 240 images of the test split; this training run |",
        "| top-5 | 90 % |",
    ):
        assert part in text, part
    for wrong in ("None known", "token=", "pass", "nan", "loss"):
        assert wrong not in text
    tuned = dataclasses.replace(QUICK, pretrained=True)
    origin = model_card_entries(tuned, "", DataName("x"), 5, {}, "")["origin"]
    assert origin["started from"] == "mixer_ti4_32"
    assert origin["trained"].startswith("by a recipe of its own")


def test_one_thread_is_no_threads(monkeypatch):
    for count, words in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert device_name(torch.device("cpu")).endswith(f", {words}")


@pytest.mark.parametrize("name", list_recipes())
def test_the_settings_on_the_card_make_the_recipe_again(tmp_path, name):
    recipe = get_recipe(name)
    recipe = recipe.override(["lr=0.0123", "augmentation.crop_area=0.5,1.0", "augmentation.hflip=0.25", "seed=7"])
    text, content = write(tmp_path, recipe, name)
    assert {"lr", "augmentation.hflip", "seed"} <= content["overrides"].keys()
    command = shlex.split(next(line for line in text.splitlines() if "--set" in line).split("`")[3])
    assert command[::2] == ["--set"] * len(content["overrides"])
    assert get_recipe(name).override(command[1::2]) == recipe
    assert "as it is" in write(tmp_path, get_recipe(name), name)[0]


def test_the_card_gives_nothing_away(tmp_path, monkeypatch):
    secret = "https://me:pass@host/data/{0..9}.tar?token=abc"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mixerzoo", "train", "--data", secret, "--out=/home/me/runs/1"])
    files = write(tmp_path, Recipe(), "x", data={"name": secret}, run={"out": tmp_path / "deep" / "er"})
    for text in (files[0], json.dumps(files[1])):
        for private in ("/home", "pass", "token", "/usr", str(tmp_path)):
            assert private not in text
    assert files[1]["data"]["name"] == "https://host/data/{0..9}.tar"
    assert files[1]["command"] == "mixerzoo train --data 'https://host/data/{0..9}.tar' --out=1"


def test_the_command_stays_what_it_was():
    command = ["/x/mixerzoo", "train", "--set", "lr=3e-4", "--set", "model=mixer_b16.goog_in21k", "--data", "my data"]
    assert command_line(command) == "mixerzoo train --set lr=3e-4 --set model=mixer_b16.goog_in21k --data 'my data'"


def test_a_card_with_odd_values(tmp_path):
    data = {"name": "a|b\nc", "num_images": 3, "unknown": None}
    text, content = write(tmp_path, Recipe(), "x", metrics={"loss": math.nan}, data=data)
    assert "| data set | a\\|b c |" in text
    assert "| loss | unknown |" in text
    assert content["metrics"] == {"loss": None}
