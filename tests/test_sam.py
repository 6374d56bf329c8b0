"""Sharpness-aware minimisation against closed forms, and its two passes on real models."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import mixerzoo
from mixerzoo.errors import ConfigError
from mixerzoo.train.recipe import Recipe
from mixerzoo.train.sam import Sam

SAM = Recipe(sam_rho=0.3)
GSAM = Recipe(sam_rho=0.3, gsam_alpha=0.7)


class Quadratic:
    """f(w) = w' A w / 2 - b' w, the vector w cut into parameters of several shapes; its gradient is A w - b."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        root = normal(9, 9)
        self.A, self.b = root @ root.T, normal(9)
        self.parameters = [nn.Parameter(normal(2, 2)), nn.Parameter(normal(4)), nn.Parameter(normal(1))]

    def vector(self):
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def gradient(self):
        return torch.cat([p.grad.flatten() for p in self.parameters])

    def slope(self, w):
        return self.A @ w - self.b

    def backward(self):
        for p in self.parameters:
            p.grad = None
        w = torch.cat([p.flatten() for p in self.parameters])
        (w @ self.A @ w / 2 - self.b @ w).backward()


def two_passes(problem, recipe, lr_ratio=1.0):
    sam = Sam(problem.parameters, recipe)
    problem.backward()
    sam.climb(lr_ratio)
    problem.backward()
    sam.descend()
    return problem.gradient()


def close(ours, expected):
    return torch.allclose(ours, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_sam_gradient_of_a_quadratic():
    problem = Quadratic()
    w = problem.vector()
    g = problem.slope(w)
    assert close(two_passes(problem, SAM), problem.slope(w + 0.3 * g / g.norm()))
    assert torch.equal(problem.vector(), w)


def test_climb_goes_rho_up_the_gradient():
    problem = Quadratic()
    w = problem.vector()
    sam = Sam(problem.parameters, SAM)
    problem.backward()
    direction = problem.gradient()
    sam.climb(1.0)
    moved = problem.vector() - w
    assert close(moved, 0.3 * direction / direction.norm())


def test_gsam_takes_the_orthogonal_part_away():
    """Algorithm 1 of arXiv 2203.08065: descend g_p, ascend the part of g orthogonal to it."""
    problem = Quadratic()
    w = problem.vector()
    g = problem.slope(w)
    g_p = problem.slope(w + 0.3 * g / g.norm())
    parallel = (g @ g_p) / (g_p @ g_p) * g_p
    result = two_passes(problem, GSAM)
    assert close(result, g_p - 0.7 * (g - parallel))
    assert torch.equal(problem.vector(), w)
    taken = (g_p - result) / 0.7
    assert abs(taken @ g_p) < 1e-12 * taken.norm() * g_p.norm()
    assert taken.norm() > 0.01 * g.norm()  # there is something to be orthogonal
    # the step lowers the gap f(w_p) - f(w), whose slope is g_p - g, more than SAM's does
    assert result @ (g_p - g) > g_p @ (g_p - g)


def test_gsam_without_its_term_is_sam():
    plain, gsam = Quadratic(), Quadratic()
    two_passes(plain, SAM)
    two_passes(gsam, dataclasses.replace(SAM, gsam_alpha=1e-300))
    assert torch.equal(plain.gradient(), gsam.gradient())


@pytest.mark.parametrize(
    ("fields", "ratio", "expected"),
    [
        ({}, 0.0, 0.3),
        ({}, 0.7, 0.3),
        ({"sam_rho_min": 0.1}, 1.0, 0.3),
        ({"sam_rho_min": 0.1}, 0.5, 0.2),
        ({"sam_rho_min": 0.1}, 0.0, 0.1),
        ({"sam_rho_min": 0.1, "min_lr_ratio": 0.2}, 0.6, 0.2),
        ({"sam_rho_min": 0.1, "min_lr_ratio": 0.2}, 0.2, 0.1),
        ({"sam_rho_min": 0.1, "min_lr_ratio": 0.2}, 0.0, 0.1),  # in the warm-up
        ({"sam_rho_min": 0.1, "min_lr_ratio": 1.0}, 1.0, 0.3),
    ],
)
def test_the_radius_follows_the_learning_rate(fields, ratio, expected):
    recipe = dataclasses.replace(SAM, **fields)
    assert Sam([], recipe).radius(ratio) == pytest.approx(expected, rel=1e-12)
    problem = Quadratic()
    w = problem.vector()
    sam = Sam(problem.parameters, recipe)
    problem.backward()
    sam.climb(ratio)
    assert (problem.vector() - w).norm().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"gsam_alpha": 0.5}, "set sam_rho too"), ({"sam_rho": 0.1, "sam_rho_min": 0.2}, "sam_rho_min=0.2")],
)
def test_recipes_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**fields)


def test_no_radius_is_rejected():
    with pytest.raises(ConfigError, match="sam_rho=0"):
        Sam([], Recipe())


@pytest.mark.parametrize("recipe", [SAM, GSAM])
def test_a_zero_gradient_moves_nothing(recipe):
    parameter = nn.Parameter(torch.randn(3))
    before = parameter.detach().clone()
    sam = Sam([parameter], recipe)
    parameter.grad = torch.zeros(3)
    sam.climb(1.0)
    assert torch.equal(parameter, before)
    sam.descend()
    assert torch.equal(parameter, before)
    assert torch.equal(parameter.grad, torch.zeros(3))


def test_a_zero_gradient_after_the_climb_stays_zero():
    parameter = nn.Parameter(torch.ones(3))
    sam = Sam([parameter], GSAM)
    parameter.grad = torch.ones(3)
    sam.climb(1.0)
    parameter.grad = torch.zeros(3)
    sam.descend()
    assert torch.equal(parameter.grad, torch.zeros(3))


@pytest.mark.parametrize("recipe", [SAM, GSAM])
def test_parameters_without_a_gradient_stay(recipe):
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    sam = Sam([used, unused], recipe)
    for _ in range(2):
        (used**2).sum().backward()
        sam.climb(1.0)
        assert torch.equal(unused, torch.ones(3))
        assert not torch.equal(used, torch.ones(3))
        used.grad = None
        (used**2).sum().backward()
        sam.descend()
        assert torch.equal(used, torch.ones(3))
        assert unused.grad is None
    Sam([unused], recipe).climb(1.0)  # nothing at all to climb


@pytest.mark.parametrize("recipe", [SAM, GSAM])
def test_weights_of_a_mixer_come_back_bit_for_bit(recipe):
    torch.manual_seed(0)
    model = mixerzoo.Mixer(
        img_size=16, patch_size=8, embed_dim=8, depth=2, tokens_mlp_dim=4, channels_mlp_dim=16, num_classes=3
    )
    nn.init.normal_(model.head.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sam, images, labels = Sam(model.parameters(), recipe), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        for step in (lambda: sam.climb(1.0), sam.descend):
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images), labels).backward()
            step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_clean_gradients_are_remembered_by_value():
    """DDP writes the second gradients into the memory of the first."""
    fresh, reused = Quadratic(), Quadratic()
    expected = two_passes(fresh, GSAM)
    sam = Sam(reused.parameters, GSAM)
    reused.backward()
    buffers = [p.grad for p in reused.parameters]
    sam.climb(1.0)
    reused.backward()
    for parameter, buffer in zip(reused.parameters, buffers, strict=True):
        parameter.grad = buffer.copy_(parameter.grad)
    sam.descend()
    assert torch.equal(reused.gradient(), expected)


def end_of_the_valley(recipe):
    """Gradient descent on f = (x^2 + 0.1) y^2 / 2: every (x, 0) is a minimum, with curvature x^2 + 0.1."""
    w = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))
    sam = Sam([w], recipe) if recipe else None

    def backward():
        w.grad = None
        ((w[0] ** 2 + 0.1) * w[1] ** 2 / 2).backward()

    for _ in range(2000):
        backward()
        if sam:
            sam.climb(1.0)
            backward()
            sam.descend()
        with torch.no_grad():
            w -= 0.05 * w.grad
    return w.detach()


@pytest.mark.parametrize("recipe", [Recipe(sam_rho=0.3), Recipe(sam_rho=0.3, gsam_alpha=0.1)])
def test_it_finds_the_flattest_of_many_minima(recipe):
    x, y = end_of_the_valley(None)
    assert abs(y) < 0.05
    assert x > 0.8  # descent stops where it arrives
    x, y = end_of_the_valley(recipe)
    assert abs(y) < 0.05
    assert abs(x) < 0.05


SHARDED = textwrap.dedent(
    """
    import sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from mixerzoo.train.recipe import Recipe
    from mixerzoo.train.sam import Sam

    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)).double()

    def gradients(model, recipe, share):
        sam = Sam(model.parameters(), recipe)
        for step in (lambda: sam.climb(0.5), sam.descend):
            model.zero_grad(set_to_none=True)
            model(images[share]).square().mean().backward()
            step()
        whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
        return [whole(p.grad) for p in model.parameters()], [whole(p.detach()) for p in model.parameters()]

    images = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).double()
    for recipe in (Recipe(sam_rho=0.3), Recipe(sam_rho=0.3, sam_rho_min=0.1, gsam_alpha=0.7)):
        expected, weights = gradients(build(), recipe, slice(None))
        model = build()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        ours, back = gradients(model, recipe, slice(4 * rank, 4 * rank + 4))
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert all(torch.equal(one, other) for one, other in zip(back, weights, strict=True))
    dist.destroy_process_group()
    """
)


def test_two_processes_with_shards_do_what_one_does(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [sys.executable, str(script)]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
