"""Which outputs the classes of a dataset are: names, synsets, numbers, and subsets of ImageNet."""

import pytest
import torch
from helpers import TINY, randomise
from PIL import Image
from timm.data import ImageNetInfo

import mixerzoo
from mixerzoo.errors import DataError
from mixerzoo.inference.class_masks import class_mask, imagenet_outputs, synsets
from mixerzoo.inference.evaluate import evaluate_classes, evaluate_folder
from mixerzoo.zoo import CIFAR10_LABELS

SYNSETS = ImageNetInfo("imagenet-1k").label_names()


def tiny(num_classes, **cfg):
    model = mixerzoo.Mixer(**TINY | {"num_classes": num_classes})
    model.pretrained_cfg, model.pretrained_head = cfg | {"num_classes": num_classes}, True
    return model


def imagenet_model():
    return tiny(1000, architecture="mixer_b16", tag="goog_in1k")


def coloured_folder(root, names, colour):
    """One image of 32 pixels a class folder; ``colour`` gives the grey value for each name."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (colour(name),) * 3).save(root / name / "image.png")
    return root


def test_numbered_folders_are_outputs_and_not_places(tmp_path):
    """ImageNet-V2: an image folder sorts 0, 1, 10, 100, ...; class "10" is output 10 all the same."""
    names = [str(i) for i in range(1000)]
    root = coloured_folder(tmp_path / "v2", names, lambda name: int(name) // 4)
    mask = class_mask(imagenet_model(), sorted(names))
    assert mask.outputs == tuple(int(name) for name in sorted(names))
    assert not mask.restricted
    assert "numbers" in mask.how
    found = evaluate_folder(randomise(imagenet_model()).eval(), root)
    assert found.classes[2] == "10"
    assert found.mask.outputs[2] == 10
    expected = sum(int(found.predicted[i]) == int(name) for i, name in enumerate(found.classes))
    assert found.accuracy.top1 == expected / 1000 > 0


def test_a_numbered_class_is_right_where_its_output_is_highest():
    """One image a class, of which a table of scores says its number: all right, or all wrong under text order."""

    class Table(torch.nn.Module):
        num_classes = 12

        def forward(self, x):
            return x

    names = sorted(str(i) for i in range(12))
    scores = torch.eye(12)[[int(name) for name in names]]
    data = torch.utils.data.TensorDataset(scores, torch.arange(12))
    assert evaluate_classes(Table(), data, names).accuracy.top1 == 1.0


def test_the_models_own_names_come_first():
    mask = class_mask(mixerzoo.create_model("mixer_ti4_32", pretrained=True), ["truck", "cat"])
    assert mask.outputs == (9, 3)
    assert mask.titles == CIFAR10_LABELS
    assert class_mask(tiny(3, label_names=["1", "10", "2"]), ["1", "10", "2"]).outputs == (0, 1, 2)
    with pytest.raises(DataError, match=r"1 of the data's 2 classes is none of the model's 10 classes: cow\. Classes"):
        class_mask(mixerzoo.create_model("mixer_ti4_32", pretrained=True), ["cat", "cow"])


@pytest.mark.parametrize(("name", "restricted"), [("imagenet-r", True), ("imagenet-a", True), ("imagenet-1k", False)])
def test_synsets(name, restricted):
    chosen = sorted(synsets(name))
    mask = class_mask(imagenet_model(), chosen)
    assert [SYNSETS[i] for i in mask.outputs] == chosen
    assert mask.restricted is restricted
    assert len(mask.compared()) == len(chosen)
    assert torch.equal(mask.compared()[mask.targets()], torch.tensor(mask.outputs))
    assert class_mask(imagenet_model(), chosen[:-1]).restricted is False
    assert class_mask(imagenet_model(), chosen, restrict=not restricted).restricted is not restricted
    assert mask.titles[0] == "n01440764 tench"


def test_a_restricted_evaluation_never_sees_the_other_classes(tmp_path):
    """ImageNet-R: scores of the 800 other classes are as if they were not there, whatever they are."""
    names = sorted(synsets("imagenet-r"))
    root = coloured_folder(tmp_path / "r", names, lambda name: names.index(name))
    model = randomise(imagenet_model()).eval()
    inside = torch.tensor(class_mask(model, names).outputs)
    outside = torch.ones(1000, dtype=torch.bool)
    outside[inside] = False
    with torch.no_grad():
        model.head.bias[outside] = 1000.0
    found = evaluate_folder(model, root)
    assert found.mask.restricted
    assert set(found.predicted.tolist()) <= set(inside.tolist())
    with torch.no_grad():
        model.head.bias[outside] = -1000.0
    same = evaluate_folder(model, root, restrict=False)
    assert torch.equal(same.predicted, found.predicted)
    assert same.accuracy == found.accuracy
    with torch.no_grad():
        model.head.bias[outside] = 1000.0
    drowned = evaluate_folder(model, root, restrict=False)
    assert drowned.accuracy.top5 == 0.0
    assert not set(drowned.predicted.tolist()) & set(inside.tolist())


def test_models_of_imagenet_21k_know_most_synsets():
    names = ImageNetInfo("imagenet-21k-goog").label_names()
    model = tiny(21843, architecture="mixer_b16", tag="goog_in21k")
    chosen = sorted(synsets("imagenet-r"))
    mask = class_mask(model, chosen)
    assert [names[i] for i in mask.outputs] == chosen
    with pytest.raises(DataError, match=r"ImageNet-1k's classes; this one has 21843, without n04399382\.$"):
        imagenet_outputs(model)
    with pytest.raises(DataError, match=r"ImageNet-1k's classes; this one has 7\.$"):
        imagenet_outputs(tiny(7))


def test_a_model_without_names():
    """Outputs of a known number are ImageNet's; of another, as many classes in sorted order."""
    bare = mixerzoo.Mixer(**TINY | {"num_classes": 1000})
    assert class_mask(bare, ["n01443537"]).outputs == (1,)
    assert imagenet_outputs(bare) == list(range(1000))
    five = mixerzoo.Mixer(**TINY)
    assert class_mask(five, list("abcde")).outputs == (0, 1, 2, 3, 4)
    with pytest.raises(DataError, match=r"4 of the data's 4 classes are none of the model's 5 classes: a, b, c and 1"):
        class_mask(five, list("abcd"))


def test_imagenets_names_by_their_order():
    """Lists of ImageNet's names differ in a few (two classes are named crane); taken as they come, and said so."""
    names = mixerzoo.labels("mixer_b16.goog_in1k")
    assert len(set(names)) < 1000
    for differ in (0, 1, 50):
        given = [f"another {name}" if i >= 1000 - differ else name for i, name in enumerate(names)]
        mask = class_mask(imagenet_model(), given)
        assert mask.outputs == tuple(range(1000))
        assert mask.how == f"in order, {differ} of the names differ"
    given[0] = "a fish"
    for wrong in (given, names[::-1], names[:999]):
        with pytest.raises(DataError, match="none of the model's 1000 classes"):
            class_mask(imagenet_model(), wrong)


def test_a_name_that_two_classes_have_says_nothing():
    names = mixerzoo.labels("mixer_b16.goog_in1k")
    twice = next(name for name in names if names.count(name) > 1) if len(set(names)) < 1000 else None
    model = tiny(3, label_names=["crane", "crane", "dog"])
    assert class_mask(model, ["dog"]).outputs == (2,)
    with pytest.raises(DataError, match="crane"):
        class_mask(model, ["crane"])
    if twice:
        with pytest.raises(DataError, match="none of the model's 1000"):
            class_mask(imagenet_model(), [twice])
