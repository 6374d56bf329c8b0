"""torch.hub.load from a checkout."""

import pytest
import torch

import mixerzoo
from mixerzoo.config import PRESETS


def load(root, name, **kwargs):
    return torch.hub.load(str(root), name, source="local", trust_repo=True, **kwargs)


@pytest.mark.parametrize("name", PRESETS)
def test_every_variant(root, name):
    model = load(root, name, device="meta")
    assert isinstance(model, mixerzoo.Mixer)
    assert model.pretrained_cfg["architecture"] == name


def test_weights_and_arguments(root):
    model = load(root, "mixer_ti4_32", pretrained=True, num_classes=0).eval()
    ours = mixerzoo.create_model("mixer_ti4_32", pretrained=True, num_classes=0).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), ours(images))
