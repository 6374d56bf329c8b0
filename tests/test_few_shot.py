"""Least squares on frozen features: against NumPy, its own dual form, and what it must not depend on."""

import numpy as np
import pytest
import torch
from helpers import randomise
from training import small_model, write_data

import mixerzoo
from mixerzoo.errors import ConfigError, DataError
from mixerzoo.inference.few_shot import (
    choose_shots,
    evaluate_few_shot,
    few_shot_accuracy,
    fit_least_squares,
)


def task(images=40, channels=12, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(images, channels, generator=generator, dtype=torch.float64)
    return centres[labels] + 0.7 * noise, labels


def by_numpy(features, labels, classes, l2):
    """The normal equations as they are written, solved directly."""
    x = features.numpy()
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    x = np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], axis=1)
    y = np.where(labels.numpy()[:, None] == np.arange(classes), 1.0, -1.0)
    return np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y), mean, std


@pytest.mark.parametrize("l2", [2.0**-10, 1.0, 2.0**10, 2.0**20])
@pytest.mark.parametrize(("images", "channels"), [(40, 12), (8, 30)])
def test_against_numpy(images, channels, l2):
    features, labels = task(images, channels)
    weights, mean, std = by_numpy(features, labels, 4, l2)
    for form in ("primal", "dual", None):
        fitted = fit_least_squares(features, labels, 4, l2=l2, form=form)
        scale = np.abs(weights).max()
        np.testing.assert_allclose(fitted.weights.numpy(), weights, rtol=0, atol=1e-8 * max(scale, 1.0))
    probe = torch.randn(5, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = np.concatenate([(probe.numpy() - mean) / std, np.full((5, 1), 100.0)], axis=1) @ weights
    np.testing.assert_allclose(fitted.scores(probe).numpy(), expected, atol=1e-7)


def test_the_solution_has_no_gradient_left():
    """At the minimum of ``|X W - Y|^2 + l2 |W|^2`` the gradient, by autograd, is zero."""
    features, labels = task()
    fitted = fit_least_squares(features, labels, 4, l2=3.0)
    weights = fitted.weights.clone().requires_grad_()
    x = torch.cat([(features - fitted.mean) / fitted.std, torch.full((40, 1), 100.0, dtype=torch.float64)], dim=1)
    y = 2.0 * torch.nn.functional.one_hot(labels, 4).double() - 1.0
    ((x @ weights - y).square().sum() + 3.0 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-8


def test_what_it_does_not_depend_on():
    """The order of images, the unit and origin of each feature, and (but for their order) the names of the classes."""
    features, labels = task()
    test, _ = task(seed=5)
    scores = fit_least_squares(features, labels, 4).scores(test)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fit_least_squares(features[order], labels[order], 4).scores(test), scores)
    moved = fit_least_squares(1e6 * features + 3.0, labels, 4).scores(1e6 * test + 3.0)
    torch.testing.assert_close(moved, scores, rtol=1e-3, atol=1e-4)  # the deviation's 1e-5 has a unit
    renamed = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(fit_least_squares(features, renamed[labels], 4).scores(test)[:, renamed], scores)
    constant = torch.cat([features, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    padded = fit_least_squares(constant, labels, 4).scores(torch.cat([test, torch.ones(40, 1)], dim=1))
    torch.testing.assert_close(padded, scores)  # a feature that does not vary says nothing


def test_choosing_shots():
    labels = [0] * 30 + [1] * 5 + [2] * 9
    five, three = choose_shots(labels, 3, 5, seed=7), choose_shots(labels, 3, 3, seed=7)
    assert five == choose_shots(labels, 3, 5, seed=7)
    assert five != choose_shots(labels, 3, 5, seed=8)
    for label, (more, fewer) in enumerate(zip(five, three, strict=True)):
        assert len(set(more)) == 5
        assert more[:3] == fewer
        assert all(labels[index] == label for index in more)
    with pytest.raises(DataError, match="Class 1 of the training split has only 5 images; 6 shots"):
        choose_shots(labels, 3, 6, seed=7)
    generator = np.random.default_rng(7)  # one generator, one permutation a class: the official choice
    for label, indices in enumerate(five):
        assert indices == generator.permutation(np.where(np.array(labels) == label)[0])[:5].tolist()


def test_more_shots_are_better_and_equal_the_fit_itself():
    features, labels = task(400)
    test, test_labels = task(400)
    accuracy = few_shot_accuracy(features, labels, test, test_labels, num_classes=4, shots=(1, 5, 25), l2=1.0)
    assert list(accuracy) == [1, 5, 25]
    assert 0.25 < accuracy[1] < accuracy[25]
    rows = torch.tensor([index for own in choose_shots(labels.tolist(), 4, 25, 0) for index in own[:5]])
    scores = fit_least_squares(features[rows], labels[rows], 4, l2=1.0).scores(test)
    assert accuracy[5] == (scores.argmax(dim=1) == test_labels).double().mean().item()
    for wrong in ({"shots": (0,)}, {"l2": 0.0}, {"l2": float("nan")}):
        with pytest.raises(ConfigError):
            few_shot_accuracy(features, labels, test, test_labels, **({"num_classes": 4, "shots": (1,)} | wrong))


def test_a_folder(tmp_path):
    """Red and blue are told apart after one look, whatever the head is; the files that were not chosen are not read."""
    folder, model = write_data(tmp_path / "data"), randomise(small_model()).train()
    found = evaluate_few_shot(model, folder, shots=(1, 4), seeds=(0, 1))
    assert model.training
    assert found.classes == ("blue", "red")
    assert found.num_images == 12
    assert {shots: len(values) for shots, values in found.accuracy.items()} == {1: 2, 4: 2}
    assert found.mean(4) > 0.9
    model.reset_classifier(0)
    assert evaluate_few_shot(model, folder, shots=(1, 4), seeds=(0, 1)) == found
    labels = [0] * 12 + [1] * 12
    used = {index for own in choose_shots(labels, 2, 1, 0) for index in own}
    files = sorted((folder / "train").glob("*/*.png"))
    for index, path in enumerate(files):
        if index not in used:
            path.write_bytes(b"never read")
    assert evaluate_few_shot(model, folder, shots=(1,), seeds=(0,)).accuracy[1] == found.accuracy[1][:1]


def test_a_folder_that_does_not_fit(tmp_path):
    folder, model = write_data(tmp_path / "data"), small_model()
    with pytest.raises(DataError, match="Class blue of the training split has only 12 images; 13 shots"):
        evaluate_few_shot(model, folder, shots=(13,))
    unpooled = mixerzoo.Mixer(img_size=32, embed_dim=8, depth=1, num_classes=0, global_pool="")
    with pytest.raises(ConfigError, match="pools its tokens"):
        evaluate_few_shot(unpooled, folder)
    (folder / "test" / "blue").rename(folder / "test" / "green")
    with pytest.raises(DataError, match="only the training split has blue and only the test split has green"):
        evaluate_few_shot(model, folder)
    (folder / "train").rename(folder / "training")
    with pytest.raises(DataError, match="no folder named train"):
        evaluate_few_shot(model, folder)
