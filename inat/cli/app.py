"""The command line: parses the words, calls a verb, and leaves with an exit status.

Only the verb that is called is imported, so that --help answers at once.
"""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownOptionError
from cyclopts.argument import ArgumentCollection, update_argument_collection

from inat.cli.command import DATA_ROOT, Command
from inat.cli.show import print_line, show
from inat.core.errors import InatError, InputError, one_line

GROUPS = {
    "data": "Make, import and look at data sets.",
    "submission": "Write, check, score, estimate and upload Kaggle's submission files.",
}

COMMANDS = (
    Command("demo", "inat.demo:run_demo", n_positional=0),
    Command("data download", "inat.acquire.download:download"),
    Command("data synth", "inat.synthetic.world:synth", n_positional=0),
    Command("data import", "inat.acquire.import_folders:import_folders", n_positional=0),
    Command("data describe", "inat.cli.verbs:describe", ("inat.dataset.profile:describe",)),
    Command("data pack", "inat.acquire.pack:pack_photos"),
    Command("data verify", "inat.acquire.verify:verify"),
    Command(
        "train",
        "inat.cli.verbs:train",
        ("inat.training.verbs:train", "inat.training.folds:train_folds"),
        only_python=("overrides",),
    ),
    Command("stage-two", "inat.stage_two.verbs:train_stage_two", parameters=DATA_ROOT),
    Command("soup", "inat.training.verbs:soup", parameters=DATA_ROOT),
    Command(
        "predict",
        "inat.cli.verbs:predict",
        ("inat.predictions.verbs:predict", "inat.predictions.verbs:predict_photos"),
        parameters=DATA_ROOT,
        only_python=("k",),
    ),
    Command("adjust", "inat.posthoc.adjust:adjust"),
    Command(
        "ensemble",
        "inat.posthoc.ensemble:ensemble",
        parameters={"fit": Parameter(consume_multiple=True)},
    ),
    Command(
        "evaluate",
        "inat.cli.verbs:evaluate",
        ("inat.evaluation.evaluate:evaluate", "inat.evaluation.report:write_report"),
        parameters=DATA_ROOT,
        only_python=("evaluations", "path"),
    ),
    Command(
        "compare", "inat.cli.verbs:compare", ("inat.evaluation.compare:compare",), n_positional=2
    ),
    Command("runs", "inat.cli.verbs:runs", ("inat.runs.listing:list_runs",)),
    Command(
        "submission write", "inat.cli.verbs:write", ("inat.submission.csv_file:write_submission",)
    ),
    Command("submission check", "inat.submission.csv_file:check_submission", parameters=DATA_ROOT),
    Command("submission score", "inat.submission.csv_file:score_submission"),
    Command("submission estimate", "inat.submission.estimate:estimate_score"),
    Command(
        "submission upload",
        "inat.submission.kaggle:upload_submission",
        parameters={**DATA_ROOT, "message": Parameter(alias="-m")},
    ),
    Command("submission status", "inat.submission.kaggle:submission_status"),
)


def build_app(words: Sequence[str]) -> App:
    """The parser, in which only the verb that `words` begin with has options."""
    app = App(
        name="inat",
        help="Fine-grained species classification: from long-tailed photos to a scored Kaggle "
        "submission.",
        version_flags=["--version"],
        # No --data.empty-band-edges: lists have lengths of their own, and --stages none has a word.
        default_parameter=Parameter(negative_iterable=()),
        # The list of verbs holds no paragraphs to fill, and importing what fills them takes a
        # quarter of the time to its appearance.
        help_format="plaintext" if list(words) in ([], ["--help"]) else None,
    )
    groups = {name: App(name=name, help=text) for name, text in GROUPS.items()}
    for command in COMMANDS:
        *group, verb = name = command.name.split()
        parent = groups[group[0]] if group else app
        if list(words[: len(name)]) == name:
            parent.command(command.load(), name=verb)
        else:
            parent.command(App(name=verb, help=command.summary()))
    for each in groups.values():
        app.command(each)
    return app


@dataclass
class YamlSource:
    """Feeds the YAML of `inat train CONFIG` to the parser, below the flags."""

    path: Path | None = None

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Called by cyclopts between the parsing of the tokens and their conversion."""
        if commands != ("train",):
            return
        tokens = next(a.tokens for a in arguments if a.field_info.name == "config")
        if not tokens:
            return
        from inat.config.reading import read_yaml

        self.path = Path(tokens[0].value)
        tree = read_yaml(self.path)
        # Not by cyclopts.config.Dict: it leaves out keys that are also verbs, so that the
        # config's section `data` would be ignored because there is an `inat data`.
        update_argument_collection(
            tree,
            str(self.path),
            arguments,
            app.app_stack.stack[-1],
            root_keys=(),
            allow_unknown=False,
        )


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command line; gives the exit status: 0, 1 (the world, faults found) or 2 (input)."""
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except InatError as error:
        return _told(str(error), error.exit_status, debug=debug)
    except KeyboardInterrupt:
        return _told("interrupted", 130, debug=debug)
    except OSError as error:
        from inat.core.files import system_sentence

        return _told(system_sentence(error), 1, debug=debug)
    except Exception as error:
        text = (
            f"{type(error).__name__}: {one_line(error)} (a fault of the kit; --debug shows where)"
        )
        return _told(text, 1, debug=debug)


def _run(words: list[str]) -> int:
    app, source = build_app(words), YamlSource()
    app.config = (source,)
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise InputError(_sentence(error)) from None
    except InputError as error:
        # An error between two fields does not know the file that they came from.
        known = source.path is None or str(error).startswith(str(source.path))
        raise InputError(str(error) if known else f"{source.path}: {error}") from None
    result = command(*bound.args, **bound.kwargs)
    if isinstance(result, int):
        return result
    if result is not None:
        show(result)
    return 0


def _sentence(error: CycloptsError) -> str:
    """The parser's words, or better ones for what people run into most."""
    if isinstance(error, MissingArgumentError) and error.argument and error.keyword is None:
        verb = " ".join(error.command_chain or ())
        name, field = error.argument.name, error.argument.field_info
        if field.kind is not field.KEYWORD_ONLY:
            name = name.removeprefix("--").upper()
        return f"{verb} needs {name}; see inat {verb} --help"
    if isinstance(error, UnknownOptionError) and error.token.keyword:
        # The parser would offer a name that is merely near: --optim for --optim.lr.
        given = error.token.keyword
        names = sorted({name for known in error.argument_collection for name in known.names})
        if longer := [name for name in names if name.startswith(given)]:
            return f"Unknown option: {given}. Did you mean {' or '.join(longer)}?"
    return one_line(error)


def _told(text: str, status: int, *, debug: bool) -> int:
    if debug:
        for line in traceback.format_exc().splitlines():
            print_line(line, file=sys.stderr)
    print_line(f"inat: {one_line(text)}", file=sys.stderr)
    return status
