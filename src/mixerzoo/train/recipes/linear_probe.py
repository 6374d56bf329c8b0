"""A linear classifier on the frozen features of Mixer-B/16, by gradient descent: no published result to compare with.

Only the head is trained, from zeros, on flipped crops of at least a quarter of the area. The choice is this project's
and was not tuned. The paper's linear few-shot numbers have another definition (least squares in closed form on few
images a class), which ``mixerzoo evaluate`` computes.
"""

from mixerzoo.data.transforms import Augmentation
from mixerzoo.train.recipe import Recipe

RECIPE = Recipe(
    model="mixer_b16.goog_in21k",
    pretrained=True,
    trainable="head",
    epochs=10,
    batch_size=512,
    opt="adamw",
    lr=1e-3,
    weight_decay=0.0,
    clip_grad=0.0,
    schedule="cosine",
    augmentation=Augmentation(crop_area=(0.25, 1.0)),
)
