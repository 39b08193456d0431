"""What test_parallel.py lets torchrun start.

ranks.py together FOLDER       train, resume, diverge and measure in one group; each rank writes down what it saw
ranks.py killed ARGUMENT...    the command line `draw ARGUMENT...`; rank 1 is killed at step 13, the first time
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import draw
from draw import cli, training
from draw.config import DataConfig
from draw.errors import NonFiniteError
from draw.parallel import World, joined
from draw.run import read_config, train

MEASURED = draw.EvalConfig(samples=2, importance_samples=3, batch_size=9)


def together(folder: Path, world: World) -> dict[str, object]:
    config = read_config(folder / "one" / "config.json")
    data = world.first_on_each_machine(lambda: draw.load_data(DataConfig(str(folder / "small.npz"))))

    def trained(out: str, **options: object) -> list[dict[str, object]]:
        return [dataclasses.asdict(record) for record in train(config, folder / out, data=data, world=world, **options)]

    seen = {"whole": trained("three"), "rest": trained("part", resume=True)}
    try:
        config = config.replace(learning_rate=1e38)
        trained("diverged")
    except NonFiniteError as error:
        seen["diverged"] = str(error)
    model = draw.load(folder / "one")
    return seen | {"measured": dataclasses.asdict(draw.evaluate(model, data, MEASURED, world=world))}


def killed(arguments: list[str]) -> int:
    step = training.Trainer.train_step

    def train_step(trainer: training.Trainer, seconds: float) -> None:
        if trainer.step == 13 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        step(trainer, seconds)

    training.Trainer.train_step = train_step
    return cli.main(arguments)


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        sys.exit(killed(sys.argv[2:]))
    folder = Path(sys.argv[2])
    with joined() as world:
        seen = together(folder, world)
        (folder / f"seen-{world.rank}.json").write_text(json.dumps(seen))
