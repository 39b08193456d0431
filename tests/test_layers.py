"""The order of the house: modules import downwards only, and importing does no work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import draw

PACKAGE = Path(draw.__file__).parent

# Each module may import from the layers above its own line, and from no module of its own line.
LAYERS = (
    ("errors",),
    ("config", "devices", "noise", "types", "parallel", "optimizer"),
    ("presets", "filterbank", "distributions", "sources", "glyphs"),
    ("attention", "published", "kernels"),
    ("model", "pictures", "shards", "two_digits"),
    ("pieces",),
    ("data", "objective", "checkpoint", "render"),
    ("native", "deferred", "packing"),
    ("cpu", "cuda"),
    ("fast",),
    ("training", "evaluation", "figures", "curves", "export"),
    ("run", "results"),
    ("progress", "bench", "live"),
    ("growth", "serve"),
    ("words",),
    ("verbs",),
    ("cli",),
    ("__main__",),
)
LIGHT = {"errors", "config", "presets", "words", "verbs", "cli"}  # must not load PyTorch or NumPy


def imports_of(module):
    """Modules of the package that a module imports at its top level, and all others."""
    own, others = set(), set()
    for node in ast.parse((PACKAGE / f"{module}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "draw":
            own |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("draw."):
            own.add(node.module.removeprefix("draw."))
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return own, others - {"draw"}


def all_imports_of(module):
    """Modules of the package that a module imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "draw":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("draw."):
            names.add(node.module.removeprefix("draw."))
    return names


def test_every_module_has_a_layer():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == {module for layer in LAYERS for module in layer}


@pytest.mark.parametrize("module", [module for layer in LAYERS for module in layer])
def test_modules_import_from_layers_above_only(module):
    allowed = set()
    for layer in LAYERS:
        if module in layer:
            break
        allowed |= set(layer)
    assert all_imports_of(module) <= allowed


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_help_needs_loads_no_array_library(module):
    own, others = imports_of(module)
    assert own <= LIGHT
    assert not others & {"torch", "numpy", "PIL", "matplotlib", "rich", "safetensors", "jaxtyping"}


def test_only_the_command_line_prints_or_reads_its_arguments():
    for path in PACKAGE.glob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        attributes = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        if path.stem not in ("cli", "verbs"):
            assert "print" not in names, path
            assert "argv" not in attributes, path


def test_nothing_is_ever_unpickled():
    for path in PACKAGE.glob("*.py"):
        source = path.read_text()
        assert "torch.load" not in source, path
        assert "import pickle" not in source, path
        assert "allow_pickle=True" not in source, path
        assert "_object(" not in source, path  # torch.distributed's, which pickle


def test_importing_the_package_loads_no_array_library():
    code = "import sys, draw, draw.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_can_be_had():
    for name in draw.__all__:
        assert getattr(draw, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = draw.nothing
