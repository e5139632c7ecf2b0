"""Class embeddings: what YOLO-World compares picture regions with, one unit vector per class.

The paper (YOLO-World, arXiv 2401.17270) takes them from the text encoder of CLIP ViT-B/32. Here
they come from phrases through that encoder (see ``toolkit.detect.prompts``), from a file, from the
checkpoint that training starts from, or are made: orthonormal vectors, which separate the classes
of a closed set as far as vectors can. They are stored with the run, so that nothing needs CLIP
later.
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from converters.errors import InputError
from converters.files import write_bytes

EMBEDDING_SIZE = 512
ANCHOR = "defect"
"""Name of the embedding that stands for any defect at all."""
MAX_CLASSES = 80
"""Most classes that ultralytics trains at once, as many as the official configuration has."""


@dataclass(frozen=True)
class ClassEmbeddings:
    """Embeddings of some classes, in order.

    Attributes:
        names: class names.
        vectors: shape (classes, 512), float32, each of length 1.
        origins: where each comes from, e.g. "made (seed 0)".
    """

    names: tuple[str, ...]
    vectors: torch.Tensor
    origins: tuple[str, ...]

    def only(self, names: tuple[str, ...]) -> ClassEmbeddings:
        """The embeddings of some of the classes, in the order of ``names``."""
        index = [self.names.index(name) for name in names]
        return ClassEmbeddings(names, self.vectors[index], tuple(self.origins[i] for i in index))

    def save(self, path: Path) -> None:
        """Write as safetensors: one tensor per class, origins and order in the metadata."""
        tensors = {name: self.vectors[i].clone() for i, name in enumerate(self.names)}
        metadata = {"origins": json.dumps(dict(zip(self.names, self.origins, strict=True)))}
        write_bytes(path, safetensors.torch.save(tensors, metadata))

    def summary(self) -> str:
        """Origins with the number of classes of each, for one line on the terminal."""
        counts = {origin: self.origins.count(origin) for origin in self.origins}
        return ", ".join(f"{count} {origin}" for origin, count in counts.items())


def read_embeddings(path: Path, names: tuple[str, ...]) -> ClassEmbeddings:
    """Read the embeddings of the named classes from a safetensors file.

    The file holds one tensor of 512 numbers per class name; their length need not be 1. Classes
    that were not asked for are ignored.

    Raises:
        InputError: the file is missing or not safetensors, a class is not in it, or a tensor is
            not 512 finite numbers.
    """
    vectors = []
    try:
        with safe_open(path, framework="pt") as file:
            known = list(file.keys())
            origins = json.loads((file.metadata() or {}).get("origins", "{}"))
            for name in names:
                if name not in known:
                    raise InputError(f"{path}: {_missing(name, known)}")
                vectors.append(_unit(file.get_tensor(name), f"{path}: class {name!r}"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of class embeddings") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is not a safetensors file: make it again") from error
    found = tuple(str(origins.get(name, f"from {path.name}")) for name in names)
    return ClassEmbeddings(names, torch.stack(vectors), found)


def names_in(path: Path) -> tuple[str, ...]:
    """Classes that a safetensors file of embeddings has, in the order in which it was made.

    Raises:
        InputError: the file is missing, not safetensors, or empty.
    """
    try:
        with safe_open(path, framework="pt") as file:
            known = list(file.keys())
            made = json.loads((file.metadata() or {}).get("origins", "{}"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of class embeddings") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is not a safetensors file: make it again") from error
    if not known:
        raise InputError(f"{path}: has no classes: make it again")
    return tuple(sorted(known, key=list(made).index if set(known) <= set(made) else None))


def check_count(names: tuple[str, ...]) -> None:
    """Raise InputError for more classes than ultralytics trains."""
    if len(names) > MAX_CLASSES:
        raise InputError(
            f"{len(names)} classes: YOLO-World in ultralytics trains at most {MAX_CLASSES}: "
            "convert with --classes category-defect on fewer categories, or single"
        )


def resolve_embeddings(
    names: tuple[str, ...], file: Path | None, checkpoint: ClassEmbeddings | None, seed: int
) -> ClassEmbeddings:
    """Embeddings for every class: from the file, else from the checkpoint, else made.

    Args:
        names: classes, in order.
        file: safetensors file that must have them all; None for none.
        checkpoint: what the starting weights bring along; used for the names that match.
        seed: of the made ones.

    Raises:
        InputError: more classes than ultralytics trains, or the file does not have them all.
    """
    check_count(names)
    if file is not None:
        return read_embeddings(file, names)
    known = {}
    if checkpoint is not None:
        known = {name: i for i, name in enumerate(checkpoint.names) if name in names}
    vectors = torch.zeros(len(names), EMBEDDING_SIZE)
    origins = [f"made (seed {seed})"] * len(names)
    for i, name in enumerate(names):
        if checkpoint is not None and name in known:
            vectors[i] = checkpoint.vectors[known[name]]
            origins[i] = checkpoint.origins[known[name]]
    missing = [i for i, name in enumerate(names) if name not in known]
    present = [i for i, name in enumerate(names) if name in known]
    if checkpoint is not None and ANCHOR in checkpoint.names:
        vectors[missing] = _beside(checkpoint, len(missing), seed)
        for i in missing:
            origins[i] = f"made beside {ANCHOR!r} (seed {seed})"
    else:
        vectors[missing] = make_embeddings(len(missing), seed, apart_from=vectors[present])
    return ClassEmbeddings(names, vectors, tuple(origins))


def anchored_embeddings(
    names: tuple[str, ...], seed: int, known: ClassEmbeddings | None = None
) -> ClassEmbeddings:
    """``ANCHOR`` and classes that each point half its way and half their own.

    Whatever is found as one of the classes also answers to ``ANCHOR``, and a class that comes later
    starts, beside the same anchor, as a defect of no known kind rather than as nothing at all. Two
    classes have a cosine of 1/2.

    Args:
        names: classes besides ``ANCHOR``.
        seed: of what is made.
        known: embeddings that the weights have learnt; kept where they have an anchor themselves.
    """
    if known is not None and ANCHOR in known.names:
        return resolve_embeddings((ANCHOR, *names), None, known, seed)
    made = make_embeddings(len(names) + 1, seed)
    vectors = torch.cat([made[:1], _halfway(made[0], made[1:])])
    return ClassEmbeddings((ANCHOR, *names), vectors, (f"made (seed {seed})",) * len(vectors))


def _beside(known: ClassEmbeddings, count: int, seed: int) -> torch.Tensor:
    """New classes beside the anchor of known ones, apart from all of them."""
    anchor = known.vectors[known.names.index(ANCHOR)]
    own = make_embeddings(count, seed, apart_from=known.vectors)
    return _halfway(anchor, own)


def _halfway(anchor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(anchor + own, dim=-1)


def make_embeddings(count: int, seed: int, apart_from: torch.Tensor | None = None) -> torch.Tensor:
    """Random orthonormal vectors, the same for the same seed on every machine.

    Args:
        count: how many.
        seed: of the random directions.
        apart_from: shape (known, 512); the new vectors are orthogonal to these too.

    Returns:
        shape (count, 512), float32.
    """
    known = np.zeros((0, EMBEDDING_SIZE))
    if apart_from is not None:
        known = apart_from.numpy().astype(np.float64)
    random = np.random.default_rng(seed).standard_normal((count, EMBEDDING_SIZE))
    q, r = np.linalg.qr(np.concatenate([known, random]).T)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # LAPACK is free in the signs; this fixes them
    return torch.from_numpy(q.T[len(known) :].astype(np.float32))


def _unit(vector: torch.Tensor, where: str) -> torch.Tensor:
    flat = vector.detach().float().flatten()
    length = float(torch.linalg.vector_norm(flat))
    if flat.numel() != EMBEDDING_SIZE or not math.isfinite(length) or length == 0:
        raise InputError(f"{where}: must be {EMBEDDING_SIZE} finite numbers, not all zero")
    return flat.div(length)


def _missing(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = (
        f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known[:5]) or 'none'}"
    )
    return f"has no embedding for class {name!r}: {hint}"
