"""ImageNet-1k from scratch as in the paper: Mixer-B/16 76.44 % top-1 there; Mixer-L/16 (``--set model=``) 71.76 %.

Tolstikhin et al. 2021 (arXiv 2105.01601), section 3 (Adam, batch 4096, 10,000 steps of linear warm-up, linear decay,
clip at 1) and Table 4 (300 epochs, learning rate 1e-3, weight decay 0.1, RandAugment 15, mixup 0.5, no dropout,
stochastic depth 0.1). The accuracies are the paper's; nobody has measured ours.

The paper leaves open, and this recipe takes from the authors' later big_vision configuration (``imagenet1k_b16``): the
sigmoid loss with a head bias of -6.9 = log(1/1000), two operations of RandAugment, mixup's neighbour and single draw,
stochastic depth that grows over the layers and is not rescaled. The learning rate ends at 0, and the whole training
split is used. RandAugment and resizing deviate as in ``imagenet1k_b16``.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_b16",
    epochs=300,
    batch_size=4096,
    opt="adamw",
    lr=1e-3,
    weight_decay=0.1,
    clip_grad=1.0,
    schedule="linear",
    warmup_steps=10_000,
    loss="sigmoid",
    head_bias=-6.9,
    augmentation=Augmentation(interpolation="bilinear", rand_augment="rand-m15-mmax15-n2-p1"),
    mixup=0.5,
    drop_path_rate=0.1,
    drop_path_rescale=False,
)
