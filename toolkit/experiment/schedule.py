"""Start what can be started, as much at a time as is wanted, until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Task(Protocol):
    """Something that was started."""

    def poll(self) -> Outcome | None:
        """How it ended; None while it goes on."""

    def stop(self) -> None:
        """End it, where it goes on."""


@dataclass(frozen=True)
class Outcome:
    """How something ended.

    Attributes:
        error: one line on what went wrong; empty where nothing did.
    """

    error: str = ""


def work_off(
    needs: Mapping[str, str | None],
    start: Callable[[str], Task],
    *,
    at_once: int,
    ended: Callable[[str, Outcome], None],
    pause: float = 0.1,
) -> None:
    """Run everything; what needs something that failed is not started, and the others go on.

    Args:
        needs: by name, what has to have ended well before it is started; None, or a name that is
            not here, for nothing. They are started in this order.
        start: begins one of them.
        at_once: how many may go on at a time.
        ended: told of each when it has ended, or will not be started.
        pause: seconds between looks at those that go on.
    """
    waiting = dict(needs)
    going: dict[str, Task] = {}
    failed: set[str] = set()
    try:
        while waiting or going:
            while barred := [name for name, need in waiting.items() if need in failed]:
                for name in barred:
                    failed.add(name)
                    ended(name, Outcome(f"was not begun, because {waiting.pop(name)} failed"))
            ready = [
                name for name, need in waiting.items() if need not in waiting and need not in going
            ]
            for name in ready[: at_once - len(going)]:
                del waiting[name]
                going[name] = start(name)
            outcomes = {name: task.poll() for name, task in going.items()}
            for name, outcome in outcomes.items():
                if outcome is not None:
                    del going[name]
                    if outcome.error:
                        failed.add(name)
                    ended(name, outcome)
            if going and not any(outcomes.values()):
                time.sleep(pause)
    finally:
        for task in going.values():
            task.stop()
