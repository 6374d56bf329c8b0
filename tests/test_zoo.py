"""The rows of the zoo against what is known of the released checkpoints."""

import pytest

import mixerzoo
from mixerzoo.config import PRESETS
from mixerzoo.zoo import DEFAULT_TAGS, MISLABELLED, TIMM_VARIANTS, VARIANTS, WEIGHTS

BUCKET = "https://storage.googleapis.com/mixer_models"

# tag: GELU, classes, official file, Hub repository
RELEASED = {
    "mixer_b16.goog_in1k": ("tanh", 1000, "imagenet1k/Mixer-B_16", "timm/mixer_b16_224.goog_in21k_ft_in1k"),
    "mixer_l16.goog_in1k": ("tanh", 1000, "imagenet1k/Mixer-L_16", "timm/mixer_l16_224.goog_in21k_ft_in1k"),
    "mixer_b16.goog_in21k": ("tanh", 21843, "imagenet21k/Mixer-B_16", "timm/mixer_b16_224.goog_in21k"),
    "mixer_l16.goog_in21k": ("tanh", 21843, "imagenet21k/Mixer-L_16", "timm/mixer_l16_224.goog_in21k"),
    "mixer_b16.sam_in1k": ("tanh", 1000, "sam/Mixer-B_16", None),
    "mixer_b32.sam_in1k": ("tanh", 1000, "sam/Mixer-B_32", None),
    "mixer_b16.gsam_in1k": ("tanh", 1000, "gsam/Mixer-B_16", None),
    "mixer_b32.gsam_in1k": ("tanh", 1000, "gsam/Mixer-B_32", None),
    "mixer_s16.gsam_in1k": ("tanh", 1000, "gsam/Mixer-S_16", None),
    "mixer_s32.gsam_in1k": ("tanh", 1000, "gsam/Mixer-S_32", None),
    "mixer_s8.gsam_in1k": ("tanh", 1000, "gsam/Mixer-S_8", None),
    "mixer_b16.miil_in21k_ft_in1k": ("erf", 1000, None, "timm/mixer_b16_224.miil_in21k_ft_in1k"),
    "mixer_b16.miil_in21k": ("erf", 11221, None, "timm/mixer_b16_224.miil_in21k"),
}


def test_thirteen_released_tags_and_our_own():
    assert set(WEIGHTS) == set(RELEASED) | {"mixer_ti4_32.cifar10"}


@pytest.mark.parametrize("name", RELEASED)
def test_released_tag(name):
    act, classes, official, hub_id = RELEASED[name]
    row = WEIGHTS[name]
    assert (row.act, row.num_classes, row.hub_id) == (act, classes, hub_id)
    assert row.npz_url == (f"{BUCKET}/{official}.npz" if official else None)
    assert row.license == "apache-2.0"
    assert row.description
    google = act == "tanh"
    assert row.mean == ((0.5,) * 3 if google else (0.0,) * 3)
    assert row.std == ((0.5,) * 3 if google else (1.0,) * 3)
    assert row.interpolation == ("bicubic" if google else "bilinear")
    assert row.crop_pct == 0.875
    # ... and it reaches the model and its preprocessing
    model = mixerzoo.create_model(name, device="meta")
    assert (model.config.act, model.num_classes) == (act, classes)
    cfg = model.pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["interpolation"]) == (row.mean, row.std, row.interpolation)
    assert cfg["tag"] == row.tag
    assert len(mixerzoo.labels(name)) == classes


def test_defaults_and_aliases_exist():
    assert DEFAULT_TAGS["mixer_b16"] == "goog_in1k"
    assert set(VARIANTS) == set(PRESETS)
    for variant, tag in DEFAULT_TAGS.items():
        assert f"{variant}.{tag}" in WEIGHTS
        assert mixerzoo.get_pretrained_cfg(variant).tag == tag
    assert set(DEFAULT_TAGS) == {row.variant for row in WEIGHTS.values()}
    for wrong, right in MISLABELLED.items():
        assert wrong not in WEIGHTS
        assert right in WEIGHTS
    assert set(TIMM_VARIANTS.values()) < set(VARIANTS)


def test_every_score_has_a_source():
    for row in WEIGHTS.values():
        for score in row.scores:
            assert score.source, row.name
            assert 0.0 < score.percent <= 100.0, row.name
    top1 = {(s.percent, s.source[:4]) for s in WEIGHTS["mixer_b16.goog_in1k"].scores if s.metric == "ImageNet top-1"}
    assert top1 == {(76.44, "Tols"), (76.616, "timm")}
    assert not WEIGHTS["mixer_b16.gsam_in1k"].scores  # not at hand: left empty


@pytest.mark.parametrize("row", WEIGHTS.values(), ids=WEIGHTS)
def test_the_documentation_lists_every_tag_as_it_is(root, row):
    lines = (root / "docs" / "weights.md").read_text().splitlines()
    (described,) = [line for line in lines if line.startswith(f"| `{row.name}`") and line.count("|") == 7]
    cells = [cell.strip() for cell in described.strip("|").split("|")]
    for source in (row.npz_url, row.hub_id):
        assert source is None or source in cells[1]
    assert cells[2:] == [str(row.num_classes), row.act, f"{row.mean[0]:g}, {row.std[0]:g}", row.license]
    assert ("(default)" in cells[0]) == (DEFAULT_TAGS[row.variant] == row.tag)
    for score in row.scores:
        assert f"| `{row.name}` | {score.metric} | {score.percent:g} | {score.source} |" in lines
    if not row.scores:
        assert f"| `{row.name}` | | | none known to us |" in lines
