"""The layouts that can be read, one file each."""

from __future__ import annotations

from pathlib import Path

from converters.errors import InputError
from converters.layouts.base import ClassNaming, Labels, Layout, Listing, Record, Terms, folders
from converters.layouts.image_folder import ImageFolderLayout
from converters.layouts.magnetic_tile import MagneticTileLayout
from converters.layouts.mvtec import MvtecLayout

__all__ = [
    "LAYOUTS",
    "ClassNaming",
    "Labels",
    "Layout",
    "Listing",
    "Record",
    "Terms",
    "find_layout",
    "recognised",
]

LAYOUTS: tuple[Layout, ...] = (MvtecLayout(), MagneticTileLayout(), ImageFolderLayout())
"""In the order in which a folder is compared with them: the last one asks for least."""


def recognised(root: Path) -> Layout | None:
    """The layout that a folder looks like, where there is one."""
    return next((layout for layout in LAYOUTS if layout.recognise(root)), None)


def find_layout(root: Path, name: str = "auto") -> Layout:
    """The layout of that name, or with "auto" the one that the folder looks like.

    Raises:
        InputError: the folder is missing, or looks like none of them, or not like the one named.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder: give the folder of pictures and masks")
    candidates = [layout for layout in LAYOUTS if name in ("auto", layout.name)]
    if not candidates:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise InputError(f"layout {name!r} is unknown: known are {known}")
    for layout in candidates:
        if layout.recognise(root):
            return layout
    seen = ", ".join(f"{folder.name}/" for folder in folders(root)[:6]) or "no folders"
    wanted = "; ".join(f"{layout.name} ({layout.describe})" for layout in candidates)
    raise InputError(
        f"{root}: holds {seen}, which is not {wanted}: give another folder or --layout"
    )
