"""The GPU suite without a GPU: rehearsals, what becomes of workers that die, and proof that its checks can fail."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import run_cli

from mixerzoo.bench.gpu import ops, plan
from mixerzoo.bench.gpu.cases import Result
from mixerzoo.bench.gpu.checks import (
    check_compiled,
    check_errors,
    check_guards,
    check_nonfinite,
    check_repeat,
    check_results_finite,
    check_strides,
)
from mixerzoo.bench.gpu.contenders import CONTENDERS, VARIANTS, contender
from mixerzoo.bench.gpu.floors import channel_phases, floor, token_phases
from mixerzoo.bench.gpu.inputs import RESULTS, Setting, by_reference, differentiated, in_float64, random_branch
from mixerzoo.bench.gpu.parts import run_part
from mixerzoo.bench.gpu.pool import run_cases
from mixerzoo.bench.gpu.record import fastest_backends, record_correctness, record_fastest
from mixerzoo.bench.gpu.request import Request
from mixerzoo.bench.gpu.suite import run_suite
from mixerzoo.bench.gpu.summary import summary
from mixerzoo.bench.gpu.tolerances import TOLERANCES
from mixerzoo.cli.bench import bench_command
from mixerzoo.errors import ConfigError
from mixerzoo.ops.cards import CardRecord, problem_key, read_cards, record_card
from mixerzoo.ops.problem import Problem

# --- rehearsals, as a user starts them ---


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        ("correctness", {"branch", "kernel", "far", "engine"}),
        ("ops", {"ceilings", "contender"}),
        ("tiles", {"ceilings", "tile"}),
    ],
)
def test_a_rehearsal_runs_to_its_end(tmp_path, part, kinds):
    result = run_cli("bench", "--suite", "gpu", "--part", part, "--out", tmp_path, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rehearsal in the interpreter: times mean nothing" in result.stdout
    first, *lines = [json.loads(line) for line in (tmp_path / f"gpu-{part}.jsonl").read_text().splitlines()]
    assert first["circumstances"]["command"].startswith(f"mixerzoo bench --suite gpu --part {part}")
    assert {"torch", "triton", "date", "gpu"} <= first["circumstances"].keys()
    whole = json.loads((tmp_path / f"gpu-{part}.json").read_text())
    assert whole == {"circumstances": first["circumstances"], "results": lines}
    assert {line["status"] for line in lines} == {"passed"}
    assert {line["case"]["kind"] for line in lines} == kinds
    assert f"{len(lines)} passed, 0 failed, 0 not run" in result.stdout
    for measured in (line["measured"] for line in lines if line["case"]["kind"] in ("contender", "tile")):
        assert [measured[name] for name in ("median us", "spread us", "floor us", "share of floor")] == [None] * 4
        assert measured["operations"] > 0


def test_without_a_card_the_command_says_how_to_rehearse(tmp_path):
    result = run_cli(
        "bench", "--suite", "gpu", "--part", "ops", "--out", tmp_path, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES=""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith("skipped: there is no CUDA device here")
    assert "TRITON_INTERPRET=1" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_is_not_recorded(tmp_path):
    arguments = ("bench", "--suite", "gpu", "--part", "correctness", "--record", "--out", tmp_path)
    result = run_cli(*arguments, TRITON_INTERPRET="1")
    assert result.returncode == 1
    assert result.stderr.startswith("error: A rehearsal in the interpreter proves nothing about a card")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": "no such label"}, "No case of the part 'ops' has 'no such label' in its label"),
        ({"minutes": 0.0}, "--minutes 0.0 must be more than 0"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run_part(Request("ops", tmp_path, **options), print)


def test_results_of_an_earlier_run_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "gpu-ops.jsonl").write_text("earlier")
    with pytest.raises(ConfigError, match="holds the results of an earlier run"):
        run_suite(Request("ops", tmp_path), print)
    assert (tmp_path / "gpu-ops.jsonl").read_text() == "earlier"
    with pytest.raises(ConfigError, match="cannot be written"):
        run_suite(Request("ops", tmp_path / "gpu-ops.jsonl" / "folder"), print)


def test_options_of_the_gpu_suite_belong_to_it():
    with pytest.raises(ConfigError, match="--part belongs to --suite gpu, not to --suite load"):
        bench_command("load", part="ops")


NO_TYPER = """
import sys, runpy
sys.modules["typer"] = None
sys.argv = ["mixerzoo", *sys.argv[2:]]
runpy.run_module(MODULE, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "arguments", "status", "message"),
    [
        ("mixerzoo", ["list"], 1, "error: The command line needs typer"),
        ("mixerzoo.bench.gpu", ["--part", "ops"], 0, "skipped: there is no CUDA device here"),
        ("mixerzoo.bench.gpu", ["--part", "b16"], 0, "skipped: there is no CUDA device here"),
    ],
)
def test_without_typer(tmp_path, module, arguments, status, message):
    """The GPU suite runs on a machine that has torch, Triton and timm; the rest says what it needs."""
    result = subprocess.run(
        [sys.executable, "-c", NO_TYPER.replace("MODULE", repr(module)), "-", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        env=os.environ | {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == status
    said = result.stderr if status else result.stdout
    assert said.startswith(message), result.stderr
    assert said.count("\n") == 1


def test_a_card_that_fails_is_no_longer_recorded_as_right(tmp_path):
    path = tmp_path / "cards.json"
    path.write_text("{}")
    case = {"label": "one", "op": "token_mlp", "numerics": "bfloat16"}
    record_correctness([Result(case, "passed")], "card", {"date": "1"}, path)
    assert read_cards(path)["card"].passed == {"token_mlp": ["bfloat16"]}
    said = record_correctness([Result(case, "failed")], "card", {"date": "2"}, path)
    assert "not recorded: token_mlp in bfloat16" in said
    assert read_cards(path)["card"].passed == {}


def test_tiles_are_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="leave --record out"):
        run_suite(Request("tiles", tmp_path, record=True), print)


def test_the_gpu_suite_asks_for_a_part():
    with pytest.raises(ConfigError, match="give --part correctness, ops, tiles, b16"):
        bench_command("gpu")


# --- the lists of cases ---


def test_every_operation_meets_every_size_dtype_and_backend():
    cases = [case for case in plan.cases(rehearsal=False) if case["kind"] == "branch"]
    seen = {(c["op"], c["backend"], tuple(c["shape"]), c["numerics"]) for c in cases}
    for tokens, (channels, hidden) in [(s, w) for s in (49, 64, 196, 256) for w in plan._WIDTHS.values()] + [
        (64, (128, 64)),
        (50, (80, 40)),
    ]:
        for op, wide in (("token_mlp", hidden), ("channel_mlp", 4 * channels)):
            for numerics in ("bfloat16", "float16", "float32"):
                backends = ("triton", "unfused") if op == "token_mlp" else ("triton", "unfused", "cublaslt")
                assert {(op, b, (tokens, channels, wide), numerics) for b in backends} <= seen
            assert (op, "triton", (tokens, channels, wide), "tf32") in seen
    assert {(c["op"], c["shape"][0]) for c in cases if c["backend"] == "unfused"} >= {
        (op, tokens) for op in ("token_mlp", "channel_mlp") for tokens in (784, 1024)
    }
    for op in ("token_mlp", "channel_mlp"):
        for numerics in TOLERANCES:
            mine = [c for c in cases if (c["op"], c["backend"], c["numerics"]) == (op, "triton", numerics)]
            assert {(c["act"], c["keep"]) for c in mine} == {(a, k) for a in ("tanh", "erf") for k in (True, False)}
    assert all(c["act"] == "tanh" for c in cases if c["backend"] == "cublaslt")


@pytest.mark.parametrize("planned", [plan.cases, ops.cases, ops.tile_cases])
@pytest.mark.parametrize("rehearsal", [True, False])
def test_cases_have_names_of_their_own_and_are_plain(planned, rehearsal):
    cases = planned(rehearsal)
    assert len({case["label"] for case in cases}) == len(cases)
    assert json.loads(json.dumps(cases)) == cases


def test_ops_begin_with_the_ceilings_and_b16():
    first, *cases = ops.cases(rehearsal=False)
    assert first["kind"] == "ceilings"
    assert cases[0]["variant"] == "B/16"
    raced = {(c["variant"], c["op"], c["mode"]) for c in cases if c["kind"] == "contender"}
    assert raced == {(v, o, m) for v in VARIANTS if v != "toy" for o in CONTENDERS for m in ("inference", "training")}
    assert all(case["may_fail"] for case in ops.tile_cases(rehearsal=False)[1:])


def test_the_floor_adds_up_the_phases():
    """With an H200's rates: 18 us for row statistics, 131 for the fused kernel, 36 for LayerNorm, 600 for products."""
    rates = {"bfloat16": 790.0, "copy": 4.3, "l2": 5.5}
    statistics, fused = (floor([phase], rates) for phase in token_phases(256, (196, 768, 384), False))
    norm, *products = (floor([phase], rates) for phase in channel_phases(256, (196, 768, 3072), False))
    assert (round(statistics), round(fused), round(norm), round(sum(products))) == (18, 131, 36, 599)
    assert floor(token_phases(256, (196, 768, 384), False), {"copy": None}) is None


# --- workers ---

WORKER = """
import os, time
from mixerzoo.bench.gpu.cases import Outcome
def run_case(case):
    match case["do"]:
        case "die":
            print("the last words", flush=True)
            os.abort()
        case "hang":
            time.sleep(600)
        case "raise":
            raise ValueError("no such thing")
        case "wrong":
            return Outcome(["it is wrong"], {"error": float("nan")})
        case "carry":
            return Outcome(carry={"rate": 7})
        case "sleep":
            time.sleep(2)
    print("libraries chatter")
    return Outcome(measured={"process": os.getpid(), "rate": case.get("rate")})
"""


@pytest.fixture
def run_in_workers(tmp_path, monkeypatch):
    """Run cases in real worker processes that import a module with this source."""

    def run(source, cases, **options):
        (tmp_path / "tried_worker.py").write_text(source)
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        monkeypatch.setenv("PYTHONPATH", path)
        seen = []
        results = run_cases("tried_worker", cases, seen.append, **({"seconds": 100} | options))
        assert seen == results
        return {result.label: result for result in results}

    return run


def test_a_case_that_kills_or_hangs_its_worker_costs_one_case(run_in_workers):
    steps = ["carry", "first", "die", "after death", "hang", "after hanging", "raise", "wrong", "last"]
    results = run_in_workers(WORKER, [{"label": s, "do": s, "limit": 1.5 if s == "hang" else 60} for s in steps])
    assert list(results) == steps
    assert {label for label, r in results.items() if r.status == "failed"} == {"die", "hang", "raise", "wrong"}
    assert "the worker died in this case (SIGABRT)" in results["die"].failures[0]
    assert "the last words" in results["die"].failures[0]
    assert "took longer than 2 s in this case" in results["hang"].failures[0]
    assert results["raise"].failures == ["ValueError: no such thing"]
    assert "in run_case" in "".join(results["raise"].measured["traceback"])
    assert results["wrong"].failures == ["it is wrong"]
    assert results["wrong"].measured == {"error": "nan"}
    processes = [results[s].measured["process"] for s in ("first", "after death", "after hanging", "last")]
    assert len(set(processes[:3])) == 3
    assert processes[3] == processes[2], "an ordinary exception costs no worker"
    assert all(results[s].measured["rate"] == 7 for s in ("first", "after death", "last")), "carried across workers"
    text = summary(list(results.values()), rehearsal=True)
    assert "5 passed, 4 failed, 0 not run" in text
    assert "failed: hang: took longer" in text


def test_no_case_starts_after_the_deadline(run_in_workers):
    cases = [{"label": str(i), "do": "sleep"} for i in range(3)]
    results = run_in_workers(WORKER, cases, seconds=1.0)
    assert [result.status for result in results.values()] == ["passed", "not run", "not run"]
    assert results["2"].failures == ["time was up"]
    assert "2 not run" in summary(list(results.values()), rehearsal=False)


def test_several_workers_share_the_cases(run_in_workers):
    cases = [{"label": str(i), "do": "sleep"} for i in range(4)]
    results = run_in_workers(WORKER, cases, workers=2)
    assert len({result.measured["process"] for result in results.values()}) == 2


def test_a_module_that_cannot_be_imported_fails_its_cases(run_in_workers):
    results = run_in_workers("raise RuntimeError('broken')", [{"label": "a"}])
    assert results["a"].status == "failed"
    assert "RuntimeError: broken" in results["a"].failures[0]


def test_a_wrong_backend_is_caught_from_end_to_end(run_in_workers):
    source = """
from dataclasses import replace
from mixerzoo.bench.gpu.correctness import run_case
from mixerzoo.ops.backends import BACKENDS
from mixerzoo.ops.problem import Implementation
backend = BACKENDS["unfused"]
right = backend.implementations["token_mlp"]
def backward(*arguments):
    dx, *others = right.backward(*arguments)
    return 1.01 * dx, *others
wrong = replace(right, backward=backward)
BACKENDS["unfused"] = replace(backend, implementations={"token_mlp": wrong})
"""
    case = next(c for c in plan.cases(rehearsal=True) if (c["backend"], c["numerics"]) == ("unfused", "float32"))
    result = run_in_workers(source, [case])[case["label"]]
    assert result.status == "failed"
    checks = result.measured["checks"]
    assert not checks["error x"]["passed"]
    assert checks["error x"]["error"] == pytest.approx(0.01, rel=0.1)
    assert checks["error out"]["passed"]
    assert checks["error w1"]["passed"]


# --- the checks can fail ---

SETTING = Setting(
    op="token_mlp",
    tokens=9,
    channels=24,
    hidden=20,
    images=3,
    numerics="float32",
    stream=torch.float32,
    act="tanh",
    keep=True,
    device=torch.device("cpu"),
)
RIGHT = differentiated(by_reference(SETTING))
BRANCH, G = random_branch(SETTING)


def changed(name, change):
    """A right implementation of which one result is changed."""
    return lambda branch, g: (results := RIGHT(branch, g)) | {name: change(results[name])}


def beyond(tensor, by):
    """The element ``by`` places behind a tensor, where its storage goes on; else None."""
    end = tensor.storage_offset() + tensor.numel() + by
    inside = end < tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.as_strided(tensor, (), (), end) if inside else None


@pytest.mark.parametrize("name", RESULTS)
def test_an_error_in_any_result_is_caught(name):
    pytorch, exact = RIGHT(BRANCH, G), in_float64(SETTING, BRANCH, G)

    def failing(results):
        checks = check_errors(results, pytorch, exact, TOLERANCES["float32"])
        return [check.name for check in checks if not check.passed]

    assert failing(pytorch) == []
    for wrong in (lambda t: 1.0001 * t, lambda t: t * torch.nan, lambda t: t.double(), lambda t: t[..., :-1]):
        assert failing(changed(name, wrong)(BRANCH, G)) == [f"error {name}"]


def test_results_that_change_from_run_to_run_are_caught():
    first = RIGHT(BRANCH, G)
    assert check_repeat(RIGHT, BRANCH, G, first).passed
    racing = check_repeat(changed("w2", lambda t: t.nextafter(t + 1)), BRANCH, G, first)
    assert not racing.passed
    assert racing.measured == {"differing": ["w2"]}


@pytest.mark.parametrize("by", [0, 100])
def test_writing_beyond_a_tensor_is_caught(by):
    def compute(branch, g):
        element = beyond(branch.norm_bias, by)
        if element is not None:
            element.fill_(3.0)
        return RIGHT(branch, g)

    first = RIGHT(BRANCH, G)
    assert check_guards(RIGHT, BRANCH, G, first).passed
    check = check_guards(compute, BRANCH, G, first)
    assert not check.passed
    assert check.measured == {"written beyond": ["norm_bias"], "differing": []}


@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["multiplied by zero", "added"])
def test_reading_beyond_a_tensor_is_caught(weight):
    def compute(branch, g):
        results, element = RIGHT(branch, g), beyond(g, 5)
        return results if element is None else results | {"b1": results["b1"] + weight * element}

    check = check_guards(compute, BRANCH, G, RIGHT(BRANCH, G))
    assert not check.passed
    assert check.measured == {"written beyond": [], "differing": ["b1"]}


@pytest.mark.parametrize(
    "change",
    [lambda t: t.nan_to_num(), lambda t: t * t.sum() / t.sum(), lambda t: torch.where(t.isnan(), torch.inf, t)],
    ids=["swallowed", "spread", "turned into infinity"],
)
@pytest.mark.parametrize("name", ["out", "x"])
def test_a_misplaced_nan_is_caught(name, change):
    assert check_nonfinite(RIGHT, RIGHT, BRANCH, G).passed
    assert list(check_nonfinite(changed(name, change), RIGHT, BRANCH, G).measured["misplaced"]) == [name]


def test_heeding_no_strides_is_caught():
    def compute(branch, g):
        return RIGHT(branch._replace(x=branch.x.as_strided(branch.x.shape, BRANCH.x.stride())), g)

    def copying(branch, g):
        return RIGHT(type(branch)._make(None if t is None else t.contiguous() for t in branch), g.contiguous())

    first = RIGHT(BRANCH, G)
    assert check_strides(copying, BRANCH, G, first).passed
    assert not check_strides(compute, BRANCH, G, first).passed


def test_other_bits_when_compiled_and_results_that_are_not_finite_are_caught():
    first = RIGHT(BRANCH, G)
    assert check_compiled(first, RIGHT(BRANCH, G)).passed
    assert not check_compiled(first, first | {"out": first["out"] + 1e-5}).passed
    assert check_results_finite(first).passed
    assert not check_results_finite(first | {"b2": first["b2"] / 0.0}).passed


@pytest.mark.parametrize(("more_rows", "wrong"), [(0, None), (4, "written beyond"), (-4, "differing or not written")])
def test_a_kernel_that_writes_too_much_or_too_little_is_caught(monkeypatch, more_rows, wrong):
    from mixerzoo.bench.gpu.correctness import kernel_checks
    from mixerzoo.kernels import layer_norm

    describe = layer_norm.describe_layer_norm

    def tampered(*arguments):
        launch = describe(*arguments)
        rows = launch.arguments["R"] + more_rows
        return dataclasses.replace(launch, arguments={**launch.arguments, "R": rows}, grid=(-(-rows // 4),))

    monkeypatch.setattr(layer_norm, "describe_layer_norm", tampered)
    (check,) = kernel_checks("layer_norm", SETTING)
    assert check.passed == (wrong is None)
    if wrong:
        assert {"mean", "rstd", "y"} <= set(check.measured[wrong])


# --- recording ---

CARD = "NVIDIA Some Card"


def outcomes(cases, failing=None, **measured):
    return [Result(case, "failed" if case["label"] == failing else "passed", measured=measured) for case in cases]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "cards.json"
    path.write_text("{}\n")
    return path


def test_a_card_is_recorded_for_what_passed_completely(table):
    cases = plan.cases(rehearsal=False)
    everything = record_correctness(outcomes(cases), CARD, {"torch": "2.x", "cores": 16}, table)
    assert "not recorded" not in everything
    record = read_cards(table)[CARD]
    assert record.passed == {op: ["bfloat16", "float16", "float32"] for op in ("channel_mlp", "token_mlp")}
    assert record.circumstances == {"torch": "2.x", "cores": "16"}

    failing = next(c["label"] for c in cases if c["op"] == "token_mlp" and c["numerics"] == "tf32")
    partly = record_correctness(outcomes(cases, failing), CARD, {}, table)
    assert "not recorded: token_mlp in float32: 1 of" in partly
    assert failing in partly
    assert read_cards(table)[CARD].passed["token_mlp"] == ["bfloat16", "float16"]


def test_nothing_is_recorded_where_every_pair_misses_a_case(table):
    results = [Result(case, "not run") for case in plan.cases(rehearsal=False)]
    assert record_correctness(results, CARD, {}, table).count("not recorded") == 6
    assert read_cards(table) == {}


def test_the_fastest_backends_join_an_existing_record(table):
    cases = [c for c in ops.cases(rehearsal=False) if c["kind"] == "contender"]
    medians = {"reference": 40.0, "unfused": 30.0, "triton": 20.0, "cublaslt": 10.0}
    results = [
        Result(case, "passed", measured={"median us": medians.get(case["contender"], 1.0)})
        for case in cases
        if case["variant"] in ("B/16", "B/32")
    ]
    with pytest.raises(ConfigError, match="has no record to add to"):
        record_fastest(results, CARD, {}, table)
    record_card(CARD, CardRecord({"torch": "2.x"}, {"token_mlp": ["bfloat16"]}), table)
    record_fastest(results, CARD, {"torch": "2.y"}, table)
    record = read_cards(table)[CARD]
    assert record.passed == {"token_mlp": ["bfloat16"]}
    assert record.circumstances == {"torch": "2.x", "ops torch": "2.y"}
    token, channel = (
        problem_key(Problem(op, torch.device("cuda"), torch.bfloat16, *sizes, "tanh", False))
        for op, sizes in (("token_mlp", (196, 768, 384)), ("channel_mlp", (0, 768, 3072)))
    )
    assert record.fastest[token] == "triton"
    assert record.fastest[channel] == "cublaslt"
    assert len(record.fastest) == 6, "two sizes of token mixing, one of channel mixing, each in both modes"


def test_a_race_that_is_not_complete_names_no_winner():
    cases = [c for c in ops.cases(rehearsal=False) if c["label"].startswith("B/16 token_mlp inference")]
    eager = [c for c in cases if contender("token_mlp", c["contender"]).mode is None]
    assert fastest_backends(outcomes(eager, eager[-1]["label"], **{"median us": 1.0})) == {}


def test_failed_tiles_fail_no_run():
    tile = {"label": "tile", "kind": "tile", "may_fail": True}
    assert not Result(tile, "failed").counts_as_failure
    assert "failed, as it may: tile: out of resources" in summary(
        [Result(tile, "failed", 1.0, ["out of resources"])], False
    )
    assert Result({"label": "contender"}, "failed").counts_as_failure
