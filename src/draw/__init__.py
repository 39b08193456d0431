"""DRAW (Gregor et al. 2015): a recurrent network that draws.

Names are imported when first used, so that `import draw` and `draw --help` do not load PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from draw.checkpoint import load as load
    from draw.config import DataConfig as DataConfig
    from draw.config import EvalConfig as EvalConfig
    from draw.config import ModelConfig as ModelConfig
    from draw.config import RunConfig as RunConfig
    from draw.config import SpeedConfig as SpeedConfig
    from draw.config import TrainConfig as TrainConfig
    from draw.data import DataSet as DataSet
    from draw.data import load_data as load_data
    from draw.errors import UserError as UserError
    from draw.evaluation import Evaluation as Evaluation
    from draw.evaluation import evaluate as evaluate
    from draw.model import DRAW as DRAW
    from draw.packing import pack_data as pack_data
    from draw.packing import write_shards as write_shards
    from draw.presets import PRESETS as PRESETS
    from draw.run import train as train

_HOME = {  # where each public name lives
    "DRAW": "model",
    "DataConfig": "config",
    "DataSet": "data",
    "EvalConfig": "config",
    "Evaluation": "evaluation",
    "ModelConfig": "config",
    "PRESETS": "presets",
    "RunConfig": "config",
    "SpeedConfig": "config",
    "TrainConfig": "config",
    "UserError": "errors",
    "evaluate": "evaluation",
    "load": "checkpoint",
    "load_data": "data",
    "pack_data": "packing",
    "train": "run",
    "write_shards": "packing",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'draw' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"draw.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]
