"""Small data sets that are installed with scikit-learn, which is imported only for them."""

from __future__ import annotations

from typing import cast

import ml_collections
import numpy as np

from readers.batches import Images

PATCH_SIZE = 32  # pixels
PATCH_STRIDE = 8  # Pixels between training patches.
HELD_OUT_PERIOD = 128  # Pixels. The last PATCH_SIZE columns of each period are held out.


def digits(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return the UCI ML handwritten digits: 1,797 images of shape 8x8x1 with 17 gray levels.

    Every fifth image is in the split 'test' (359 images), the others are in 'train'. Labels are the
    digits.
    """
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    del config
    data = cast(Bunch, load_digits())  # A tuple is returned only with return_X_y.
    is_test = np.arange(len(data.images)) % 5 == 4
    selected = is_test == (split == "test")
    return Images(data.images[selected].astype(np.uint8)[..., None], data.target[selected])


def photos(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return patches of 32x32x3 from two photographs (427x640 pixels), a temple and a flower.

    Of the 20 tile columns of each photograph every fourth is held out. The split 'test' consists of
    their tiles side by side (130 patches), 'train' of all patches at multiples of 8 pixels that do
    not touch such a column (4,500 patches).
    """
    from sklearn.datasets import load_sample_images

    del config
    size, first_held_out = PATCH_SIZE, HELD_OUT_PERIOD - PATCH_SIZE
    stride = size if split == "test" else PATCH_STRIDE
    patches = []
    for photo in load_sample_images().images:
        height, width, _ = photo.shape
        for left in range(0, width - size + 1, stride):
            position = left % HELD_OUT_PERIOD
            if split == "test":
                is_chosen = position == first_held_out
            else:
                is_chosen = position + size <= first_held_out
            for top in range(0, height - size + 1, stride) if is_chosen else ():
                patches.append(photo[top : top + size, left : left + size])
    return Images(np.stack(patches))
