"""Recipes: their definitions, overrides, schedules and optimisers."""

import dataclasses
import importlib
import math

import numpy as np
import pytest
import timm.optim
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import nn

import mixerzoo
from mixerzoo.data.transforms import Augmentation, train_transform
from mixerzoo.errors import ConfigError
from mixerzoo.factory import data_config
from mixerzoo.train.optim import DECOUPLED, make_optimizer, make_scheduler
from mixerzoo.train.recipe import Recipe, get_recipe, list_recipes

RECIPE = Recipe(model="mixer_ti4_32", epochs=3, batch_size=8, warmup_epochs=1.0)

BIG_VISION = {
    "epochs": 300, "steps": 0, "batch_size": 4096, "opt": "adamw", "clip_grad": 1.0, "schedule": "linear",
    "warmup_steps": 10_000, "warmup_epochs": 0.0, "loss": "sigmoid", "pretrained": False, "trainable": "all",
    "cutmix": 0.0, "label_smoothing": 0.0, "ema_decay": 0.0, "gsam_alpha": 0.0,
}  # fmt: skip
TABLE_4 = BIG_VISION | {
    "lr": 1e-3, "weight_decay": 0.1, "decay_rule": "times-lr", "min_lr_ratio": 0.0, "holdout": 0.0,
    "drop_path_rate": 0.1, "drop_path_rescale": False, "sam_rho": 0.0,
}  # fmt: skip
OFFICIAL_FINETUNE = {
    "pretrained": True, "epochs": 0, "batch_size": 512, "opt": "momentum", "momentum": 0.9, "lr": 0.03,
    "weight_decay": 0.0, "clip_grad": 1.0, "schedule": "cosine", "warmup_steps": 500, "min_lr_ratio": 0.0,
    "loss": "softmax", "head_bias": 0.0, "mixup": 0.0, "label_smoothing": 0.0, "drop_path_rate": 0.0,
    "trainable": "all", "augmentation": Augmentation("inception", (0.05, 1.0), hflip=0.5, interpolation="bilinear"),
}  # fmt: skip


def inception(rand_augment=""):
    return Augmentation("inception", (0.05, 1.0), hflip=0.5, interpolation="bilinear", rand_augment=rand_augment)


DEFINITIONS = {
    # big_vision/configs/mlp_mixer_i1k.py
    "imagenet1k_b16": BIG_VISION | {
        "model": "mixer_b16", "lr": 1e-3, "weight_decay": 1e-4, "decay_rule": "independent", "min_lr_ratio": 1e-5,
        "holdout": 0.01, "head_bias": -6.9, "mixup": 0.5, "drop_path_rate": 0.1, "drop_path_rescale": False,
        "sam_rho": 0.0, "augmentation": inception("rand-m15-mmax15-n2-p1"),
    },
    # arXiv 2105.01601, Table 4
    "imagenet1k_paper": TABLE_4 | {
        "model": "mixer_b16", "head_bias": -6.9, "mixup": 0.5, "augmentation": inception("rand-m15-mmax15-n2-p1"),
    },
    "imagenet21k_b16": TABLE_4 | {
        "model": "mixer_b16", "head_bias": -10.0, "mixup": 0.2, "augmentation": inception("rand-m10-n2-p1"),
    },
    "imagenet21k_l16": TABLE_4 | {
        "model": "mixer_l16", "head_bias": -10.0, "mixup": 0.5, "augmentation": inception("rand-m20-mmax20-n2-p1"),
    },
    # vit_jax/configs/common.py, vit_jax/train.py
    "finetune": OFFICIAL_FINETUNE | {"model": "mixer_b16.goog_in21k", "steps": 10_000, "img_size": 0},
    "finetune_highres": OFFICIAL_FINETUNE | {
        "model": "mixer_l16.goog_in21k", "steps": 20_000, "img_size": 448, "resize": "tile",
    },
    "linear_probe": {"pretrained": True, "trainable": "head", "weight_decay": 0.0, "head_bias": 0.0},
    # big_vision/configs/proj/gsam/vit_i1k_gsam_no_aug.py
    "sam": BIG_VISION | {
        "model": "mixer_b16", "lr": 3e-3, "weight_decay": 0.3, "decay_rule": "times-lr", "min_lr_ratio": 0.01,
        "holdout": 0.01, "head_bias": -10.0, "mixup": 0.0, "drop_path_rate": 0.0, "sam_rho": 0.6, "sam_rho_min": 0.0,
        "augmentation": inception(),
    },
    "cifar10_scratch": {"model": "mixer_ti4_32", "pretrained": False},
}  # fmt: skip


def small_model(num_classes=2, **kwargs):
    torch.manual_seed(0)
    return mixerzoo.Mixer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, tokens_mlp_dim=8, channels_mlp_dim=32,
        num_classes=num_classes, **kwargs,
    )  # fmt: skip


def test_every_recipe_is_what_its_source_says():
    assert list_recipes() == sorted(DEFINITIONS)
    for name, definition in DEFINITIONS.items():
        recipe = get_recipe(name)
        for field, value in definition.items():
            assert getattr(recipe, field) == value, (name, field)
        assert mixerzoo.is_model(recipe.model), name


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_every_recipe_can_be_run(name):
    recipe = get_recipe(name)
    assert len(importlib.import_module(f"mixerzoo.train.recipes.{name}").__doc__.splitlines()[0]) > 40
    model = small_model()
    optimizer = make_optimizer(model, recipe)
    total, warmup = recipe.total_steps(1_281_167), recipe.total_warmup_steps(1_281_167)
    assert 0 <= warmup < total
    make_scheduler(optimizer, recipe, total, warmup).step_update(warmup)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(recipe.lr)
    crop = train_transform(data_config(mixerzoo.create_model("mixer_b16", device="meta")), recipe.augmentation)
    assert crop(Image.new("RGB", (300, 250))).shape == (3, 224, 224)


def test_unknown_recipes_list_near_misses():
    with pytest.raises(ConfigError, match="Did you mean 'cifar10_scratch'"):
        get_recipe("cifar10")
    with pytest.raises(ConfigError, match="Did you mean 'imagenet1k_b16'"):
        get_recipe("imagenet1k_b32")


def test_steps_of_imagenet():
    recipe = get_recipe("imagenet1k_b16")
    kept = 1_281_167 - round(0.01 * 1_281_167)
    assert recipe.total_steps(kept) == 300 * 309
    assert recipe.total_warmup_steps(kept) == 10_000
    assert get_recipe("finetune").total_steps(50_000) == 10_000


def test_imagenet_crops_are_in_minus_one_to_one():
    recipe = get_recipe("imagenet1k_b16")
    transform = train_transform(data_config(mixerzoo.create_model("mixer_b16", device="meta")), recipe.augmentation)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8))
    extremes = []
    for _ in range(30):
        tensor = transform(image)
        assert tensor.shape == (3, 224, 224)
        extremes += [tensor.min().item(), tensor.max().item()]
    assert min(extremes) == -1.0
    assert max(extremes) == 1.0


@pytest.mark.parametrize(
    ("name", "magnitude"),
    [("imagenet1k_b16", 15), ("imagenet1k_paper", 15), ("imagenet21k_b16", 10), ("imagenet21k_l16", 20)],
)
def test_rand_augment_is_big_visions(name, magnitude):
    """Two operations that are always applied, as strong as the original's, and a bilinear crop of 5 to 100 %."""
    preprocessing = data_config(mixerzoo.create_model("mixer_b16", device="meta"))
    steps = train_transform(preprocessing, get_recipe(name).augmentation).transforms
    (randaug,) = [step for step in steps if isinstance(step, RandAugment)]
    assert randaug.num_layers == 2
    operations = {operation.name: operation for operation in randaug.ops}
    assert len(operations) == 15
    arguments = {}
    for key, operation in operations.items():
        assert operation.prob == 1.0
        assert operation.magnitude_std == 0
        assert min(operation.magnitude, operation.magnitude_max or 10) == magnitude
        if operation.level_fn:
            (arguments[key],) = map(abs, operation.level_fn(operation.magnitude, operation.hparams))
    # big_vision/pp/autoaugment.py, level_to_arg
    for key in ("Color", "Contrast", "Brightness", "Sharpness"):
        assert arguments[key] == pytest.approx(magnitude / 10 * 1.8 + 0.1)
    assert arguments["Rotate"] == pytest.approx(magnitude / 10 * 30)
    assert arguments["ShearX"] == arguments["ShearY"] == pytest.approx(magnitude / 10 * 0.3)
    assert arguments["Posterize"] == int(magnitude / 10 * 4)
    assert arguments["TranslateXRel"] * 224 == pytest.approx(magnitude / 10 * 100, rel=0.01)
    assert arguments["Solarize"] == min(int(magnitude / 10 * 256), 256)
    assert arguments["SolarizeAdd"] == min(int(magnitude / 10 * 110), 128)
    assert operations["Rotate"].kwargs["fillcolor"] == (128, 128, 128)
    (crop,) = [step for step in steps if isinstance(step, RandomResizedCropAndInterpolation)]
    assert crop.scale == (0.05, 1.0)
    assert crop.ratio == (3 / 4, 4 / 3)
    assert str(crop.interpolation) == "bilinear" or crop.interpolation.value == "bilinear"


def test_interpolation_is_the_models_unless_given():
    preprocessing = data_config(mixerzoo.create_model("mixer_b16", device="meta")) | {"input_size": (3, 16, 16)}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for crop in ("pad", "inception"):
        plain = Augmentation(crop, (1.0, 1.0), pad=0, hflip=0.0)
        tensors = []
        for augmentation in (plain, *(dataclasses.replace(plain, interpolation=x) for x in ("bicubic", "bilinear"))):
            torch.manual_seed(0)
            tensors.append(train_transform(preprocessing, augmentation)(image))
        assert torch.equal(tensors[0], tensors[1])
        assert not torch.equal(tensors[0], tensors[2])
    with pytest.raises(ConfigError, match="interpolation='cubic'"):
        Augmentation(interpolation="cubic")


def test_overrides():
    recipe = RECIPE.override(["lr=3e-4", "epochs=7", "augmentation.pad=2", "augmentation.crop_area=0.1,0.9", "opt=sgd"])
    assert (recipe.lr, recipe.epochs, recipe.opt) == (3e-4, 7, "sgd")
    assert recipe.augmentation.pad == 2
    assert recipe.augmentation.crop_area == (0.1, 0.9)
    assert RECIPE.lr == 1e-3  # the original is untouched
    longer = RECIPE.override(["warmup_epochs=5", "epochs=9"])  # checked together, not one after the other
    assert (longer.warmup_epochs, longer.epochs) == (5.0, 9)


def test_durations_replace_each_other():
    short = RECIPE.override(["steps=100", "warmup_steps=5"])
    assert (short.epochs, short.steps, short.warmup_epochs, short.warmup_steps) == (0, 100, 0.0, 5)
    assert short.override(["epochs=2"]).steps == 0
    gsam = get_recipe("sam").override(["gsam_alpha=0.6", "sam_rho_min=0.1"])
    assert (gsam.sam_rho, gsam.gsam_alpha, gsam.sam_rho_min) == (0.6, 0.6, 0.1)
    assert RECIPE.override(["augmentation.interpolation=bilinear"]).augmentation.interpolation == "bilinear"
    assert RECIPE.override(["drop_path_rescale=false"]).drop_path_rescale is False


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lrr=1", "no field 'lrr'. Did you mean 'lr'"),
        ("warmup=1", "Did you mean 'warmup_"),
        ("lr", "field=value"),
        ("lr=fast", "lr='fast': expected a value like"),
        ("epochs=2.5", "epochs='2.5'"),
        ("epochs=0", "epochs=0"),
        ("augmentation.padd=1", "no field 'augmentation.padd'"),
        ("augmentation.crop_area=1", "crop_area"),
        ("augmentation=x", "no field 'augmentation'"),
        ("schedule=step", "schedule='step'"),
        ("loss=hinge", "loss='hinge'"),
        ("decay_rule=coupled", "decay_rule='coupled'"),
        ("trainable=stem", "trainable='stem'"),
        ("resize=crop", "resize='crop'"),
        ("label_smoothing=1.5", "label_smoothing"),
        ("holdout=1", "holdout=1"),
        ("max_corrupt=2", "max_corrupt=2"),
        ("min_lr_ratio=-1", "min_lr_ratio=-1"),
        ("warmup_epochs=99", "longer than the run"),
        ("lr=nan", "lr=nan"),
        ("pretrained=maybe", "pretrained='maybe'"),
        ("gsam_alpha=0.5", "set sam_rho too"),
        ("sam_rho_min=0.5", "sam_rho_min=0.5"),
        ("augmentation.rand_augment=garbage", "not timm's notation"),
        ("augmentation.crop=centre", "augmentation.crop='centre'"),
    ],
)
def test_bad_overrides_are_named(setting, message):
    with pytest.raises(ConfigError) as caught:
        RECIPE.override([setting])
    assert message in str(caught.value)


def test_fields_that_exclude_each_other():
    with pytest.raises(ConfigError, match="the other must be 0"):
        dataclasses.replace(RECIPE, steps=10)
    with pytest.raises(ConfigError, match="exclude each other"):
        dataclasses.replace(RECIPE, warmup_steps=10)
    with pytest.raises(ConfigError, match="longer than the run"):
        Recipe(epochs=0, steps=5, warmup_steps=6)
    with pytest.raises(ConfigError, match="learning rate above 0"):
        Recipe(lr=0.0, decay_rule="independent")


def rates(recipe, total, warmup, steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=recipe.lr)
    scheduler = make_scheduler(optimizer, recipe, total, warmup)
    found = []
    for step in steps:
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


COS_1_8, COS_1_4 = 0.5 * (1 + math.cos(math.pi / 8)), 0.5 * (1 + math.cos(math.pi / 4))


@pytest.mark.parametrize(
    ("schedule", "ratio", "warmup", "expected"),
    [  # as fractions of the peak, by hand, at chosen steps of 90
        ("linear", 0.0, 10, {0: 0.0, 1: 0.1, 9: 0.9, 10: 1.0, 30: 0.75, 50: 0.5, 89: 1 / 80, 90: 0.0}),
        ("linear", 0.2, 10, {0: 0.0, 5: 0.5, 10: 1.0, 50: 0.6, 90: 0.2}),
        ("linear", 0.0, 0, {0: 1.0, 9: 0.9, 45: 0.5, 89: 1 / 90, 90: 0.0}),
        ("cosine", 0.0, 10, {0: 0.0, 5: 0.5, 10: 1.0, 20: COS_1_8, 30: COS_1_4, 50: 0.5, 90: 0.0}),
        ("cosine", 0.2, 10, {0: 0.0, 10: 1.0, 30: 0.2 + 0.8 * COS_1_4, 50: 0.6, 90: 0.2}),
        ("cosine", 0.0, 0, {0: 1.0, 30: 0.75, 45: 0.5, 60: 0.25, 90: 0.0}),
        ("constant", 0.0, 10, {0: 0.0, 5: 0.5, 10: 1.0, 50: 1.0, 89: 1.0, 90: 1.0}),
        ("constant", 0.2, 0, {0: 1.0, 45: 1.0, 90: 1.0}),
    ],
)
def test_schedules_by_hand(schedule, ratio, warmup, expected):
    recipe = Recipe(lr=4e-3, schedule=schedule, min_lr_ratio=ratio)
    found = rates(recipe, 90, warmup, expected)
    assert [rate / 4e-3 for rate in found] == pytest.approx(list(expected.values()), rel=1e-12, abs=1e-15)


def test_the_schedule_of_imagenet1k_b16():
    """big_vision: (1e-5 + (1 - 1e-5) (1 - progress)) min(1, step / 10,000), times the rate."""
    recipe, total = get_recipe("imagenet1k_b16"), 92_700
    steps = [0, 1, 5_000, 9_999, 10_000, 10_001, 51_350, 92_699, 92_700]
    progress = np.clip((np.array(steps) - 10_000) / (total - 10_000), 0, 1)
    expected = 1e-3 * (1e-5 + (1 - 1e-5) * (1 - progress)) * np.minimum(1, np.array(steps) / 10_000)
    assert rates(recipe, total, 10_000, steps) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-18)
    assert expected[6] == pytest.approx(5.00005e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_may_be_all_warm_up(schedule):
    assert rates(Recipe(lr=1.0, schedule=schedule), 4, 4, range(4)) == pytest.approx([0, 0.25, 0.5, 0.75])
    with pytest.raises(ConfigError, match="warm-up of 5 steps is longer than the run of 4"):
        rates(Recipe(lr=1.0, schedule=schedule), 4, 5, range(4))


def test_only_kernels_decay():
    model = small_model()
    groups = make_optimizer(model, RECIPE).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    with pytest.raises(ConfigError, match="opt='adamm'"):
        make_optimizer(model, dataclasses.replace(RECIPE, opt="adamm"))


@pytest.mark.parametrize("opt", [name for name in DECOUPLED if name in timm.optim.list_optimizers()])
def test_independent_decay_takes_its_share_whatever_the_rate(opt):
    """With zero gradients a step takes weight_decay times the schedule's factor of kernels, and nothing of the rest."""
    model = small_model().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    recipe = dataclasses.replace(
        RECIPE, opt=opt, lr=0.01, weight_decay=0.2, decay_rule="independent", schedule="linear", warmup_epochs=0.0
    )
    optimizer = make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, total_steps=4, warmup_steps=0)
    for step, factor in enumerate([1.0, 0.75, 0.5, 0.25]):
        scheduler.step_update(step)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            kept = 1 - 0.2 * factor if parameter.ndim > 1 else 1.0
            torch.testing.assert_close(parameter.detach(), kept * before[name], rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("opt", ["sgd", "momentum", "adam", "lookahead_adamw"])
def test_independent_decay_needs_a_decoupled_optimiser(opt):
    recipe = dataclasses.replace(RECIPE, opt=opt, decay_rule="independent")
    with pytest.raises(ConfigError, match=rf"opt='{opt}' does not: use one of adamw"):
        make_optimizer(small_model(), recipe)
    make_optimizer(small_model(), dataclasses.replace(recipe, weight_decay=0.0))  # nothing to be independent


def test_momentum_is_classical():
    """The official fine-tuning has no Nesterov step: v = 0.9 v + g, w = w - lr v."""
    model = nn.Linear(1, 1, bias=False).double()
    optimizer, start = make_optimizer(model, get_recipe("finetune")), model.weight.item()
    for gradient in (1.0, 2.0):
        model.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
    assert model.weight.item() == pytest.approx(start - 0.03 * 1.0 - 0.03 * (0.9 + 2.0), rel=1e-12)


def test_a_linear_probe_trains_the_head_alone():
    recipe = get_recipe("linear_probe")
    for frozen in (False, True):
        model = small_model()
        if frozen:
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        found = {id(p) for group in make_optimizer(model, recipe).param_groups for p in group["params"]}
        assert found == {id(p) for p in model.head.parameters()}
    with pytest.raises(ConfigError, match="trainable='head'"):
        make_optimizer(small_model(num_classes=0), recipe)
