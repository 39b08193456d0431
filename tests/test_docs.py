"""What the documents say works: doctests, the README's Python, and every command line in it."""

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import draw
from draw import cli
from serving import serving
from small import data_set
from test_cli import SMALL

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in Path(draw.__file__).parent.glob("*.py") if path.stem != "__init__")


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def commands(document):
    """The `draw` command lines of a document, comments left out."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("draw ")]


@pytest.mark.parametrize("module", MODULES)
def test_doctests_print_what_they_say(module):
    assert doctest.testmod(importlib.import_module(f"draw.{module}")).failed == 0


def test_some_doctests_exist():
    finder = doctest.DocTestFinder()
    tests = [t for module in MODULES for t in finder.find(importlib.import_module(f"draw.{module}")) if t.examples]
    assert len(tests) >= 3


def test_the_python_of_the_readme_runs(tmp_path):
    (block,) = blocks("README.md", "python")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d ± \d+\.\d nats on 200 test images$", done.stdout, re.MULTILINE)


def test_the_python_of_the_guide_runs(tmp_path):
    (block,) = blocks("docs/guide.md", "python")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^valid 20 \d+\.\d nats$", done.stdout, re.MULTILINE)
    assert cli.main(["evaluate", str(tmp_path / "runs/own")]) == 2


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    data = data_set(height=8, width=6)
    np.savez(tmp_path / "small.npz", **{split: images.numpy() for split, images in data.images.items()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAW_DATA", str(tmp_path))  # a model that ships answers without its images
    lines = commands("README.md")
    assert len(lines) >= 10
    for arguments in lines:
        if arguments[0] == "serve":  # until it is interrupted
            if find_spec("uvicorn"):
                with serving(*arguments[1:]) as (address, _):
                    assert address.startswith("http://127.0.0.1:")
            continue
        fresh = arguments[0] == "train" and "--resume" not in arguments
        small = ["--data", "small.npz", "--iterations", "4", *SMALL] if fresh else []  # instead of an hour
        assert cli.main([*arguments, *small]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("document", sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")))
def test_the_commands_of_the_documents_are_well_formed(document):
    for arguments in commands(document):
        _, rest = cli.build_parser().parse_known_args(arguments)
        assert rest == []


def test_the_files_that_documents_point_to_exist():
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
