"""What a wrong call from Python is told.

In a process of its own: in the tests every call is checked by its annotations.
"""

import subprocess
import sys

MODEL = "draw.DRAW(draw.ModelConfig(height=4, width=4, steps=2, enc_size=4, dec_size=4, z_size=2))"
DATA = "draw.DataSet('mine', {'train': torch.zeros(3, 1, 4, 4).byte()}, {}, 'static')"
CALLS = {
    "draw.ModelConfig(height='8')": "height: expected int, got '8'",
    "draw.EvalConfig(samples=2.5)": "samples: expected int, got 2.5",
    "draw.DataConfig(binarization=3)": "binarization: expected auto, static, stochastic, none, got 3",
    "draw.RunConfig(model=3)": "model: expected ModelConfig, got 3",
    "draw.TrainConfig(learning_rate=1).learning_rate": "1.0",
    "draw.DataSet('mine', {'train': torch.zeros(3, 1, 4, 4)}, {}, 'static')": (
        "the train images of mine must be a uint8 tensor (n, channels, height, width), of at least one image and "
        "values from 0 to 255, got torch.float32 (3, 1, 4, 4)"
    ),
    "draw.DataSet('mine', {'train': torch.zeros(3, 4, 4).byte()}, {}, 'static')": (
        "the train images of mine must be a uint8 tensor (n, channels, height, width), of at least one image and "
        "values from 0 to 255, got torch.uint8 (3, 4, 4)"
    ),
    "draw.DataSet('mine', {'train': np.zeros((3, 1, 4, 4), np.uint8)}, {}, 'static')": (
        "the train images of mine must be a torch tensor, got ndarray"
    ),
    "draw.DataSet('mine', torch.zeros(3, 1, 4, 4).byte(), {}, 'static')": (
        "the images of mine must be a dict of one tensor or more by split"
    ),
    "draw.DataSet('mine', {}, {}, 'static')": "the images of mine must be a dict of one tensor or more by split",
    "draw.DRAW(draw.PRESETS['demo'])": "config must be a ModelConfig, got RunConfig",
    f"draw.evaluate('mnist', {DATA})": "model must be a DRAW, got str",
    f"draw.evaluate({MODEL}, 'mnist')": "data must be a DataSet, got str",
    f"draw.evaluate({MODEL}, {DATA}, {{'images': 3}})": "config must be an EvalConfig, got dict",
    f"draw.evaluate({MODEL}, {DATA}, draw.EvalConfig(split='train')).images": "3",
    "draw.pack_data('glyphs', 'pack')": "config must be a DataConfig, got str",
    "draw.load('mnist', 'gpu')": "no device 'gpu' on this machine; it has cpu",
    "draw.load('mnist', 'auto').canvas0.device": "cpu",
    "draw.load('mnist', torch.device('cpu')).canvas0.device": "cpu",
    f"{MODEL}.reconstruct(torch.zeros(3, 1, 4, 4).byte())": (
        "images must have intensities in [0, 1], as floats, got torch.uint8; of 8 bits give x / 255"
    ),
    f"{MODEL}.reconstruct(torch.full((3, 1, 4, 4), 255.0))": (
        "images must have intensities in [0, 1], and some are not; of 8 bits give x / 255"
    ),
    f"{MODEL}.reconstruct(torch.full((3, 1, 4, 4), torch.nan))": (
        "images must have intensities in [0, 1], and some are not; of 8 bits give x / 255"
    ),
    f"{MODEL}.reconstruct(torch.zeros(3, 4, 4))": "images must be (b, 1, 4, 4), got (3, 4, 4)",
    f"{MODEL}.reconstruct(np.zeros((3, 1, 4, 4)))": "images must be a torch tensor, got ndarray",
    f"{MODEL}.sample(2, seed=np.int64(1)).equal({MODEL}.sample(2, seed=1))": "True",
    f"{MODEL}.sample(2, seed=True).equal({MODEL}.sample(2, seed=1))": "True",
    "next(draw.train({'model': {}}, 'r'))": "config must be a RunConfig, got dict",
    "next(draw.train('demo', 'r', speed={'threads': 1}))": "speed must be a SpeedConfig, got dict",
    "next(draw.train('demo', 'r', data=torch.zeros(3, 1, 4, 4)))": "data must be a DataSet, got Tensor",
    "next(draw.train('demo', 'r', minutes='5'))": "minutes must be positive, got '5'",
    "next(draw.train('demo', 'r', minutes=math.nan))": "minutes must be positive, got nan",
    "next(draw.train('demo', 'r', minutes=-1))": "minutes must be positive, got -1",
    "draw.load_data('mnist.npz')": (
        "config must be a DataConfig, got str; for a name alone, draw.DataConfig(source=...)"
    ),
    "draw.DataConfig(size='9' * 5000)": (
        "size must be SIDE or HEIGHTxWIDTH in pixels, such as 32 or 24x48, at most 4096, got " + repr("9" * 5000)
    ),
    "draw.load(pathlib.Path('mnist')).canvas0.shape": "torch.Size([1, 28, 28])",
    f"{MODEL}.sample(2, temperature=1e300)": "temperature must be from 0 to 1,000, got 1e+300",
    f"{MODEL}.sample(2, temperature=1000).isfinite().all()": "tensor(True)",
    f"{MODEL}(torch.zeros(2, 3, 2), torch.zeros(3, 1, 4, 4).byte())": (
        "images must have intensities in [0, 1], as floats, got torch.uint8; of 8 bits give x / 255"
    ),
}


def test_a_wrong_call_is_told_what_was_wanted():
    lines = ["import draw, math, pathlib, torch", "import numpy as np"]
    for call in CALLS:
        lines += ["try:", f"    print({call})", "except draw.UserError as error:", "    print(error)"]
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert dict(zip(CALLS, ran.stdout.splitlines(), strict=True)) == CALLS
