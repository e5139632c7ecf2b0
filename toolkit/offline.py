"""ultralytics as a library that sends, downloads, installs and writes nothing by itself.

What it would do otherwise (8.4): look up two host names when imported, write settings into the
user's home, post events to Google Analytics, upload to its platform, fetch fonts, pip-install CLIP
and whatever else it misses, open every picture of Pillow's by a function of its own, and set the
number of OpenMP threads to one.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Before ultralytics, which sets OMP_NUM_THREADS=1: a torch imported later would use one core.
import torch  # noqa: F401
from PIL import Image

_ENVIRONMENT = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations asks PyPI for its newest version
}


def prepare() -> None:
    """Import ultralytics with its switches off; call before any other import of it.

    The environment stays set, so that processes that load pictures behave the same. Where the
    caller imported ultralytics before, its settings file is theirs; everything else is switched off
    all the same.
    """
    os.environ.update(_ENVIRONMENT)
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="toolkit-ultralytics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["YOLO_CONFIG_DIR"] = folder
    threads = os.environ.get("OMP_NUM_THREADS")
    open_image = Image.open
    from ultralytics.utils import checks
    from ultralytics.utils.events import events

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    # ultralytics' own wants to install a HEIC decoder for every file that is no picture.
    Image.open = open_image
    events.enabled = False
    checks.ONLINE = False
    checks.AUTOINSTALL = False


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what ultralytics prints, errors excepted."""
    logger = logging.getLogger("ultralytics")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
