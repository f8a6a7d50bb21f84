"""The rooms of the kit stand on floors; an import never points up (DESIGN: Rooms and floors)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

KIT = Path(__file__).parents[1] / "inat"

FLOORS = (
    (),  # ground: every module of inat/ that has no floor below; they may import each other
    ("data", "models", "losses"),
    ("prediction", "training", "stage_two"),
    ("evaluation", "adjusting", "ensembling", "submission", "runs"),
    ("demo",),
    ("cli", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PLACE_OF = {room: place for rooms in FLOORS for place, room in enumerate(rooms)}
FACE = "__init__"  # inat/__init__.py hands out names of all rooms; no room may ask it for them
TOP = len(FLOORS)


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


def floor_of(room: str) -> int:
    return TOP if room == FACE else FLOOR_OF.get(room, 0)


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
    """Whether a room asks one that stands above it, or below it in the list of its floor."""
    if importer in (target, FACE):
        return False
    floor, target_floor = floor_of(importer), floor_of(target)
    if floor != target_floor or floor == 0:
        return target_floor > floor
    return PLACE_OF[target] > PLACE_OF[importer]


def test_every_package_has_a_floor() -> None:
    packages = {path.name for path in KIT.iterdir() if (path / "__init__.py").is_file()}
    assert packages <= FLOOR_OF.keys(), "give the new room a floor in DESIGN and in FLOORS"


@pytest.mark.parametrize("name", MODULES)
def test_no_import_points_up(name: str) -> None:
    path = MODULES[name]
    wrong = [
        f"{path}:{line}: {name} (floor {floor_of(room_of(name))}) imports {target} "
        f"(floor {floor_of(room_of(target))})"
        for line, target in imported(name, path.read_text(), is_package=path.name == "__init__.py")
        if points_up(room_of(name), room_of(target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("inat.metrics", "from inat.errors import InputError", False),
        ("inat.metrics", "import inat.losses", True),
        ("inat.metrics", "def f():\n    from inat.data.taxonomy import Taxonomy", True),
        ("inat.metrics", "import importlib\nimportlib.import_module('inat.cli')", True),
        ("inat.data.loader", "from inat.models import backbone", True),
        ("inat.models.backbone", "from inat.data import loader", False),
        ("inat.models.backbone", "from . import device", False),
        ("inat.models.backbone", "from ..training import loop", True),
        ("inat.training.loop", "from inat.prediction.forward import iterate_logits", False),
        ("inat.prediction.predict", "from inat.training import loop", True),
        ("inat.training.loop", "from inat import config", False),
        ("inat.training.loop", "from inat import build_loader", True),
        ("inat.evaluation.evaluate", "import inat.submission.csv_file", True),
        ("inat.cli", "from inat.submission import write", False),
    ],
)
def test_the_reader_of_imports_sees_what_points_up(name: str, line: str, wrong: bool) -> None:
    found = list(imported(name, line, is_package=False))
    assert len(found) == 1
    assert points_up(room_of(name), room_of(found[0][1])) is wrong


def test_importing_leaves_out_what_is_slow_and_not_needed() -> None:
    modules = {
        "torch": ["inat", "inat.evaluation", "inat.ensembling.ensemble", "inat.submission"],
        "torchvision": ["inat.data.loader"],
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
