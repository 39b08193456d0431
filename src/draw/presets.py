"""Named runs. Values, not code paths; each comment says what to expect of it.

Those for MNIST and CIFAR-10 follow docs/recipe.md. `svhn` has the paper's sizes, this package's optimiser settings and
10,000 steps, which are few: give it more with `--epochs`.
"""

from draw.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from draw.errors import UserError, nearest

PRESETS = {
    # Three minutes on two CPU cores: about 77 nats on glyphs, and digits one can read. Its windows are larger than the
    # paper's: they learn several times sooner.
    "demo": RunConfig(
        model=ModelConfig(steps=10, enc_size=128, dec_size=128, z_size=32, read_n=8, write_n=10),
        data=DataConfig(source="glyphs"),
        train=TrainConfig(
            batch_size=64,
            schedule_minutes=3.0,
            learning_rate=6e-3,
            warmup=100,
            ema_decay=0.995,
            log_every=20,
            validate_every=200,
            validation_images=500,
        ),
    ),
    # Table 3, MNIST: 344 epochs, eight hours of two fast cores in bfloat16. The paper's own run: <= 80.97 nats. The one
    # that ships was resumed at two thirds with `--weight-decay 0 --adam-power 0.75`, to 80.84 (docs/recipe.md).
    "mnist": RunConfig(
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(
            iterations=172_000,
            learning_rate=2e-3,
            fall_from=0.05,
            weight_decay=0.1,
            awake=4,
            grow_from=32,
            grow_until=0.05,
            validate_every=2_000,
        ),
    ),
    # The same with all latents in use at first: 1,470 epochs, twenty minutes of an H200 in bfloat16, which takes 112
    # images at once.
    "mnist-gpu": RunConfig(
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(
            batch_size=112,
            iterations=658_000,
            learning_rate=2e-3,
            weight_decay=0.1,
            grow_from=32,
            grow_until=0.1,
            log_every=500,
            validate_every=10_000,
        ),
    ),
    # Half of `mnist`: 166 epochs, four hours of two fast cores in bfloat16.
    "mnist-cpu": RunConfig(
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(
            iterations=83_000,
            learning_rate=2.5e-3,
            fall_from=0.1,
            weight_decay=0.1,
            awake=4,
            grow_from=32,
            grow_until=0.1,
            validate_every=2_000,
        ),
    ),
    # Without attention, on a CPU, 62 epochs: about an hour. The paper's own run: <= 87.40 nats.
    "mnist-no-attention": RunConfig(
        model=ModelConfig(read_n=None, write_n=None),
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(iterations=31_000, learning_rate=3e-3, fall_from=0.7, grow_from=32, grow_until=0.6),
    ),
    # For people with a CPU: half the paper's glimpses for an hour of a core; all of them for three of a core with a
    # matrix unit, both in bfloat16. Bounds, curves and what other cores take: docs/results.md.
    "mnist-1h": RunConfig(
        model=ModelConfig(steps=32),
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(iterations=20_000, learning_rate=3e-3, fall_from=0.7, weight_decay=0.1, awake=4),
    ),
    "mnist-3h": RunConfig(
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(
            iterations=44_000,
            learning_rate=2.5e-3,
            fall_from=0.17,
            weight_decay=0.1,
            awake=4,
            grow_from=32,
            grow_until=0.17,
        ),
    ),
    "mnist-no-attention-1h": RunConfig(
        model=ModelConfig(steps=32, read_n=None, write_n=None),
        data=DataConfig(source="binarized-mnist"),
        train=TrainConfig(iterations=12_000, learning_rate=5e-3, grow_from=8, grow_until=0.6),
    ),
    # Figure 8, two digits on a page, of which the paper gives no sizes: 70 minutes of two cores with a matrix unit, in
    # bfloat16; about 192 nats. Windows larger than for one digit, or it learns slowly; a rate lower than for one, at
    # which it breaks down (docs/recipe.md).
    "two-digit-mnist": RunConfig(
        model=ModelConfig(60, 60, steps=32, read_n=8, write_n=8),
        data=DataConfig(source="two-digit-mnist"),
        train=TrainConfig(batch_size=200, iterations=15_300, learning_rate=1.2e-3, fall_from=0.3, weight_decay=0.1),
    ),
    # Table 3, CIFAR-10, 27 epochs: 105 minutes of a core with a matrix unit, in bfloat16. The targets are RGB
    # intensities: the loss is no code length; about 137 nats above their own entropy.
    "cifar10": RunConfig(
        model=ModelConfig(32, 32, 3, steps=64, enc_size=400, dec_size=400, z_size=200, read_n=5, write_n=5),
        data=DataConfig(source="cifar10", binarization="none"),
        train=TrainConfig(
            iterations=12_100, learning_rate=1.5e-3, fall_from=0.36, weight_decay=0.1, grow_from=32, grow_until=0.34
        ),
    ),
    # Table 3, SVHN: random 54 x 54 patches, the middle ones to measure. Bring the images: RGB house numbers of 64 x 64
    # pixels, as `svhn.npz` with arrays train and test.
    "svhn": RunConfig(
        model=ModelConfig(54, 54, 3, steps=32, enc_size=800, dec_size=800, z_size=100, read_n=12, write_n=12),
        data=DataConfig(source="svhn.npz", binarization="none", patch="54"),
    ),
}


def preset(name: str) -> RunConfig:
    """The preset of this name.

    Raises:
        UserError: If there is none, with the nearest name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
