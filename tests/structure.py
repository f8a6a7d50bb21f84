"""Measures of the kit's shape, counted in its source with `ast`.

python tests/structure.py [FOLDER]    prints them, of the checkout in FOLDER if one is given
"""

import ast
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[1]


STEP = {
    "simple": {
        "inat/training/step.py": ["accumulated", "take_step", "_sizes"],
        "inat/loader/batches.py": ["normalize", "_factors"],
    },
    "full": {
        "inat/training/step.py": ["accumulated", "take_step", "_sizes"],
        "inat/loader/batches.py": ["normalize", "_factors"],
        "inat/training/mixing.py": [
            *("GlobalBatch", "on_device", "erase_images", "mix_images", "draw_mix", "one_hot"),
            "_layout",
        ],
        "inat/training/averages.py": [
            *(
                "Step",
                "Speed",
                "LossMeter.timed",
                "LossMeter.add",
                "LossMeter.read",
                "LossMeter.close",
            ),
            *("MovingAverage.update", "average_statistics"),
        ],
        "inat/training/processes.py": ["n_processes", "summed", "averaged"],
        "inat/samplers/base.py": ["stream"],
    },
}
"""What runs in a training step besides the network, the loss and libraries: on one GPU in fp32
without mixup; and with mixup, several processes, accumulation, a moving average and the log's
window."""

LOSS = {
    "inat/losses/base.py": ["Loss.weight_of", "Loss.weights_for", "at_least_float32"],
    "inat/losses/cross_entropy.py": ["CrossEntropyLoss.forward"],
}
"""The loss itself, which like the network is one of many: counted apart."""


def lines_to_read(functions: dict[str, list[str]], root: Path = ROOT) -> int:
    """Lines of these functions and classes, with docstrings and comments."""
    total = 0
    for path, names in functions.items():
        tree = ast.parse((root / path).read_text())
        spans = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                spans.setdefault(node.name, node)
            if isinstance(node, ast.ClassDef):
                methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
                spans |= {f"{node.name}.{method.name}": method for method in methods}
        found = [spans[name] for name in names]
        total += sum((node.end_lineno or 0) - node.lineno + 1 for node in found)
    return total


def options_documented_twice(root: Path = ROOT) -> list[str]:
    """verb.option for each option that is explained in the command line's code and again in the
    docstring of a function that the verb calls."""
    others: dict[str, set[str]] = {}
    verbs = []
    for path in sorted((root / "inat").rglob("*.py")):
        is_cli = "cli" in (path.parent.name, path.stem)
        for function in functions_of(path):
            if is_cli:
                verbs.append(function)
            else:
                others.setdefault(function.name, set()).update(explained(function))
    return [
        f"{verb.name}.{option}"
        for verb in verbs
        for option in sorted(explained(verb))
        if any(option in others.get(name, ()) for name in names_called(verb))
    ]


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def names_called(function: ast.FunctionDef) -> set[str]:
    """What is imported in the body of a function, and the attributes that it asks for."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def explained(function: ast.FunctionDef) -> set[str]:
    """The parameters that a docstring explains, in Google's or NumPy's style."""
    lines = (ast.get_docstring(function) or "").splitlines()
    found, section = set(), ""
    for line, below in zip_longest(lines, lines[1:], fillvalue=""):
        if (title := re.fullmatch(r"(\w+):?", line)) and (line[-1] == ":" or set(below) == {"-"}):
            section = title[1]
        elif section == "Args" and (entry := re.match(r" {4}(\w+): ", line)):
            found.add(entry[1])
        elif section == "Parameters" and re.fullmatch(r"\w+", line):
            found.add(line)
    return found


def modules_of(root: Path = ROOT) -> list[Path]:
    return sorted((root / "inat").rglob("*.py"))


def root_modules(root: Path = ROOT) -> list[str]:
    """The modules of inat/ that are in no room, besides __init__ and __main__."""
    return [p.stem for p in sorted((root / "inat").glob("*.py")) if not p.stem.startswith("__")]


def lines_by_room(root: Path = ROOT) -> Counter[str]:
    """Lines of each folder of inat/, and of each module that is in none."""
    lines: Counter[str] = Counter()
    for path in modules_of(root):
        room = path.relative_to(root / "inat").parts[0]
        lines[room] += path.read_text().count("\n")
    return lines


def share_used_once(root: Path = ROOT) -> float:
    """Share of the functions that are private and whose name occurs once besides its definition."""
    names: Counter[str] = Counter()
    for path in modules_of(root):
        with path.open("rb") as file:
            names.update(t.string for t in tokenize.tokenize(file.readline) if t.type == 1)
    functions = [function.name for path in modules_of(root) for function in functions_of(path)]
    private = [name for name in functions if name.startswith("_") and not name.startswith("__")]
    return sum(names[name] == 2 for name in private) / len(functions)


def facts_by_string(root: Path = ROOT) -> list[str]:
    """Where the facts of a run or a prediction are asked for by a string."""
    pattern = re.compile(r"""\b(?:meta|facts|model)(?:\.get\(|\[)["']""")
    return [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in modules_of(root)
        for line in path.read_text().splitlines()
        if pattern.search(line)
    ]


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    lines = lines_by_room(root)
    room, most = lines.most_common(1)[0]
    print(f"lines of inat/                  {sum(lines.values()):,}")
    print(f"modules in no room              {len(root_modules(root))}")
    print(f"largest room                    {room}, {most / sum(lines.values()):.1%} of the lines")
    print(f"functions private, used once    {share_used_once(root):.1%}")
    print(f"options documented twice        {len(options_documented_twice(root))}")
    print(f"facts asked for by a string     {len(facts_by_string(root))}")
    for case, functions in STEP.items():
        if all((root / path).is_file() for path in [*functions, *LOSS]):
            n_lines, loss = lines_to_read(functions, root), lines_to_read(LOSS, root)
            print(
                f"a training step, {case:6}         {n_lines} lines in {len(functions)} files, and "
                f"{loss} in {len(LOSS)} of the loss"
            )
