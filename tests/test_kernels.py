"""The kernels themselves: tiles, bounds, order of work, and what they compile to for cards that are not here."""

import json
import os
import subprocess
import sys

import pytest
import torch
import triton
from op_checks import EPS, as_dtype, distance, gradient_like, make_branch, reference_results

from mixerzoo.errors import ConfigError
from mixerzoo.kernels import layer_norm, linear, linear_tiles, token_mlp, token_mlp_backward
from mixerzoo.kernels.branches import token_tiles
from mixerzoo.kernels.catalogue import SIZES, token_entries
from mixerzoo.kernels.inspection import compile_launch
from mixerzoo.kernels.launch import INTERPRETER, SHARED_MEMORY, Card, dot_precision
from mixerzoo.kernels.token_tiles import (
    FORWARD,
    INPUT,
    WEIGHTS,
    Tile,
    hidden_chunk,
    padded_tokens,
    token_parts,
)

SHAPE = (3, 50, 80, 40)
TILE = Tile(32, 16, 4, 2)
LINEAR_TILE = linear_tiles.LinearTile(32, 32, 16, 4, 2)
GUARD = 64


@pytest.mark.parametrize("tokens", range(1, 257))
def test_tokens_are_cut_into_powers_of_two(tokens):
    parts = token_parts(tokens)
    used = [part for part in parts if part]
    assert parts == tuple(sorted(parts, reverse=True))
    assert all(part in (16, 32, 64, 128) for part in used)
    assert tokens <= sum(parts) == padded_tokens(tokens)
    assert sum(parts) - min(used) < tokens  # no part is empty
    assert sum(parts) - tokens < 16 or len(used) == 3


def test_paper_sizes_waste_little():
    assert token_parts(196) == (128, 64, 16)
    assert [padded_tokens(tokens) for tokens in (49, 64, 196, 256)] == [64, 64, 208, 256]


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("element_size", [2, 4])
def test_every_card_has_a_tile_for_every_variant(capability, size, element_size):
    card = Card(capability, 100, SHARED_MEMORY[capability])
    tiles = token_tiles(card, size, element_size, "erf")
    assert tiles is not None
    assert all(hidden_chunk(size.hidden) % tile.hidden == 0 for tile in tiles)


def test_no_tile_without_shared_memory():
    assert token_tiles(Card((7, 5), 40, 4096), SIZES["B/16"], 2, "tanh") is None


@pytest.mark.parametrize("table", [FORWARD, INPUT, WEIGHTS])
def test_a_larger_card_never_gets_a_smaller_tile(table):
    chosen = [
        table.choose(Card((9, 0), 1, memory), SIZES["B/16"], 2, "tanh") for memory in range(16_384, 262_144, 8_192)
    ]
    positions = [table.candidates.index(tile) if tile else len(table.candidates) for tile in chosen]
    assert positions == sorted(positions, reverse=True)


class Guarded:
    """Tensors that lie inside larger buffers, so that reads and writes beside them show."""

    def __init__(self, canary):
        self.canary = canary
        self.buffers = []

    def put(self, tensor):
        """A copy of ``tensor`` with canaries before and behind it."""
        buffer = torch.full((tensor.numel() + 2 * GUARD,), self.canary, dtype=tensor.dtype)
        view = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
        view.copy_(tensor)
        self.buffers.append(buffer)
        return view

    def assert_intact(self):
        for buffer in self.buffers:
            expected = torch.full((GUARD,), self.canary, dtype=buffer.dtype)
            assert torch.equal(buffer[:GUARD].nan_to_num(7e4), expected.nan_to_num(7e4))
            assert torch.equal(buffer[-GUARD:].nan_to_num(7e4), expected.nan_to_num(7e4))


def token_launches(guard):
    """All kernels of token mixing on guarded tensors: launches, and the outputs they write."""
    branch = make_branch("token_mlp", SHAPE, torch.float32, keep=True, requires_grad=False)
    images, tokens, channels, _ = SHAPE
    put, empty = guard.put, lambda *shape: guard.put(torch.zeros(shape))
    x, scale, shift, b2, keep = map(put, (branch.x, branch.norm_weight, branch.norm_bias, branch.b2, branch.keep))
    packed = tuple(put(tensor) for tensor in token_mlp.pack(branch.w1, branch.b1, branch.w2))
    g, stats = put(gradient_like(branch)), (empty(images, tokens), empty(images, tokens))
    out, dy, dx = empty(*x.shape), empty(*x.shape), empty(*x.shape)
    db2 = empty(images * -(-channels // TILE.channels), padded_tokens(tokens))
    dw1, dw2, db1 = empty(2, *packed[0].shape), empty(2, *packed[0].shape), empty(2, packed[0].shape[0])
    sums = empty(2, channels), empty(2, channels)
    norm, shared = (scale, shift), (x, stats, (scale, shift), g, keep, packed)
    yield layer_norm.describe_layer_norm(x, scale, shift, None, *stats, EPS), stats
    yield token_mlp.describe_forward(x, stats, norm, packed, b2, keep, out, "tanh", TILE, 2), (out,)
    yield token_mlp_backward.describe_input(*shared, dy, db2, "tanh", TILE, 2), (dy, db2)
    yield token_mlp_backward.describe_weights(*shared, dw1, db1, "tanh", TILE), (dw1, db1)
    yield token_mlp_backward.describe_weights(*shared, dw2, None, "tanh", TILE), (dw2,)
    yield layer_norm.describe_layer_norm_backward(dy, g, x, *stats, scale, dx, *sums), (dx, *sums)


def channel_launches(guard):
    branch = make_branch("channel_mlp", SHAPE, torch.float32, keep=True, requires_grad=False)
    images, tokens, channels, hidden = SHAPE
    put, empty = guard.put, lambda *shape: guard.put(torch.zeros(shape))
    x, scale, shift, w3, b3, w4, b4, keep = map(put, branch)
    rows = images * tokens
    stats, y, out = (empty(images, tokens), empty(images, tokens)), empty(rows, channels), empty(*x.shape)
    u, z, du, dz = (empty(rows, hidden) for _ in range(4))
    sums, g = empty(-(-rows // LINEAR_TILE.rows), hidden), put(gradient_like(branch))
    yield layer_norm.describe_layer_norm(x, scale, shift, y, *stats, EPS), (y, *stats)
    yield linear.describe_linear_gelu(y, w3, b3, u, z, "tanh", LINEAR_TILE), (u, z)
    yield linear.describe_linear_residual(z, w4, b4, x, keep, out, LINEAR_TILE), (out,)
    yield linear.describe_linear_gradient(g, w4, u, keep, du, dz, sums, "tanh", LINEAR_TILE), (du, dz, sums)


@pytest.mark.parametrize("launches", [token_launches, channel_launches])
def test_nothing_is_read_or_written_beside_a_buffer(launches):
    """Canaries survive, and what they are makes no difference: NaN beside every input changes no output."""
    outputs = []
    for canary in (1.0, float("nan")):
        guard = Guarded(canary)
        written = []
        for launch, tensors in launches(guard):
            launch()
            written += tensors
        guard.assert_intact()
        outputs.append([tensor.clone() for tensor in written])
    for tame, wild in zip(*outputs, strict=True):
        assert torch.equal(tame, wild)
        assert tame.any()


def test_launches_describe_the_right_thing():
    """The guarded launches above, with their own tiles, compute the branch and the gradient of its input."""
    written = {}
    for op, launches, places in (
        ("token_mlp", token_launches, {"out": (1, 0), "x": (5, 0)}),
        ("channel_mlp", channel_launches, {"out": (2, 0)}),
    ):
        exact = reference_results(op, as_dtype(make_branch(op, SHAPE, torch.float32, keep=True), torch.float64), "tanh")
        done = []
        for launch, tensors in launches(Guarded(0.0)):
            launch()
            done.append(tensors)
        for name, (step, which) in places.items():
            written[op, name] = distance(done[step][which], exact[name])
    assert max(written.values()) < 1e-6, written


@pytest.mark.parametrize("programs", [1, 2, 5, 1000])
def test_persistent_programs_share_the_tiles(programs):
    """However many programs there are, every tile is computed once, with the same bits."""
    branch = make_branch("token_mlp", SHAPE, torch.bfloat16, requires_grad=False)
    norm = (branch.norm_weight, branch.norm_bias)
    stats, packed = layer_norm.row_stats(branch.x, *norm, EPS), token_mlp.pack(branch.w1, branch.b1, branch.w2)
    outs = []
    for count in (1, programs):
        outs.append(torch.full_like(branch.x, float("nan")))
        arguments = (branch.x, stats, norm, packed, branch.b2, None, outs[-1], "erf", TILE, count)
        token_mlp.describe_forward(*arguments)()
    assert torch.equal(*outs)


def test_row_statistics_of_a_large_mean():
    """Centred before it is squared: no cancellation."""
    x = 1000.0 + torch.randn(7, 33)
    mean, rstd = layer_norm.row_stats(x, torch.ones(33), torch.zeros(33), EPS)
    exact = x.double()
    assert distance(mean, exact.mean(1)) < 1e-7
    assert distance(rstd, (exact.var(1, correction=0) + EPS).rsqrt()) < 1e-6


def test_tf32_only_where_the_user_allows_it():
    try:
        assert dot_precision(torch.float32) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert dot_precision(torch.float32) == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_interpreted_kernels_cannot_be_compiled():
    entry = next(token_entries(INTERPRETER, SIZES["Ti/4"], torch.float32, "tanh"))
    with pytest.raises(ConfigError, match="TRITON_INTERPRET"):
        compile_launch(entry.launch, (9, 0))


COMPILE = """
import dataclasses, json
import torch
from mixerzoo.bench.kernels import CAPABILITIES, compile_all
from mixerzoo.kernels.catalogue import SIZES, channel_entries, token_entries
from mixerzoo.kernels.launch import INTERPRETER

def specialised():
    arguments = (INTERPRETER, SIZES["B/16"], torch.bfloat16, "tanh")
    for _, _, launch in [*token_entries(*arguments), *channel_entries(*arguments)]:
        for parameter in launch.kernel.params:
            if isinstance(launch.arguments.get(parameter.name), int) and not parameter.do_not_specialize:
                yield parameter.name

if __name__ == "__main__":
    assert not list(specialised()), "a kernel would be compiled again for another batch size"
    jobs = [("B/16", "bfloat16", "tanh", True, capability) for capability in CAPABILITIES]
    jobs += [("S/16", "float16", "erf", False, (9, 0)), ("H/14", "bfloat16", "erf", False, (10, 0))]
    jobs += [("B/32", "float32", "tanh", False, (9, 0))]
    print(json.dumps([dataclasses.asdict(row) for row in compile_all(jobs)]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every kernel compiled in a process that does not interpret, into a cache of its own."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "compile_all.py").write_text(COMPILE)
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache")}
    del environment["TRITON_INTERPRET"]
    run = subprocess.run(
        [sys.executable, folder / "compile_all.py"], capture_output=True, text=True, timeout=900, env=environment
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_kernels_compile_for_every_card_within_its_shared_memory(compiled):
    capabilities = {tuple(row["capability"]) for row in compiled}
    assert capabilities == {(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)}
    for capability in capabilities:
        kernels = {row["kernel"] for row in compiled if tuple(row["capability"]) == capability}
        assert len(kernels) == (15 if capability < (8, 9) else 20)  # matrix units take FP8 from 8.9 on
    for row in compiled:
        assert row["shared_memory"] <= SHARED_MEMORY[tuple(row["capability"])], row


def test_no_spills_on_hopper_and_data_centre_blackwell(compiled):
    """On Hopper whatever Triton compiles; on the other with the Triton whose spills the tiles were chosen by."""
    half = [row for row in compiled if row["dtype"] != "float32" and row["capability"][0] in (9, 10)]
    hopper = [row for row in half if row["capability"][0] == 9]
    assert hopper
    assert [row for row in hopper if row["spills"]] == []
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    assert max(row["spills"] for row in half) <= (320 if old else 0)


def test_spills_elsewhere_are_few(compiled):
    """Some bytes around the loop, none of them per step."""
    rest = [row for row in compiled if row["dtype"] != "float32" and row["capability"][0] not in (9, 10)]
    assert max(row["spills"] for row in rest) <= 256


def test_products_run_on_warp_group_mma(compiled):
    half = [row for row in compiled if row["dtype"] != "float32" and row["capability"][0] in (9, 10)]
    products = [row for row in half if row["tile"]]
    assert len(products) > 8
    assert all(row["warp_group_mma"] for row in products)
