"""token_mlp and channel_mlp by every backend that runs here; the Triton kernels in Triton's interpreter."""

import pytest
import torch
from op_checks import (
    EPS,
    NAMES,
    as_dtype,
    backend_results,
    distance,
    gradient_like,
    make_branch,
    reference_results,
    results,
)
from torch._dynamo.testing import CompileCounterWithBackend

from mixerzoo import reference
from mixerzoo.bench.gpu.tolerances import TOLERANCES
from mixerzoo.errors import BackendError
from mixerzoo.ops.operation import run
from mixerzoo.ops.problem import OPERATIONS, Branch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "token_mlp": [
        (3, 49, 64, 48),  # one part of tokens, padded
        (2, 196, 128, 64),  # three parts
        (2, 64, 128, 64),  # the built-in model's
        (1, 256, 64, 32),  # two full parts
        (4, 50, 80, 40),  # nothing is a multiple of anything
        (64, 1, 32, 64),  # one token; many numbers, so that an error's norm is no accident
    ],
    "channel_mlp": [(3, 49, 64, 256), (2, 64, 128, 512), (4, 50, 80, 40), (64, 1, 32, 64)],
}
BACKENDS_HERE = ("unfused", "triton")
pytestmark = pytest.mark.parametrize("op", OPERATIONS)
# The interpreter is NumPy, which warns where a card is silent.
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def cases(function):
    """Every backend that runs here and both GELU flavours."""
    function = pytest.mark.parametrize("backend", BACKENDS_HERE)(function)
    return pytest.mark.parametrize("act", ["tanh", "erf"])(function)


@overflows
@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("act", "keep"), [("tanh", True), ("erf", False)])
def test_output_and_gradients_are_as_close_to_float64_as_pytorch(op, backend, act, dtype, keep):
    tolerance = TOLERANCES[str(dtype).removeprefix("torch.")]
    for shape in SHAPES[op]:
        branch = make_branch(op, shape, dtype, keep=keep)
        exact = reference_results(op, as_dtype(branch, torch.float64), act)
        same = reference_results(op, branch, act)
        found = backend_results(op, branch, act, backend)
        for name, tensor in found.items():
            assert tensor.dtype == dtype
            assert tensor.shape == exact[name].shape
            limit = tolerance.limit(distance(same[name], exact[name]))
            assert distance(tensor, exact[name]) <= limit, (shape, name)


def test_reference_is_the_papers_equation(op):
    """Against the NumPy implementation, which shares no code with it."""
    branch = make_branch(op, (2, 9, 8, 6), torch.float64, keep=True, requires_grad=False)
    x, scale, shift, w1, b1, w2, b2, keep = (tensor.numpy() for tensor in branch)
    y = reference.layer_norm(x, scale, shift, EPS)
    if op == "token_mlp":
        mixed = w2 @ reference.gelu(w1 @ y + b1[:, None], "erf") + b2[:, None]
    else:
        mixed = reference.gelu(y @ w1.T + b1, "erf") @ w2.T + b2
    found = results_without_gradient(op, branch, "erf")
    assert distance(found, torch.from_numpy(x + keep[:, None, None] * mixed)) < 1e-14


def results_without_gradient(op, branch, act):
    from op_checks import REFERENCE

    return REFERENCE[op](branch, EPS, act)


@pytest.mark.parametrize("act", ["tanh", "erf"])
def test_registered_gradient_is_the_derivative(op, act):
    branch = make_branch(op, (2, 5, 6, 4), torch.float64, keep=True)
    registered = getattr(torch.ops.mixerzoo, op)
    assert torch.autograd.gradcheck(lambda *t: registered(*t, branch.keep, EPS, act, "unfused", True)[0], branch[:7])
    assert torch.autograd.gradcheck(lambda *t: run(op, Branch(*t, branch.keep), EPS, act, "unfused"), branch[:7])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize(("backend", "dtype"), [("unfused", torch.float64), ("triton", torch.float32)])
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(op, backend, dtype, keep):
    branch = make_branch(op, (2, 5, 16, 16), dtype, keep=keep)
    registered = getattr(torch.ops.mixerzoo, op)
    torch.library.opcheck(registered, (*branch, EPS, "tanh", backend, True), atol=1e-4, rtol=1e-4)
    _, *saved = registered(*branch, EPS, "tanh", backend, True)
    backward = getattr(torch.ops.mixerzoo, f"{op}_backward")
    detached = [None if tensor is None else tensor.detach() for tensor in (*branch, *saved)]
    torch.library.opcheck(backward, (gradient_like(branch), *detached, EPS, "tanh", backend))
    torch.library.opcheck(registered, (*detached[:8], EPS, "tanh", backend, False))


@cases
def test_same_bits_twice(op, backend, act):
    branch = make_branch(op, (5, 49, 64, 48), torch.bfloat16, keep=True)
    once, twice = (backend_results(op, branch, act, backend) for _ in range(2))
    for name in once:
        assert torch.equal(once[name], twice[name]), name


@cases
def test_same_output_with_and_without_gradients(op, backend, act):
    branch = make_branch(op, (3, 49, 64, 48), torch.bfloat16)
    with torch.no_grad():
        alone = run(op, branch, EPS, act, backend)
    assert torch.equal(alone, run(op, branch, EPS, act, backend))


def strided(tensor):
    """The same values as every second element of a buffer, in another order where there are two axes, NaN between."""
    turned = tensor.detach().transpose(-1, -2) if tensor.ndim > 1 else tensor.detach()
    buffer = torch.full((*turned.shape, 2), float("nan"), dtype=tensor.dtype)
    buffer[..., 0] = turned
    view = buffer[..., 0]
    return (view.transpose(-1, -2) if tensor.ndim > 1 else view).requires_grad_(tensor.requires_grad)


@cases
@pytest.mark.parametrize("direct", [False, True], ids=["run", "registered"])
def test_strides_do_not_matter(op, backend, act, direct):
    """Of the tokens, of every parameter, of stochastic depth's factors and of the gradient."""
    branch = make_branch(op, (2, 16, 32, 16), torch.float32, keep=True)
    other = Branch(*map(strided, branch))
    assert not any(tensor.is_contiguous() for tensor in other)

    def call(b):
        registered = getattr(torch.ops.mixerzoo, op)
        return registered(*b, EPS, act, backend, True)[0] if direct else run(op, b, EPS, act, backend)

    expected, found = results(call, branch), results(call, other)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    (turned,) = torch.autograd.grad(call(branch), branch.x, strided(gradient_like(branch)))
    assert torch.equal(turned, expected["x"])


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("name", NAMES[1:])
def test_shapes_that_do_not_belong_together(op, backend, name):
    branch = make_branch(op, (2, 16, 32, 20), torch.float32, requires_grad=False)
    wrong = branch._replace(**{name: torch.ones(tuple(side + 1 for side in getattr(branch, name).shape))})
    with pytest.raises(BackendError, match=f"{op} of x .2, 16, 32. cannot use .*w|{name}"):
        getattr(torch.ops.mixerzoo, op)(*wrong, EPS, "tanh", backend, False)


def test_no_way_back_without_saving(op):
    branch = make_branch(op, (2, 16, 32, 16), torch.float32)
    out = getattr(torch.ops.mixerzoo, op)(*branch, EPS, "tanh", "triton", False)[0]
    with pytest.raises(BackendError, match="save=True"):
        out.sum().backward()


@cases
@pytest.mark.parametrize("images", [0, 1])
def test_no_image_and_one(op, backend, act, images):
    branch = make_branch(op, (images, 16, 32, 16), torch.float32, keep=True)
    found = backend_results(op, branch, act, backend)
    assert found["out"].shape == (images, 16, 32)
    if not images:
        assert not any(found[name].any() for name in NAMES)
    else:
        exact = reference_results(op, as_dtype(branch, torch.float64), act)
        assert all(distance(found[name], exact[name]) < 1e-5 for name in found)


@overflows
@cases
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_go_where_they_go_in_pytorch(op, backend, act, value):
    branch = make_branch(op, (3, 20, 32, 16), torch.float32)
    with torch.no_grad():
        branch.x[1, 3, 7] = value
    expected, found = reference_results(op, branch, act), backend_results(op, branch, act, backend)
    assert found["out"][[0, 2]].isfinite().all()
    for name in found:
        assert torch.equal(found[name].isnan(), expected[name].isnan()), name
    with torch.no_grad():
        branch.x[1, 3, 7] = 1.0
        branch.b2[0] = value
    expected, found = reference_results(op, branch, act), backend_results(op, branch, act, backend)
    assert torch.equal(found["out"].isnan(), expected["out"].isnan())
    assert torch.equal(found["out"].isinf(), expected["out"].isinf())


@overflows
@cases
def test_hidden_infinities(op, backend, act):
    """Pre-activations that overflow: GELU's limits, not NaN, where PyTorch has them."""
    branch = make_branch(op, (2, 16, 32, 16), torch.float32, requires_grad=False)
    branch.b1[:4] = torch.tensor([float("inf"), float("nan"), 1e30, -1e30])
    expected = results_without_gradient(op, branch, act)
    found = run(op, branch, EPS, act, backend)
    assert torch.equal(found.isnan(), expected.isnan())


@cases
def test_inputs_are_left_alone(op, backend, act):
    branch = make_branch(op, (2, 16, 32, 16), torch.float32, keep=True)
    before = [tensor.detach().clone() for tensor in branch]
    backend_results(op, branch, act, backend)
    for old, new in zip(before, branch, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_residual_stream_may_be_wider_than_the_products(op, backend):
    """float32 tokens and LayerNorm, bfloat16 weights: what autocast leads to."""
    full = make_branch(op, (2, 49, 64, 48), torch.float32)
    low = {name: getattr(full, name).detach().bfloat16().requires_grad_() for name in ("w1", "b1", "w2", "b2")}
    branch = full._replace(**low)
    found = backend_results(op, branch, "tanh", backend)
    exact = reference_results(op, as_dtype(branch, torch.float64), "tanh")
    for name, tensor in found.items():
        assert tensor.dtype == (getattr(branch, name).dtype if name in NAMES else torch.float32)
        assert distance(tensor, exact[name]) < 2 * torch.finfo(torch.bfloat16).eps, name


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_some_parameters_frozen(op, backend):
    branch = make_branch(op, (2, 16, 32, 16), torch.float32)
    everything = backend_results(op, branch, "tanh", backend)
    frozen = Branch(
        *(t.detach().requires_grad_(name in ("x", "b1")) for name, t in zip(NAMES, branch, strict=False)), None
    )
    out = run(op, frozen, EPS, "tanh", backend)
    x, b1 = torch.autograd.grad(out, (frozen.x, frozen.b1), gradient_like(frozen))
    assert torch.equal(x, everything["x"])
    assert torch.equal(b1, everything["b1"])


@cases
@pytest.mark.parametrize("training", [False, True])
def test_one_compilation_whatever_the_batch_size(op, backend, act, training):
    """The first batch size, and one more for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda *tensors: run(op, Branch(*tensors), EPS, act, backend), fullgraph=True, backend=counter
    )
    for images in (2, 3, 5, 4, 7):
        branch = make_branch(op, (images, 16, 32, 16), torch.float32, keep=True, requires_grad=training)
        if training:
            expected = backend_results(op, branch, act, backend)
            found = results(lambda b: compiled(*b), branch)
            assert all(distance(found[name], expected[name]) < 1e-6 for name in found)
        else:
            assert torch.equal(compiled(*branch), run(op, branch, EPS, act, backend))
    assert counter.frame_count == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch 2.11's compiler
@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_inductor(op, backend):
    """The real compiler, full graph, forward and backward."""
    torch._dynamo.reset()
    branch = make_branch(op, (2, 16, 32, 16), torch.float32, keep=True)
    compiled = torch.compile(lambda *tensors: run(op, Branch(*tensors), EPS, "tanh", backend), fullgraph=True)
    found = results(lambda b: compiled(*b), branch)
    exact = reference_results(op, as_dtype(branch, torch.float64), "tanh")
    assert all(distance(found[name], exact[name]) < 1e-5 for name in found)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_second_derivatives_are_refused(op, backend):
    branch = make_branch(op, (1, 4, 16, 16), torch.float32)
    out = run(op, branch, EPS, "tanh", backend)
    with pytest.raises(RuntimeError, match=r"differentiable|does not require grad|no autograd formula"):
        torch.autograd.grad(out.square().sum(), branch.x, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize("tokens", [784, 1024])
def test_many_tokens_without_a_kernel(op, tokens):
    shape = (1, tokens, 16, 16)
    branch = make_branch(op, shape, torch.float32)
    exact = reference_results(op, as_dtype(branch, torch.float64), "tanh")
    found = backend_results(op, branch, "tanh", "unfused")
    assert all(distance(found[name], exact[name]) < 1e-5 for name in found)
