"""Every surface and every kind of defect by name; new ones are added here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from numpy.random import Generator

from toolkit.synth import parts, spots, strokes, surfaces
from toolkit.synth.canvas import Size, Surface
from toolkit.synth.patch import Patch

SurfaceFunction = Callable[[Generator, Generator, Size], Surface]
DefectFunction = Callable[[Generator, Surface], Patch]

SURFACES: Mapping[str, SurfaceFunction] = MappingProxyType(
    {
        "brushed_metal": surfaces.brushed_metal,
        "rolled_steel": surfaces.rolled_steel,
        "cast_grain": surfaces.cast_grain,
        "painted": surfaces.painted,
        "weave": surfaces.weave,
        "leather": surfaces.leather,
        "wood": surfaces.wood,
        "speckle": surfaces.speckle,
        "board": parts.board,
        "turned_disc": parts.turned_disc,
    }
)

DEFECTS: Mapping[str, DefectFunction] = MappingProxyType(
    {
        "hole": spots.hole,
        "scratch": strokes.scratch,
        "thread": strokes.thread,
        "stain": spots.stain,
        "crack": strokes.crack,
        "dent": spots.dent,
        "missing_piece": spots.missing_piece,
        "glue": spots.glue,
        "contamination": spots.contamination,
    }
)
