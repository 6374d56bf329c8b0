"""ImageNet-1k from scratch with sharpness-aware minimisation, Mixer-B/16: 77.4 % top-1 in the paper, 66.4 % without.

Chen et al. 2022 (arXiv 2106.01548), the released ``sam_in1k`` weights: inception crops and flips alone, neither
RandAugment nor mixup. The accuracies are the paper's; nobody has measured ours.

The paper's table of hyper-parameters could not be checked. What is here is the one configuration of this family that
is public, big_vision's ``configs/proj/gsam/vit_i1k_gsam_no_aug.py`` (for ViT-B/32; it names SAM as a special case):
batch 4096, 300 epochs, sigmoid loss with a head bias of -10, Adam, clip at 1, learning rate 3e-3 with 10,000 steps of
warm-up and a linear decay to 1 % of the peak, 99 % of the training split, weight decay 0.3 times the learning rate (its
comment on the paper; the file itself has 1e-3 times the schedule), and its largest radius, 0.6. Nothing public
confirms the radius for Mixer-B/16: treat it as a start for a search.

Deviations besides: each worker climbs along its own gradient there, here all climb along that of the global batch
(see ``mixerzoo.train.sam``); crops, the images held out and the length of an epoch as in ``imagenet1k_b16``.

GSAM (arXiv 2203.08065), the ``gsam_in1k`` family: ``--set gsam_alpha=0.6 --set sam_rho_min=0.1``, that file's values.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_b16",
    epochs=300,
    batch_size=4096,
    holdout=0.01,
    opt="adamw",
    lr=3e-3,
    weight_decay=0.3,
    clip_grad=1.0,
    schedule="linear",
    warmup_steps=10_000,
    min_lr_ratio=0.01,
    loss="sigmoid",
    head_bias=-10.0,
    augmentation=Augmentation(interpolation="bilinear"),
    sam_rho=0.6,
)
