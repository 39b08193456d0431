"""Small networks and inputs that several test files share."""

import torch

from draw.config import ModelConfig
from draw.model import DRAW
from draw.noise import seeded

TINY = {"height": 6, "width": 5, "steps": 3, "enc_size": 7, "dec_size": 6, "z_size": 4}


def config(**changes):
    return ModelConfig(**(TINY | {"read_n": 2, "write_n": 3} | changes))


def random_model(*, seed=0, dtype=torch.float64, spread=0.3, **changes):
    """A network whose every parameter, initial states and canvas included, is disturbed: none is left at a constant."""
    model = DRAW(config(**changes), seed=seed).to(dtype)
    generator = seeded("parameters", seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def inputs(model, b, *, seed=0, steps=None):
    """Noise (t, b, z) and binary images (b, c, h, w) for a model, in its precision."""
    c, dtype = model.config, model.canvas0.dtype
    eps = torch.randn(steps or c.steps, b, c.z_size, generator=seeded("noise", seed), dtype=torch.float64)
    x = torch.randint(2, (b, *c.image_shape), generator=seeded("images", seed))
    return eps.to(dtype), x.to(dtype)
