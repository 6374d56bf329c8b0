"""Pre-training of Mixer-L/16 on ImageNet-21k as in the paper: 82.89 % top-1 on ImageNet-1k after fine-tuning there.

Tolstikhin et al. 2021 (arXiv 2105.01601), section 3 (Adam, batch 4096, 10,000 steps of linear warm-up, linear decay,
clip at 1) and Table 4 (300 epochs, learning rate 1e-3, weight decay 0.1, RandAugment 20, mixup 0.5, no dropout,
stochastic depth 0.1). The accuracy is the paper's, fine-tuned and tested at 224 pixels; nobody has measured ours.

The paper leaves open: the loss (here sigmoid, as the authors have for ImageNet-1k, with a head bias of -10 =
log(1/21843)), the last learning rate (here 0), and what big_vision settles for ImageNet-1k, see ``imagenet1k_paper``.
RandAugment and resizing deviate as in ``imagenet1k_b16``. The released weights have 21,843 classes, one output each;
an image folder or shards with other classes get a head of their own size.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_l16",
    epochs=300,
    batch_size=4096,
    opt="adamw",
    lr=1e-3,
    weight_decay=0.1,
    clip_grad=1.0,
    schedule="linear",
    warmup_steps=10_000,
    loss="sigmoid",
    head_bias=-10.0,
    augmentation=Augmentation(interpolation="bilinear", rand_augment="rand-m20-mmax20-n2-p1"),
    mixup=0.5,
    drop_path_rate=0.1,
    drop_path_rescale=False,
)
