"""Fine-tuning of Mixer-L/16 at 448 pixels with tiled token-mixing weights: 83.91 % top-1 on ImageNet-1k in the paper.

Tolstikhin et al. 2021 (arXiv 2105.01601), pre-trained on ImageNet-21k, and appendix C: the image is 2 x 2 tiles of the
size that the weights know, each with a copy of the token-mixing weights; the hidden width grows with them, and the
model starts as the mean over the tiles. The accuracy is the paper's; nobody has measured ours.

The paper says SGD with momentum, batch 512, clip at 1, a cosine with linear warm-up and no weight decay. Learning rate,
steps and warm-up are those of the official fine-tuning of ImageNet (google-research/vision_transformer,
``vit_jax/configs/common.py``: 0.03, 20,000, 500); what the paper used at 448 pixels is not stated. Other deviations:
those of ``finetune``. ``--set img_size=`` takes any multiple of 224; other sizes need ``--set resize=interpolate``.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_l16.goog_in21k",
    pretrained=True,
    img_size=448,
    resize="tile",
    epochs=0,
    steps=20_000,
    batch_size=512,
    opt="momentum",
    lr=0.03,
    weight_decay=0.0,
    momentum=0.9,
    clip_grad=1.0,
    schedule="cosine",
    warmup_steps=500,
    augmentation=Augmentation(interpolation="bilinear"),
)
