"""Every surface, distractor and kind of defect by name; new ones are added here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from numpy.random import Generator

from toolkit.synth import (
    assemblies,
    blemishes,
    displaced,
    distractors,
    misprints,
    parts,
    plates,
    prints,
    spots,
    strokes,
    surfaces,
)
from toolkit.synth.canvas import Size, Surface
from toolkit.synth.patch import Patch

SurfaceFunction = Callable[[Generator, Generator, Size], Surface]
DefectFunction = Callable[[Generator, Surface], Patch]
DistractorFunction = Callable[[Generator, Surface], Surface]

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
        "ground_tile": plates.ground_tile,
        "hot_strip": plates.hot_strip,
        "spectral": plates.spectral,
        "gradient": plates.gradient,
        "ribs": plates.ribs,
        "mesh": assemblies.mesh,
        "printed": prints.printed,
        "stamped_part": assemblies.stamped_part,
        "screw": assemblies.screw,
    }
)

DISTRACTORS: Mapping[str, DistractorFunction] = MappingProxyType(
    {
        "drilled_hole": distractors.drilled_hole,
        "screw_head": distractors.screw_head,
        "lettering": distractors.lettering,
        "chalk": distractors.chalk,
        "seam": distractors.seam,
        "print_mark": distractors.print_mark,
        "step_edge": distractors.step_edge,
        "highlight": distractors.highlight,
        "cast_shadow": distractors.cast_shadow,
        "lamp_band": distractors.lamp_band,
        "stripe": distractors.stripe,
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
        "spot": blemishes.spot,
        "patch": blemishes.patch,
        "streak": blemishes.streak,
        "uneven": blemishes.uneven,
        "fray": blemishes.fray,
        "abrasion": blemishes.abrasion,
        "broken_edge": blemishes.broken_edge,
        "print_error": misprints.print_error,
        "displaced": displaced.displaced,
        "bent": displaced.bent,
    }
)
