"""ImageNet-1k from scratch with Mixer-B/16 at 224 pixels, big_vision's recipe: 76.3 % top-1 there, 70.5 % in 60 epochs.

The numbers are those that ``big_vision/configs/mlp_mixer_i1k.py`` (google-research/big_vision) states for its own
TPU run; nobody has measured ours. Definitions: that file, and ``big_vision/{utils,optax}.py`` and
``big_vision/pp/{ops_image,autoaugment}.py`` for schedule, update, crop and RandAugment.

Exact: model, initialisation, stochastic depth (0 to 0.1 over the layers, not rescaled), loss, head bias, batch, mixup
(one draw a step, the neighbour in the batch), Adam, clip, warm-up and linear decay, weight decay on kernels of 1e-4 of
the weights times the schedule. Deviations:

- RandAugment is timm's on Pillow, with the original's magnitudes and two operations that are always applied (the
  probability of 0.2 to 0.8 that the original draws has no effect there). Of its sixteen operations cutout is missing (a
  grey square of 120 pixels); SolarizeAdd adds 128 for 165, Solarize's threshold is 256 for 384, translations are 151
  pixels for 150, and geometric operations interpolate bilinearly where the original takes the nearest pixel.
- Pillow's bilinear resize averages over the pixels that a shrinking step covers, TensorFlow's did not; aspect ratios
  go up to 4/3 for 1.33.
- 1 % of the training split is held out: of a folder a random part, of shards the last ones; there it is the last 1 %.
- An epoch is 309 whole batches, there 309.7: 92,700 steps for 92,896.
- Accuracy after training is that of the images held out; evaluate the 50,000 validation images afterwards.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_b16",
    epochs=300,
    batch_size=4096,
    holdout=0.01,
    opt="adamw",
    lr=1e-3,
    weight_decay=1e-4,
    decay_rule="independent",
    clip_grad=1.0,
    schedule="linear",
    warmup_steps=10_000,
    min_lr_ratio=1e-5,
    loss="sigmoid",
    head_bias=-6.9,
    augmentation=Augmentation(interpolation="bilinear", rand_augment="rand-m15-mmax15-n2-p1"),
    mixup=0.5,
    drop_path_rate=0.1,
    drop_path_rescale=False,
)
