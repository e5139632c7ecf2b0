"""The command line: one thin layer over one function per command.

A command's flags are the fields of its configuration; nothing is parsed here twice, and nothing
heavy is imported before the command that needs it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import COMMANDS, Command, as_text

if TYPE_CHECKING:
    from toolkit.config import Config


GROUPS = {
    "finetune": "Fine-tune a model on a dataset folder.",
    "pretrain": "Pretrain a model on procedural defects, without any data.",
    "prompts": "Say in words what a detector shall look for.",
    "weights": "Official weights: which there are, get them, check them.",
}


class _LazyGroup(click.Group):
    """Builds a command only when it is called or its own help is wanted."""

    def __init__(self, prefix: str = "", **attributes: Any) -> None:
        super().__init__(**attributes)
        self.prefix = prefix

    def list_commands(self, context: click.Context) -> list[str]:
        names = [n.removeprefix(self.prefix) for n in COMMANDS if n.startswith(self.prefix)]
        return list(dict.fromkeys(name.split(" ")[0] for name in names))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in GROUPS and not self.prefix:
            return _LazyGroup(prefix=f"{name} ", name=name, help=GROUPS[name])
        command = COMMANDS.get(self.prefix + name)
        return None if command is None else _build(name, command)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(context):
            command = COMMANDS.get(self.prefix + name)
            rows.append((name, GROUPS[name] if command is None else command.summary))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _build(name: str, command: Command) -> click.Command:
    config: type[Config] = getattr(import_module("toolkit.config"), command.config)
    params: list[click.Parameter] = [
        click.Argument([field], required=False, nargs=command.words(field))
        for field in command.positional
    ]
    for field, info in config.model_fields.items():
        if field not in command.positional:
            params.append(_option(field, info))
    params += [
        click.Option(["--config", "_file"], type=Path, help="YAML file with any of these fields."),
        click.Option(["--quiet", "_quiet"], is_flag=True, help="No progress, no notes."),
        click.Option(["--json", "_json"], is_flag=True, help="Print the result as JSON."),
    ]

    def run(_file: Path | None, _quiet: bool, _json: bool, **flags: Any) -> int:
        return _run(command, config, _file, _given(config, flags), quiet=_quiet, as_json=_json)

    return click.Command(
        name,
        params=params,
        callback=run,
        help=config.__doc__,
        context_settings={"max_content_width": 100},
    )


def _option(field: str, info: Any) -> click.Option:
    flag = "--" + field.replace("_", "-")
    text = (info.description or "").replace("\n", " ")
    if info.annotation is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", field], default=None, help=text)
    if info.is_required():
        text += "  [required]"
    elif info.default not in (None, "", ()):
        text += f"  [default: {as_text(info.default)}]"
    return click.Option([flag, field], metavar=_metavar(info), help=text)


def _metavar(info: Any) -> str:
    """The kind of value, for help: choices where there are some, else the type's name."""
    from typing import Literal, get_args, get_origin

    annotation = info.annotation
    parts = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    if parts and get_origin(annotation) is not tuple:
        others = [get_args(part) for part in get_args(annotation) if part not in parts]
        number = ["N"] if any(int in part for part in others) else []
        path = ["PATH"] if Path in get_args(annotation) else []
        choices = [choice for part in parts for choice in get_args(part)]
        return "|".join(map(str, (*choices, *number, *path)))
    names = [t.__name__ for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
    kinds = {"int": "INTEGER", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}
    found = [kinds[name] for name in names if name in kinds]
    several = {tuple: "A,B,…", dict: "NAME=NUMBER,…"}.get(get_origin(annotation))
    return several or (found[0] if found else "TEXT")


def _given(config: type[Config], flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that were given; comma-separated text becomes a list where the field is a tuple."""
    from typing import get_origin

    values: dict[str, Any] = {}
    for field, value in flags.items():
        if value is None or value == ():
            continue
        is_text = isinstance(value, str)
        if is_text and get_origin(config.model_fields[field].annotation) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        values[field] = value
    return values


def _run(
    command: Command,
    config: type[Config],
    file: Path | None,
    flags: dict[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    from toolkit import console
    from toolkit.config import build
    from toolkit.processes import place

    console.set_quiet(quiet or as_json)
    settings = build(config, file, flags)
    result = command.run(settings)
    return command.print(settings, result, as_json=as_json) if place().leads else 0


@click.group(
    cls=_LazyGroup,
    help="Fine-tune detectors and segmenters on industrial defect images; score them honestly.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="defect-toolkit")
def cli() -> None:
    """Root of the command line."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: 0 for success, 1 for findings, 2 for bad input, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    # Threads that spin while they wait make training many times slower beside any other program.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # numpy's matrices are small here: the threads of its BLAS would cost more than they bring.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from converters.errors import InputError
    from toolkit.processes import ENDED_ALONE, LostError

    try:
        code = cli.main(arguments, prog_name="toolkit", standalone_mode=False)
    except click.exceptions.Abort:
        code = _fail("interrupted", 130)
    except KeyboardInterrupt:
        code = _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except LostError:
        code = ENDED_ALONE
    except InputError as error:
        code = _fail(str(error), 2)
    except OSError as error:
        if os.environ.get("TOOLKIT_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{where}{error.strerror or error} (TOOLKIT_DEBUG=1 shows where)", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(signum: int, _frame: object) -> None:
    """Leave as by an exception, so that half-written folders are removed."""
    raise SystemExit(128 + signum)


def _fail(message: str, code: int) -> int:
    from toolkit.processes import first_to_say

    if first_to_say(message):
        click.echo("error: " + " ".join(message.split()), err=True)
    return code
