"""The race against every peer: real workers, contenders that die, hang or compute something else, targets, files."""

import json
import os
import time
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from helpers import run_cli
from typer.testing import CliRunner

from mixerzoo import Mixer
from mixerzoo.bench.folder import FolderRace
from mixerzoo.bench.gpu.floors import floor, model_phases
from mixerzoo.bench.gpu.parts import run_part
from mixerzoo.bench.gpu.request import Request
from mixerzoo.bench.load import LoadRaces, LoadTimes
from mixerzoo.bench.race import chart, gpu_parts, runner, several, terms
from mixerzoo.bench.race.contenders import CONTENDERS
from mixerzoo.bench.race.cpu_suite import CpuSuite, cpu_targets, run_cpu_suite
from mixerzoo.bench.race.models import (
    config_of,
    our_model,
    random_images,
    read_reference,
    timm_model,
    write_common,
)
from mixerzoo.bench.race.plan import Field, field_of, plan_races
from mixerzoo.bench.race.report import Report
from mixerzoo.bench.race.results import Lane, RaceResult
from mixerzoo.bench.race.runner import run_race
from mixerzoo.bench.race.table import table
from mixerzoo.bench.race.targets import Target, against
from mixerzoo.bench.race.terms import BOUNDS, OURS, Entry, Race, Task
from mixerzoo.bench.race.timing import time_round
from mixerzoo.bench.race.training import TrainingStep
from mixerzoo.bench.race.worker import Seat
from mixerzoo.bench.race.yardstick import fastest_product
from mixerzoo.bench.workers.serving import guarded
from mixerzoo.cli import app
from mixerzoo.config import PRESETS
from mixerzoo.errors import ConfigError, MixerzooError

MODEL = "mixer_ti4_32"
ABOUT = {"processor": "Some Processor", "torch": "2.x", "date": "2026-01-01", "gpu": "Some Card"}


def made_up(seconds, *, model=MODEL, batch_size=1, device="cpu", training=False, rate=1e12, **lane):
    """A result with these seconds for each entry, ours first; one number means the same in three rounds."""
    entries = tuple(Entry(*label.split(), "nowhere") for label in seconds)
    race = Race(model, batch_size, device, 2, entries, rounds=3, training=training)
    rounds = [[value] * 3 if isinstance(value, float) else value for value in seconds.values()]
    lanes = [Lane(entry, times, error=0.0, **lane) for entry, times in zip(entries, rounds, strict=True)]
    products = {dtype: [rate] * 3 for dtype in BOUNDS}
    return RaceResult(race, lanes, products)


# --- races in real workers ---

ODD = """
import os, time
from mixerzoo.bench.race.contenders.timm import _build_eager
from mixerzoo.bench.race.terms import Built, Contender
def dies(task):
    print("the last words", flush=True)
    os.abort()
def fails(task):
    raise ValueError("no such\\nthing")
def hangs(task):
    calls, right = iter(range(100)), _build_eager(task)
    def call(images):
        if next(calls) >= 5:  # it gets ready, and then never answers again
            time.sleep(600)
        return right.call(images)
    return Built(call)
def wrong(task):
    right = _build_eager(task)
    return Built(lambda images: right.call(images).flip(0).numpy())
def stale(task):
    right, seen = _build_eager(task), []
    def call(images):
        seen.append(images)
        return right.call(seen[max(0, len(seen) - 2)])
    return Built(call)
CONTENDERS = tuple(
    Contender(build.__name__, 0, {"cpu": ("fp32",)}, build) for build in (dies, fails, hangs, wrong, stale)
)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """The name of a module of contenders that misbehave, which this process and workers can import."""
    (tmp_path / "odd_contenders.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "odd_contenders"


TIMM = Entry("timm", "fp32", CONTENDERS["timm"][0])


def test_a_race_survives_contenders_that_die_or_hang(odd):
    entries = (TIMM, *(Entry(name, "fp32", odd) for name in ("dies", "hangs", "wrong")))
    race = Race(MODEL, 2, "cpu", 1, entries, rounds=2, seconds=0.0, round_limit=6.0)
    said = []
    result = run_race(race, said.append)
    lanes = {lane.entry.contender: lane for lane in result.lanes}
    assert "the worker died getting ready (SIGABRT): " in lanes["dies"].failure
    assert "the last words" in lanes["dies"].failure
    assert "took longer than 6 s in a round" in lanes["hangs"].failure
    assert lanes["hangs"].seconds == [None, None]
    assert "computes something else" in lanes["wrong"].wrong
    assert None not in lanes["wrong"].seconds, "it is timed all the same"
    assert result.ratio(lanes["wrong"]) is None
    assert lanes["timm"].error == 0.0, "the reference is timm's own"
    assert result.ratio(lanes["timm"]) == 1.0
    assert len(result.products["fp32"]) == 2
    assert result.share_of_products(lanes["timm"]) > 0
    text = table(result)
    assert "failed: dies fp32: the worker died" in text
    assert "WRONG: wrong fp32 computes something else" in text
    assert max(map(len, text.splitlines()[:6])) <= 120
    assert said[-1] == "  round 2 of 2"


def test_the_command_races_in_processes_of_their_own(tmp_path):
    arguments = ("--model", MODEL, "--batch-size", 2, "--dtype", "bf16", "--threads", 1, "--rounds", 1)
    result = run_cli("bench", *arguments, "--out", tmp_path, "--peers", "timm", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads((tmp_path / f"race-{MODEL}-bf16-cpu.json").read_text())
    about, (race,) = written["circumstances"], written["races"]
    assert about["command"].startswith(f"mixerzoo bench --model {MODEL}")
    assert about["threads"] == 1
    assert {"openvino", "nncf", "onnxruntime", "torch", "timm", "date", "processor"} <= about.keys()
    ran = {lane["entry"]["contender"]: lane for lane in race["lanes"]}
    assert list(ran) == [OURS, "timm"]
    assert ran[OURS]["says"].startswith("program: ")
    for lane in ran.values():
        assert (lane["failure"], lane["wrong"], len(lane["seconds"])) == (None, None, 1)
        assert lane["ours over it"] > 0
        assert lane["share of product rate"] > 0
    assert len(race["products"]["bf16"]) == 1


class StandIn:
    """A worker that answers at once."""

    def __init__(self, program, *, environment):
        self.open = True

    def ask(self, request, limit, doing):
        if request["do"] == "build":
            return {"build_seconds": 1.0, "error": 0.0, "says": "", "memory": None}
        return {"seconds": 1.0, "rate": 1e12}

    def close(self):
        self.open = False


def test_nothing_starts_after_the_deadline(monkeypatch):
    monkeypatch.setattr(runner, "Worker", StandIn)
    race = Race(MODEL, 1, "cpu", 1, (TIMM,), rounds=2)
    result = run_race(race, lambda line: None, deadline=time.monotonic())
    assert result.lanes[0].failure == "time was up before it was ready"
    assert result.lanes[0].median is None
    rounds = []

    def ask(self, request, limit, doing, real=StandIn.ask):
        rounds.extend([request] if request["do"] == "round" else [])
        return real(self, request, limit, doing)

    monkeypatch.setattr(StandIn, "ask", ask)  # a round is one of the contender and one of the yardstick
    monkeypatch.setattr(runner.time, "monotonic", lambda: 0.0 if len(rounds) < 4 else 1e9)
    result = run_race(replace(race, rounds=7), lambda line: None, deadline=1e6)
    assert result.lanes[0].seconds == [1.0, 1.0]
    assert result.remarks == ["time was up after 2 of 7 rounds"]


def test_without_a_reference_nobody_races(monkeypatch):
    monkeypatch.setattr(StandIn, "ask", lambda *arguments: {"failure": "a full disk"})
    monkeypatch.setattr(runner, "Worker", StandIn)
    result = run_race(Race(MODEL, 1, "cpu", 1, (TIMM,)), lambda line: None)
    assert result.lanes[0].failure == "there is no reference to compare with: a full disk"
    assert "failed: timm fp32: there is no reference" in table(result)


# --- what a worker says ---


@pytest.fixture
def task(tmp_path):
    task = Task(MODEL, 2, "fp32", "cpu", 1, tmp_path)
    write_common(task)
    return task


def build_request(task, module, name):
    plain = asdict(task) | {"folder": str(task.folder)}
    return {"do": "build", "module": module, "contender": name, "training": False, "task": plain}


def test_a_worker_compares_before_and_after_other_images(task, odd):
    seat = guarded(Seat().answer)
    assert seat(build_request(task, odd, "fails"))["failure"] == "ValueError: no such thing"
    for name in ("wrong", "stale"):
        assert seat(build_request(task, odd, name))["error"] > BOUNDS["int8"], name
    assert seat(build_request(task, TIMM.module, "timm"))["error"] == 0.0
    answer = seat({"do": "round", "seconds": 0.0})
    assert answer["calls"] == 2
    assert answer["seconds"] > 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("openvino", "bf16"),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ],
)
def test_other_runtimes_compute_the_same(task, name, dtype):
    module, contender = CONTENDERS[name]
    obstacle = contender.why_not("cpu", dtype)
    if obstacle:
        pytest.skip(obstacle)
    request = build_request(replace(task, dtype=dtype), module, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these packages use in PyTorch is deprecated there
        answer = Seat().answer(request)
    assert answer["error"] <= BOUNDS[dtype]


# --- names and options ---


def invoke(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)]).exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs either --model NAME or --suite cpu"),
        (("--suite", "load", "--model", MODEL), "needs either --model NAME or --suite cpu"),
        (("--model", "mixer_b61"), "Did you mean 'mixer_b16'"),
        (("--model", "mixer_b16.goog_in1k"), "named without a tag"),
        (("--model", MODEL, "--dtype", "bf61"), "--dtype bf61 is unknown: use one of fp32, bf16, int8, fp8. Did you"),
        (("--model", MODEL, "--peers", "timm", "openvin"), "There is no peer 'openvin'"),
        (("--model", MODEL, "--peers", "openvin"), "Did you mean 'openvino'"),
        (("--model", MODEL, "--batch-size", "1", "0"), "--batch-size 0 must be at least 1"),
        (("--model", MODEL, "--batch-size", "1", "--batch-size", "-1"), "--batch-size -1 must be at least 1"),
        (("--model", MODEL, "--rounds", "0"), "--rounds 0 must be at least 1"),
        (("--model", MODEL, "--threads", "0"), "--threads 0 must be at least 1"),
        (("--model", MODEL, "8"), "'8' belongs to no option"),
        (("--model", MODEL, "--batch-size", "1", "timm"), "'timm' belongs to no option"),
        (("--model", MODEL, "--part", "b16"), "--part belongs to --suite gpu, not to --model"),
        (("--suite", "cpu", "--dtype", "bf16"), "--dtype belongs to --model, not to --suite cpu"),
        (("--suite", "cpu", "--minutes", "0"), "--minutes 0.0 must be more than 0"),
        (("--suite", "gpu"), "give --part correctness, ops, tiles, b16, variants, latency, fp8, train"),
        (("--suite", "gpu", "--part", "b16", "--record"), "leave --record out"),
        (("--model", MODEL, "--dtype", "fp8"), "Ours cannot race in fp8 on cpu"),
    ],
)
def test_mistakes_get_one_sentence(arguments, message):
    error = invoke(*arguments)
    assert isinstance(error, MixerzooError), repr(error)
    assert message in str(error)
    assert "\n" not in str(error)


def test_both_spellings_of_several_values(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("mixerzoo.cli.bench.race_once", lambda request, say: seen.append(request) or True)
    several_values = ("--batch-size", 1, 8, "--dtype", "bf16", "--peers", "timm", "openvino")
    repeated = ("--batch-size", 1, "--peers", "timm", "--batch-size", 8, "--peers", "openvino", "--dtype", "bf16")
    for arguments in (several_values, repeated):
        assert invoke("--model", MODEL, *arguments, "--out", tmp_path) is None
    assert seen[0] == seen[1]
    assert (seen[0].batch_sizes, seen[0].peers) == ([1, 8], ["timm", "openvino"])


def test_what_is_not_installed_or_does_not_fit_is_named(monkeypatch):
    find = terms.importlib.util.find_spec
    absent = {"openvino", "onnxscript"}
    monkeypatch.setattr(terms.importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    field = field_of("bf16", "cpu", ["timm", "openvino", "onnxruntime", "torchao", "timm-compile-latency", "timm"])
    assert [entry.label for entry in field.entries] == ["mixerzoo bf16", "timm bf16"]
    assert field.skipped[0] == "openvino: openvino is not installed (pip install openvino)"
    assert field.skipped[2] == "torchao: it has no bf16 on cpu (it has int8)"
    assert field.skipped[3] == "timm-compile-latency: it does not run on cpu"
    everybody = field_of("bf16", "cpu")
    assert not any("torchao" in sentence for sentence in everybody.skipped), "it was not asked for"
    assert any("openvino" in sentence for sentence in everybody.skipped)


def test_a_card_is_needed_for_a_race_on_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="Ours cannot race in bf16 on cuda: there is no CUDA device here"):
        field_of("bf16", "cuda")


def test_every_contender_has_its_file_and_threads_default_to_pytorchs():
    assert next(iter(CONTENDERS)) == OURS
    assert {"mixerzoo-compile", "timm", "timm-compile", "openvino", "onnxruntime", "torchao"} <= CONTENDERS.keys()
    (race,) = plan_races(MODEL, [4], "cpu", field_of("bf16", "cpu", ["timm"]))
    assert race.threads == torch.get_num_threads()


# --- what all share ---


def test_ours_and_timms_compute_the_same_and_images_matter(task):
    images = random_images(MODEL, 2, seed=0)
    with torch.inference_mode():
        ours, theirs = our_model(task)(images), timm_model(task)(images)
    reference = read_reference(task.folder)
    assert torch.equal(theirs, reference)
    assert (ours - reference).norm() < 1e-5 * reference.norm()
    assert (reference[0] - reference[1]).norm() > 0.3 * reference[0].norm(), "mixing images up must show"
    state = our_model(task).state_dict()
    assert all((t != 0).all() for t in state.values())
    assert all((t != 1).any() for t in state.values())


@pytest.mark.parametrize("model", sorted(PRESETS))
def test_timm_has_every_variant_at_its_sizes(model, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("mixerzoo.bench.race.models.load_file", lambda path: {})
    monkeypatch.setattr("timm.models.load_checkpoint", lambda *a, **k: None)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", lambda *a, **k: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state, *a, **k: seen.setdefault("model", self))
    with torch.device("meta"):
        built = timm_model(Task(model, 1, "fp32", "meta", 1, tmp_path))
    ours = {name: tuple(t.shape) for name, t in Mixer.from_config(config_of(model), device="meta").state_dict().items()}
    assert {name: tuple(t.shape) for name, t in built.state_dict().items()} == ours


def test_a_training_step_changes_the_weights_and_returns_the_logits(task, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    for build in (our_model, timm_model):
        model = build(task)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        logits = TrainingStep(model, task)(random_images(MODEL, 2, seed=0))
        reference = read_reference(task.folder)
        assert (logits - reference).norm() < 1e-5 * reference.norm()
        changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
        assert len(changed) > len(before) / 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_plain_products(dtype):
    steps = fastest_product(dtype, "cpu", 64)
    assert all(step().shape == (64, 64) for step in steps)


def test_a_round_has_two_calls_at_least():
    calls = []
    steps = [lambda: calls.append("a"), lambda: calls.append("b")]
    count, seconds = time_round(steps, "cpu", 0.0)
    assert count == 2
    assert seconds > 0
    assert calls == ["b", "a", "b"], "one uncounted, then in turn"


# --- figures ---


def test_ratios_are_medians_of_rounds_and_not_ratios_of_medians():
    result = made_up({"mixerzoo bf16": [1.0, 2.0, 3.0], "timm bf16": [2.0, None, 4.5]}, batch_size=4)
    ours, theirs = result.lanes
    assert result.ratio(theirs) == 1.75
    assert result.images_per_second(ours) == 2.0
    assert result.images_per_second(theirs) == 4 / 3.25
    operations = 2 * 4 * PRESETS[MODEL].multiply_adds
    assert result.share_of_products(ours) == operations / 2.0 / 1e12
    result.lanes[1] = replace(theirs, error=0.031)
    assert "off by 0.031, bf16 allows 0.03" in result.lanes[1].wrong
    assert result.ratio(result.lanes[1]) is None
    result.lanes[1] = replace(theirs, error=float("nan"))
    assert result.lanes[1].wrong


def test_a_training_step_has_three_times_the_products():
    assert made_up({"mixerzoo bf16": 1.0}, training=True).operations == 3 * made_up({"mixerzoo bf16": 1.0}).operations


B16 = {"model": "mixer_b16", "batch_size": 8}
LOADED = LoadRaces({"mixer_b16": (LoadTimes(0.05, 0.1, 0.1), LoadTimes(1.0, 0.1, 0.1))}, (2.15, 2.0))


def verdicts(found):
    return {target.what: target.verdict for target in found}


def test_targets_of_the_cpu_follow_from_the_figures():
    operations = made_up({"mixerzoo bf16": 1.0}, **B16).operations
    bf16 = made_up(
        {"mixerzoo bf16": 0.5, "timm-compile bf16": 0.6, "openvino bf16": 0.55, "onnxruntime fp32": 1.0},
        **B16,
        rate=operations / 0.5 / 0.975,
    )
    int8 = made_up({"mixerzoo int8": 0.3, "openvino int8": 0.29}, **B16, says="program: native\nmore")
    found = cpu_targets([bf16, int8], LOADED, FolderRace(decoding=200.0, model=40.0, together=37.0))
    assert [target.verdict for target in found] == ["met", "met", "NOT met", "met", "NOT met", "met"]
    fastest, share, quantised, created, imported, files = found
    assert files.measured == pytest.approx(92.5)
    assert fastest.measured == pytest.approx(1.1)
    assert "over openvino bf16, the fastest" in fastest.what
    assert share.measured == pytest.approx(97.5)
    assert quantised.measured == pytest.approx(0.29 / 0.3)
    assert quantised.remark == "program: native"
    assert created.measured == pytest.approx(20.0)
    assert "up to the first prediction 7.3x" in created.remark
    assert imported.measured == pytest.approx(0.15)
    assert "NOT met" in str(imported)
    assert "0.15 s, wanted <= 0.1 s" in str(imported)


def test_a_target_without_figures_is_never_met():
    alone = made_up({"mixerzoo bf16": 0.5}, **B16)
    assert against(alone, [("openvino", "bf16")], 1.0).verdict == "not measured"
    assert "without openvino bf16" in str(against(alone, [("openvino", "bf16")], 1.0))
    failed = made_up({"mixerzoo bf16": 0.5, "openvino bf16": 1.0}, **B16, failure="it died")
    assert [target.verdict for target in cpu_targets([failed], None, None)] == ["NOT met", "NOT met"]
    assert Target("time", 0.6, 0.6, at_most=True).verdict == "met"
    assert Target("time", 0.6, 0.61, at_most=True).verdict == "NOT met"


def test_the_floor_of_a_model_is_that_of_the_design():
    """At an H200's rates B/16 allows 26.9k images/s fused, and 36.9k with FP8 in channel mixing."""
    rates = {"bfloat16": 790.0, "copy": 4.3, "l2": 5.5, "fp8": 1200.0}
    for quantised, expected in ((False, 26.9e3), (True, 36.9e3)):
        phases = model_phases(256, PRESETS["mixer_b16"], quantised)
        assert 256e6 / floor(phases, rates) == pytest.approx(expected, rel=0.003)
    del rates["fp8"]
    assert floor(model_phases(256, PRESETS["mixer_b16"], True), rates) is None


# --- what is left behind ---


def test_races_are_on_disk_as_they_finish_and_those_left_are_named(tmp_path, monkeypatch):
    on_disk = []

    def fake(race, say, deadline):
        on_disk.append(len(json.loads((tmp_path / "some.json").read_text())["races"]))
        if len(on_disk) == 2:
            monkeypatch.setattr(several.time, "monotonic", lambda: 1e12)
        return replace(made_up({"mixerzoo bf16": 1.0}), race=race)

    monkeypatch.setattr(several, "run_race", fake)
    field = Field((Entry(OURS, "bf16", "nowhere"),), ("openvino: it is not installed",))
    races = plan_races(MODEL, [1, 2, 4], "cpu", field)
    said, report = [], Report(tmp_path, "some", ABOUT)
    results = several.run_all(races, field, report, said.append, deadline=1e9)
    assert on_disk == [0, 1]
    assert len(results) == 2
    assert said[-1] == f"not run, because time was up: {MODEL} batch 4 inference on cpu"
    assert "left out: openvino: it is not installed" in said[0]
    written = json.loads((tmp_path / "some.json").read_text())
    assert written["left"] == [f"{MODEL} batch 4 inference on cpu"]


def test_too_little_memory_halves_the_batch_for_all(tmp_path, monkeypatch):
    def fake(race, say, deadline):
        result = replace(made_up({"mixerzoo bf16": 1.0, "timm bf16": 1.0}), race=race)
        if race.batch_size > 64:
            result.lanes[1].failure = "OutOfMemoryError: CUDA out of memory."
        return result

    monkeypatch.setattr(several, "run_race", fake)
    field = Field((Entry(OURS, "bf16", "nowhere"),))
    report = Report(tmp_path, "some", ABOUT)
    (result,) = several.run_all(plan_races(MODEL, [256], "cuda", field), field, report, lambda line: None)
    assert result.race.batch_size == 64
    assert result.remarks == [
        "batch 256 was too much memory together for timm bf16: half of it for all",
        "batch 128 was too much memory together for timm bf16: half of it for all",
    ]


def test_a_chart_for_each_dtype(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    report, said = Report(tmp_path, "some", ABOUT), []
    for model in ("mixer_b16", "mixer_s16"):
        for size in (1, 8):
            seconds = {"mixerzoo bf16": 0.1 * size, "mixerzoo-compile bf16": 0.11 * size, "timm bf16": 0.2 * size}
            report.add(made_up(seconds, model=model, batch_size=size))
    report.add(made_up({"mixerzoo int8": 0.1, "openvino int8": 0.1}))
    report.add(made_up({"mixerzoo int8": 0.1}, failure="it died"))
    report.finish(said.append, [Target("this", 1.0, 2.0)])
    assert said[0] == "targets"
    assert "met" in said[1]
    for dtype in ("bf16", "int8"):
        assert (tmp_path / f"some-{dtype}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "some.json").read_text())["targets"][0]["verdict"] == "met"
    monkeypatch.setattr(chart.importlib.util, "find_spec", lambda name: None)
    assert "matplotlib is not installed" in chart.draw(report.results, ABOUT, tmp_path / "none.png")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Give another folder"):
        Report(tmp_path / "file" / "folder", "some", ABOUT)


# --- suites ---


def test_the_cpu_suite_judges_what_it_raced(tmp_path, monkeypatch):
    asked = []

    def fake(race, say, deadline):
        asked.append((race.model, race.batch_size, race.entries[0].dtype))
        seconds = {entry.label: 1.0 + i for i, entry in enumerate(race.entries)}
        return replace(made_up(seconds), race=race)

    monkeypatch.setattr(several, "run_race", fake)
    monkeypatch.setattr("mixerzoo.bench.race.cpu_suite.load.run_races", lambda: LOADED)
    files = FolderRace(decoding=200.0, model=40.0, together=37.0)
    monkeypatch.setattr("mixerzoo.bench.race.cpu_suite.race_folder", lambda: files)
    said = []
    assert run_cpu_suite(CpuSuite(tmp_path), said.append)
    sizes = [(model, size) for model in ("mixer_b16", "mixer_s16") for size in (1, 8)]
    assert asked == [(*size, dtype) for dtype in ("bf16", "int8") for size in sizes]
    written = json.loads((tmp_path / "suite-cpu.json").read_text())
    assert len(written["targets"]) == 8 + 1 + 1 + 1 + 1
    assert written["load"]["importing"] == [2.15, 2.0]
    assert any("import mixerzoo, beyond importing torch and timm: 0.15 s" in line for line in said)


PARTS = ("b16", "variants", "latency", "fp8", "train")


@pytest.mark.parametrize("part", ["correctness", "ops", "tiles", *PARTS])
def test_without_a_card_every_part_is_skipped_with_a_reason(tmp_path, monkeypatch, part):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    said = []
    assert run_part(Request(part, tmp_path), said.append)
    (sentence,) = said
    assert sentence.startswith(f"skipped: there is no CUDA device here; run --part {part} on a machine that has one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", PARTS)
def test_each_gpu_part_races_and_judges(tmp_path, monkeypatch, part):
    """With a made-up card: who races, at which sizes, and which targets follow."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(several, "race_circumstances", lambda *arguments: ABOUT)
    monkeypatch.setattr(gpu_parts, "_ceilings", lambda say: {"bfloat16": 790.0, "copy": 4.3, "l2": 5.5})
    races = []

    def fake(race, say, deadline):
        races.append(race)
        seconds = {entry.label: 0.01 * (1 + i) for i, entry in enumerate(race.entries)}
        made = made_up(seconds, rate=1200e12, memory=2**30)
        return replace(made, race=race)

    monkeypatch.setattr(several, "run_race", fake)
    said = []
    assert run_part(Request(part, tmp_path), said.append)
    assert {race.device for race in races} == {"cuda"}
    assert {race.batch_size for race in races} == {1 if part == "latency" else 256}
    assert {race.training for race in races} == {part == "train"}
    assert {race.entries[0].contender for race in races} == {OURS}
    found = {t["what"]: t for t in json.loads((tmp_path / f"gpu-{part}.json").read_text())["targets"]}
    verdict = [t["verdict"] for t in found.values()]
    expected = {
        "b16": ["met"] * 4,
        "variants": ["met"] * 7,
        "latency": ["met"],
        "fp8": ["NOT met", "met", "met", "met"],
        "train": ["met", "NOT met"],
    }
    assert verdict == expected[part], found
    with pytest.raises(ConfigError, match="No race of the part"):
        run_part(Request(part, tmp_path, match="no such title"), said.append)
    with pytest.raises(ConfigError, match="holds the results of an earlier run"):
        run_part(Request(part, tmp_path), said.append)


def test_ours_races_itself_in_the_fp8_part(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    field = gpu_parts._field(gpu_parts.RACE_PARTS["fp8"])
    assert [entry.label for entry in field.entries][:2] == ["mixerzoo fp8", "mixerzoo bf16"]


def test_agreement_needs_data(tmp_path):
    done = run_cli("bench", "--suite", "agreement")
    assert done.returncode == 1
    assert "needs --data FOLDER" in done.stderr
    done = run_cli("bench", "--suite", "agreement", "--data", tmp_path)
    assert done.returncode == 1
    assert "has no folder named test or val" in done.stderr
    assert "--data belongs to --suite agreement" in run_cli("bench", "--suite", "load", "--data", tmp_path).stderr


def test_a_race_without_time_is_left_and_nobody_failed(monkeypatch, tmp_path):
    """Neither a missed target nor a failure of ours."""
    monkeypatch.setattr(runner, "Worker", StandIn)
    race = Race(MODEL, 1, "cpu", 1, (TIMM,), rounds=2)
    said = []
    report = Report(tmp_path, "suite", {})
    monkeypatch.setattr(several.time, "monotonic", iter([0.0, *[2.0] * 99]).__next__)
    assert several.run_all([race], Field((TIMM,), ()), report, said.append, deadline=1.0) == []
    assert said[-1] == f"not run, because time was up: {race.title}"


def test_a_target_that_a_missing_rival_might_have_missed_says_so():
    alone = made_up({"mixerzoo bf16": 0.5, "timm-compile bf16": 0.6}, **B16)
    rivals = [("timm-compile", "bf16"), ("openvino", "bf16")]
    assert against(alone, rivals, 1.0).verdict == "met by those present"
    assert against(alone, rivals, 1.5).verdict == "NOT met"
    assert "0.9996x" in str(Target("ours", 1.0, 0.9996))


def test_a_real_folder_race():
    from mixerzoo.bench import folder

    race = folder.race_folder(repeats=1, count=3)
    assert race.decoding > 0
    assert race.model > 0
    assert "3 JPEG files" in str(race)
    assert FolderRace(decoding=100.0, model=40.0, together=30.0).share == pytest.approx(0.75)


def test_figures_that_are_no_numbers_leave_valid_json(tmp_path):
    report = Report(tmp_path, "suite", {})
    result = made_up({"mixerzoo bf16": 0.5}, **B16)
    result.lanes[0].error = float("nan")
    report.add(result)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    written = json.loads((tmp_path / "suite.json").read_text(), parse_constant=refuse)
    assert written["races"][0]["lanes"][0]["error"] == "nan"
    assert not result.lanes[0].counts


def test_a_folder_for_results_is_refused_where_nothing_is_written(tmp_path):
    done = run_cli("bench", "--suite", "kernels", "--out", tmp_path)
    assert done.returncode == 1
    assert "--out belongs to --model and --suite cpu and --suite gpu, not to --suite kernels." in done.stderr
