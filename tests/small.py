"""A small data set and configuration that train in milliseconds."""

import dataclasses

import torch

from draw.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from draw.data import DataSet, middle
from draw.noise import seeded


def data_set(*, train=40, valid=11, test=13, channels=1, height=6, width=5, binarization=None, grey=False):
    """Blobs: each image a random rectangle of ink, or of grey."""
    binarization = binarization or ("none" if grey else "static")
    images = {}
    for split, n in (("train", train), ("valid", valid), ("test", test)):
        generator = seeded("small", split)
        rows = torch.rand(n, 1, height, 1, generator=generator) < 0.5
        columns = torch.rand(n, 1, 1, width, generator=generator) < 0.5
        ink = (rows & columns).expand(n, channels, height, width) * (128 if grey else 255)
        images[split] = ink.to(torch.uint8).contiguous()
    return DataSet("small", images, {}, binarization)


def in_patches(whole, *patch):
    """The same set, its middle patches and the whole training images, of which random ones are trained on."""
    middles = {split: middle(images, patch) for split, images in whole.images.items()}
    return dataclasses.replace(whole, images=middles, whole=whole.images["train"])


def small_config(**changes):
    config = RunConfig(
        model=ModelConfig(6, 5, 1, steps=3, enc_size=12, dec_size=12, z_size=4, read_n=2, write_n=3),
        data=DataConfig(source="small", binarization="static"),
        train=TrainConfig(
            batch_size=8,
            iterations=12,
            warmup=2,
            weight_decay=0.1,
            log_every=2,
            validate_every=4,
            validation_images=0,
            ema_decay=0.9,
        ),
    )
    return config.replace(**changes)
