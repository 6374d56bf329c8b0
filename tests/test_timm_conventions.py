"""What timm's own model tests ask of every model, asked of ours (TorchScript excepted)."""

import pytest
import timm
import torch
from helpers import randomise
from timm.models._features import FeatureGetterNet
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import mixerzoo
from mixerzoo.config import PRESETS

SMALL = ["mixer_ti4_32", "mixer_s32"]  # the same class builds every variant; these are quick


def build(name, **kwargs):
    return timm.create_model(name, **kwargs)


def images_for(model, n=1):
    return torch.randn(n, *model.pretrained_cfg["input_size"])


@pytest.mark.parametrize("name", SMALL)
def test_forward(name):
    model = randomise(build(name)).eval()
    outputs = model(images_for(model, n=2))
    assert outputs.shape == (2, model.num_classes)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_backward_reaches_every_parameter(name):
    model = randomise(build(name, num_classes=42)).train()
    outputs = model(images_for(model))
    assert outputs.shape == (1, 42)
    outputs.mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    assert sum(p.grad.count_nonzero() > 0 for p in model.parameters()) > 0


@pytest.mark.parametrize("name", PRESETS)
def test_default_configuration(name):
    model = build(name, device="meta")
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (3, *PRESETS[name].image_hw)
    assert cfg["fixed_input_size"]
    assert isinstance(model.get_submodule(cfg["classifier"]), nn.Linear)
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert cfg["num_classes"] == model.num_classes == model.get_classifier().out_features
    assert isinstance(model.no_weight_decay(), set)


@pytest.mark.parametrize("name", SMALL)
def test_heads(name):
    """Features, pre-logits and logits agree, with the head taken off, put back and left out from the start."""
    model = randomise(build(name)).eval()
    images = images_for(model, n=2)
    with torch.no_grad():
        tokens = model.forward_features(images)
        pooled = model.forward_head(tokens, pre_logits=True)
        logits = model(images)
        assert tokens.shape == (2, model.config.num_tokens, model.num_features)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.head(pooled), logits)
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity)
        assert model.num_classes == 0
        assert torch.equal(model(images), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(images), tokens)
        model.reset_classifier(7, "avg")
        assert model(images).shape == (2, 7)
        headless = build(name, num_classes=0).eval()
        headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
        assert torch.equal(headless(images), pooled)


@pytest.mark.parametrize("name", SMALL)
def test_intermediates(name):
    model = randomise(build(name)).eval()
    images = images_for(model)
    rows, columns = model.config.grid_size
    with torch.no_grad():
        final, maps = model.forward_intermediates(images)
        assert torch.equal(final, model.forward_features(images))
        assert len(maps) == len(model.feature_info) == model.config.depth
        for info, feature_map in zip(model.feature_info, maps, strict=True):
            assert feature_map.shape == (1, info["num_chs"], rows, columns)
            assert info["reduction"] * rows <= images.shape[-2]
        _, last_two = model.forward_intermediates(images, indices=2)
        assert torch.equal(last_two[1], maps[-1])
        ran = []
        hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(model.blocks)]
        model.forward_intermediates(images, indices=[0, 2], stop_early=True)
        assert ran == [0, 1, 2]
        for hook in hooks:
            hook.remove()
        only = model.forward_intermediates(images, indices=[0, -1], intermediates_only=True, stop_early=True)
        assert torch.equal(only[0], maps[0])
        assert torch.equal(only[1], maps[-1])
        _, tokens = model.forward_intermediates(images, output_fmt="NLC", norm=True)
        assert torch.equal(tokens[-1], final)
        as_tokens = model.forward_intermediates(images, indices=1, output_fmt="NLC", intermediates_only=True)[0]
        assert torch.equal(as_tokens.transpose(1, 2).reshape(maps[-1].shape), maps[-1])
    for wrong in ([99], [-99], 0, 99, []):
        with pytest.raises(mixerzoo.MixerzooError, match="indices"):
            model.forward_intermediates(images, indices=wrong)
    with pytest.raises(mixerzoo.MixerzooError, match="output_fmt"):
        model.forward_intermediates(images, output_fmt="NHWC")


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name):
    torch.manual_seed(3)
    model = build(name, features_only=True, out_indices=(1, 3)).eval()
    assert isinstance(model, FeatureGetterNet)
    assert list(model.feature_info.out_indices) == [1, 3]
    images = torch.randn(1, 3, *PRESETS[name].image_hw)
    with torch.no_grad():
        outputs = model(images)
    for output, channels, reduction in zip(
        outputs, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert output.shape == (1, channels, images.shape[-2] // reduction, images.shape[-1] // reduction)
    assert len(model.model.blocks) == model.model.config.depth == 4  # what is not needed is dropped
    assert isinstance(model.model.norm, nn.Identity)
    assert "classifier" not in model.pretrained_cfg


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:.*nodes obtained by tracing.*:UserWarning")
def test_fx(name):
    model = randomise(build(name)).eval()
    images = images_for(model)
    train_nodes, eval_nodes = get_graph_node_names(model)
    assert train_nodes
    extractor = create_feature_extractor(
        model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]]
    ).eval()
    with torch.no_grad():
        assert torch.equal(next(iter(extractor(images).values())), model(images))
    graph = torch.fx.symbolic_trace(model.train())
    graph(images).mean().backward()
    assert all(p.grad is not None for p in graph.parameters())


def test_groups_for_layer_decay_cover_every_parameter_once():
    model = build("mixer_ti4_32")
    groups = timm.models.group_parameters(model, model.group_matcher())
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(n for n, _ in model.named_parameters())
    assert len(groups) == 1 + model.config.depth + 1  # stem, each layer, head (with the final norm)
    first_block = next(i for i, names in groups.items() if "blocks.0.norm1.weight" in names)
    assert all(name.startswith("blocks.0.") for name in groups[first_block])


def test_registered_without_disturbing_timms_own():
    assert set(timm.list_models(module="timm_registry")) == set(PRESETS)
    assert timm.is_model("mixer_b16_224")
    assert type(timm.create_model("mixer_b16_224", device="meta")).__module__ == "timm.models.mlp_mixer"
    assert isinstance(timm.create_model("mixer_b16", device="meta"), mixerzoo.Mixer)


def test_timm_create_model_takes_tag_and_flavour():
    assert timm.create_model("mixer_b16", device="meta").config.act == "tanh"
    model = timm.create_model("mixer_b16.miil_in21k", device="meta")
    assert model.config.act == "erf"
    assert model.num_classes == 11221
    assert model.pretrained_cfg["mean"] == (0.0, 0.0, 0.0)


def test_timm_create_model_resolves_wrong_labels_too():
    with pytest.warns(UserWarning, match=r"wrong label and means mixer_b16\.goog_in1k"):
        model = timm.create_model("mixer_b16.goog_in21k_ft_in1k", device="meta")
    assert model.pretrained_cfg["tag"] == "goog_in1k"


def test_timm_create_model_names_the_variants_with_weights():
    with pytest.raises(mixerzoo.MixerzooError, match=r"mixer_h14; variants that have some: .*mixer_b16"):
        timm.create_model("mixer_h14", pretrained=True)


def test_timm_create_model_loads_the_built_in_weights():
    ours = mixerzoo.create_model("mixer_ti4_32", pretrained=True).eval()
    theirs = timm.create_model("mixer_ti4_32", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
