"""What the terminal sees: progress and notes on standard error, results on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and notes, for machines."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether progress and notes are silenced."""
    return _quiet


def note(message: str) -> None:
    """Tell the user what is going on."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items behind a progress bar (on a terminal only; silent elsewhere)."""
    with progress(description) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done, done if total is None else total)


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar (on a terminal only); yields a function of (done, total) that moves it."""
    if _quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
