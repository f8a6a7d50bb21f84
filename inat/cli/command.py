"""A public function as a command: its signature gives the options, its docstring the help."""

import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter
from docstring_parser.google import parse

PACKAGE = Path(__file__).parents[1]
DATA_ROOT = {"root": Parameter(name="--data.root")}


@dataclass(frozen=True)
class Command:
    """A verb of the command line."""

    name: str
    function: str  # "module:function", imported when the verb is used
    extends: tuple[str, ...] = ()  # functions whose options, with their help, are its `**options`
    n_positional: int = 1  # parameters given without a flag; all others have one
    # Spellings that differ from the rule, --name-of-the-parameter.
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    only_python: tuple[str, ...] = ()  # parameters that the command line does not have

    def summary(self) -> str:
        """The first line of the function's docstring, read without importing it."""
        module, _, name = self.function.partition(":")
        source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text()
        found = re.search(rf'^def {name}\(.*?"""(.*?)$', source, re.DOTALL | re.MULTILINE)
        assert found is not None, self.function
        return found[1]

    def load(self) -> Callable[..., Any]:
        """The function, with the signature and the docstring that the parser reads."""
        main, *others = functions = [imported(name) for name in (self.function, *self.extends)]
        parameters = self.command_line(functions)
        gathers = parameters[0].kind is inspect.Parameter.VAR_POSITIONAL

        def call(*words: Any, **options: Any) -> Any:
            return main(words, **options) if gathers else main(*words, **options)

        text, _, _ = (inspect.getdoc(main) or "").partition("\n\nArgs:")
        named = ", ".join(f"inat.{one.__name__}" for one in others or [main])
        call.__doc__ = (
            f"{as_flags(text, [one.name for one in parameters])}\n\nFrom Python: {named}."
        )
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        return call

    def command_line(self, functions: Sequence[Callable[..., Any]]) -> list[inspect.Parameter]:
        """The parameters of all functions, each with its type and its help for the parser."""
        found: dict[str, inspect.Parameter] = {}
        helps: dict[str, str] = {}
        for function in functions:
            hints = get_type_hints(function, include_extras=True)
            for name, one in inspect.signature(function).parameters.items():
                if one.kind is not one.VAR_KEYWORD and name not in self.only_python:
                    found.setdefault(name, one.replace(annotation=parsed_type(hints[name])))
            described = {
                one.arg_name: one.description for one in parse(function.__doc__ or "").params
            }
            helps = {name: text for name, text in described.items() if text} | helps
        parameters = []
        for place, (name, one) in enumerate(found.items()):
            hint, kind, is_flag = one.annotation, one.kind, place >= self.n_positional
            if kind is not one.VAR_POSITIONAL:
                kind = one.KEYWORD_ONLY if is_flag else one.POSITIONAL_OR_KEYWORD
                if not is_flag and get_origin(hint) is list:  # takes all words without a flag
                    kind, (hint,) = one.VAR_POSITIONAL, get_args(hint)
            spelling = [Parameter(help=help_entry(helps.get(name, ""), found))]
            if hint is bool and one.default is False:
                spelling.append(Parameter(negative=""))
            if one.default == ():
                spelling.append(Parameter(show_default=False))
            if name in self.parameters:
                spelling.append(self.parameters[name])
            parameters.append(one.replace(kind=kind, annotation=Annotated[(hint, *spelling)]))
        return sorted(parameters, key=lambda one: one.kind)


def imported(name: str) -> Callable[..., Any]:
    """The function of "module:function"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def help_entry(text: str, names: Collection[str]) -> str:
    """An entry of `Args:` as the help shows it: what is None in Python has no flag here."""
    text = re.sub(r"\bNone\b", "unset", " ".join(text.split())).replace(". unset", ". Unset")
    # A text that begins with a value of the option (last, or best) keeps it as it is typed.
    is_sentence = re.match("[a-z-]+ [a-zA-Z]", text)
    return as_flags(text[0].upper() + text[1:] if is_sentence else text, names)


def as_flags(text: str, names: Collection[str]) -> str:
    """The text with --short-side for `short_side`, where that is one of the names."""
    return re.sub(
        r"`(\w+)`", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in names else m[0], text
    )


def parsed_type(hint: Any) -> Any:
    """What a word of the command line becomes, of the types that a function takes: a path rather
    than the object that is opened from it, a list rather than any sequence."""
    if get_origin(hint) is Sequence:
        return list[parsed_type(get_args(hint)[0])]  # type: ignore[misc]
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    members = [parsed_type(one) for one in get_args(hint)]
    for plain in (Path, str):
        if plain in members:
            return plain | None if types.NoneType in members else plain
    return Union[tuple(members)]  # noqa: UP007
