"""One of the processes that ``toolkit.processes.launch`` starts: not for users."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from converters.errors import InputError
from toolkit import config as configurations
from toolkit.config import Config
from toolkit.console import set_quiet
from toolkit.processes import ENDED_ALONE, LostError, place


def work(function: str, config: str, folder: Path) -> int:
    """Run a function; errors go into a file each, so that one of them reaches the user.

    Args:
        function: "module:function".
        config: class of ``config.json`` in the folder.
        folder: that the processes share.

    Returns:
        the exit code.
    """
    rank = place().rank
    try:
        kind: type[Config] = getattr(configurations, config)
        settings = kind.model_validate_json((folder / "config.json").read_text("utf-8"))
        module, name = function.split(":")
        run: Callable[[Config], Any] = getattr(import_module(module), name)
        run(settings)
    except LostError:
        return ENDED_ALONE
    except InputError as error:
        (folder / f"refused-{rank}").write_text(str(error), "utf-8")
        return 2
    except Exception:
        (folder / f"error-{rank}").write_text(traceback.format_exc(), "utf-8")
        return 1
    return 0


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone, which closes our input."""
    os.read(0, 1)
    os._exit(ENDED_ALONE)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_quiet(bool(os.environ.get("TOOLKIT_QUIET")))
    sys.exit(work(sys.argv[1], sys.argv[2], Path(os.environ["TMPDIR"])))
