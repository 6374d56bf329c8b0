"""Fine-tuning of Mixer-B/16 at 224 pixels, the official CIFAR-10 recipe: 96.82 % there from the ImageNet-21k weights.

google-research/vision_transformer (``vit_jax/configs/common.py``, ``vit_jax/train.py``, ``vit_jax/input_pipeline.py``):
10,000 steps of SGD with momentum 0.9 and a batch of 512, learning rate 0.03 with 500 steps of warm-up and a cosine to
0, clip at 1, no weight decay, softmax, a new head of zeros, random crops of 5 to 100 % of the area, flips. Its
accuracies: Mixer-B/16 96.72 from ``mixer_b16.goog_in1k`` and 96.82 from ``mixer_b16.goog_in21k``, Mixer-L/16 96.59 and
98.34. Nobody has measured ours.

Deviations: momentum is kept in float32, there in bfloat16; the whole training split is used, there 98 % of it;
evaluation crops the centre as the weights' own evaluation does, there the image is resized to 224 x 224 whole; Pillow's
resize averages over pixels when it shrinks. Users report that ``goog_in21k`` is unstable in transfer and that
``mixer_b16.miil_in21k`` is not.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_b16.goog_in21k",
    pretrained=True,
    epochs=0,
    steps=10_000,
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
