"""Which device a name means."""

import torch

from draw.errors import UserError


def choose_device(name: str | torch.device) -> torch.device:
    """The device of this name, such as cpu or cuda:1; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        UserError: If the machine has no such device.
    """
    name = str(name)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has = {"cpu": True, "cuda": gpus > 0, "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if has[kind])
    if not has.get(name) and name not in (f"cuda:{index}" for index in range(gpus)):
        raise UserError(f"no device {name!r} on this machine; it has {', '.join(kind for kind in has if has[kind])}")
    return torch.device(name)
