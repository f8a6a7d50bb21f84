"""A public function as a command: its signature gives the options, its docstring the help."""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter
from docstring_parser.google import parse

PACKAGE = Path(__file__).parents[1]
DATA_ROOT = {"root": Parameter(name="--data.root")}


class Command:
    """A verb of the command line.

    Args:
        name: what is typed, with that of its group.
        function: "module:function", imported when the verb is used.
        extends: more of them: the options that the function takes as `**options`, with their help.
        n_positional: parameters given without a flag; all others have one.
        parameters: spellings that differ from the rule, --name-of-the-parameter.
        only_python: parameters that the command line does not have.
    """

    def __init__(
        self,
        name: str,
        function: str,
        *extends: str,
        n_positional: int = 1,
        parameters: Mapping[str, Parameter] | None = None,
        only_python: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.function = function
        self.extends = extends
        self.n_positional = n_positional
        self.parameters = parameters or {}
        self.only_python = only_python

    def summary(self) -> str:
        """The first line of the function's docstring, read without importing it."""
        module, _, name = self.function.partition(":")
        source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text()
        found = re.search(rf'^def {name}\(.*?"""(.*?)$', source, re.DOTALL | re.MULTILINE)
        assert found is not None, self.function
        return found[1]

    def load(self) -> Callable[..., Any]:
        """The function, with the signature and the docstring that the parser reads."""
        main, *others = map(_imported, (self.function, *self.extends))
        found: dict[str, inspect.Parameter] = {}
        helps: dict[str, str] = {}
        for function in (main, *others):
            hints = get_type_hints(function, include_extras=True)
            for name, parameter in inspect.signature(function).parameters.items():
                if parameter.kind is not parameter.VAR_KEYWORD and name not in self.only_python:
                    found.setdefault(name, parameter.replace(annotation=parsed_type(hints[name])))
            helps = _helps(function) | helps
        made = [
            self._parameter(place, parameter, helps.get(name, ""))
            for place, (name, parameter) in enumerate(found.items())
        ]
        made.sort(key=lambda parameter: parameter.kind)
        gathers = made[0].kind is made[0].VAR_POSITIONAL and found[made[0].name].kind is not (
            inspect.Parameter.VAR_POSITIONAL
        )

        def call(*arguments: Any, **options: Any) -> Any:
            return main(arguments, **options) if gathers else main(*arguments, **options)

        text, _, _ = (inspect.getdoc(main) or "").partition("\n\nArgs:")
        named = ", ".join(f"inat.{one.__name__}" for one in others or [main])
        call.__doc__ = f"{text}\n\nFrom Python: {named}."
        call.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in made}
        return call

    def _parameter(self, place: int, parameter: inspect.Parameter, text: str) -> inspect.Parameter:
        hint, own = parameter.annotation, [Parameter(help=text)]
        if hint is bool and parameter.default is False:
            own.append(Parameter(negative=""))
        if parameter.default == ():
            own.append(Parameter(show_default=False))
        if parameter.name in self.parameters:
            own.append(self.parameters[parameter.name])
        kind = parameter.kind
        if kind is not parameter.VAR_POSITIONAL:
            is_flag = place >= self.n_positional
            kind = parameter.KEYWORD_ONLY if is_flag else parameter.POSITIONAL_OR_KEYWORD
            if not is_flag and get_origin(hint) is list:  # gathered from all words
                kind, (hint,) = parameter.VAR_POSITIONAL, get_args(hint)
        return parameter.replace(kind=kind, annotation=Annotated[(hint, *own)])


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), attribute)
    return function


def _helps(function: Callable[..., Any]) -> dict[str, str]:
    """The entries of `Args:` as the help shows them: what is None there has no flag here."""
    found = {}
    for one in parse(function.__doc__ or "").params:
        text = re.sub(r"\bNone\b", "unset", " ".join((one.description or "").split()))
        # A text that begins with a value of the option (last, or best) keeps it as it is typed.
        is_sentence = re.match("[a-z-]+ [a-z]", text)
        found[one.arg_name] = text[0].upper() + text[1:] if is_sentence else text
    return found


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
