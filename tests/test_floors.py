"""The rooms of the kit stand in the order of the road that data takes; each imports only those
above it (inat/README.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

KIT = Path(__file__).parents[1] / "inat"

ROOMS = (
    "core", "losses", "samplers", "config", "photos", "synthetic", "dataset", "acquire", "loader",
    "models", "runs", "geo", "predictions", "training", "stage_two", "posthoc", "evaluation",
    "submission", "api", "demo", "cli", "__main__",
)  # fmt: skip
FACE = "__init__"  # gives names of all rooms to users; no room may ask it for them


def modules() -> dict[str, Path]:
    """Every module of the kit by its dotted name, packages by that of the package."""
    found = {}
    for path in sorted(KIT.rglob("*.py")):
        parts = path.relative_to(KIT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else FACE


def imported(name: str, source: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module of the kit) for every import in `source`, those in functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if is_package else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from inat import config` is an import of inat.config, not of the face.
            targets = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            ]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            targets = [str(node.args[0].value)]
        else:
            continue
        for target in targets:
            if target == "inat" or target.startswith("inat."):
                yield node.lineno, target


def points_up(importer: str, target: str) -> bool:
    """Whether a room imports one that stands below it in the list of rooms, or the face."""
    if importer in (target, FACE):
        return False
    return target == FACE or ROOMS.index(target) > ROOMS.index(importer)


def test_every_room_has_a_place_in_the_list() -> None:
    assert {room_of(name) for name in MODULES} - {FACE} == set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_those_above_it(name: str) -> None:
    path = MODULES[name]
    wrong = [
        f"{path}:{line}: {name} imports {target}, whose room comes later"
        for line, target in imported(name, path.read_text(), is_package=path.name == "__init__.py")
        if points_up(room_of(name), room_of(target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("inat.core.metrics", "from inat.core.errors import InputError", False),
        ("inat.core.metrics", "import inat.losses", True),
        ("inat.core.metrics", "def f():\n    from inat.dataset.taxonomy import Taxonomy", True),
        ("inat.core.metrics", "import importlib\nimportlib.import_module('inat.cli')", True),
        ("inat.loader.loader", "from inat.models import backbone", True),
        ("inat.models.backbone", "from inat.loader import loader", False),
        ("inat.models.backbone", "from . import device", False),
        ("inat.models.backbone", "from ..training import loop", True),
        ("inat.training.loop", "from inat.models.forward import iterate_logits", False),
        ("inat.predictions.predict", "from inat.training import loop", True),
        ("inat.training.loop", "from inat import config", False),
        ("inat.training.loop", "from inat import build_loader", True),
        ("inat.evaluation.evaluate", "import inat.submission.csv_file", True),
        ("inat.cli.app", "from inat.submission import write", False),
    ],
)
def test_the_reader_of_imports_sees_what_points_up(name: str, line: str, wrong: bool) -> None:
    found = list(imported(name, line, is_package=False))
    assert len(found) == 1
    assert points_up(room_of(name), room_of(found[0][1])) is wrong


def test_importing_leaves_out_what_is_slow_and_not_needed() -> None:
    modules = {
        "numpy": ["inat.losses", "inat.samplers", "inat.config.schema"],
        "torch": ["inat", "inat.evaluation", "inat.posthoc.ensemble", "inat.submission"],
        "torchvision": ["inat.loader.loader"],
    }
    code = (
        "import importlib, sys\n"
        f"for slow, names in {modules}.items():\n"
        "    for name in names:\n"
        "        importlib.import_module(name)\n"
        "        assert slow not in sys.modules, f'{name} imports {slow}'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=KIT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
