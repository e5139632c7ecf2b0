"""What a frozen image encoder makes of its views, kept on disk for later epochs and later runs.

::

    FOLDER/3f/3f9c….safetensors    one view: "embedding", float16, (channels, grid, grid)

A file is named after the SHA-256 of its key: what was encoded (the bytes of the picture, the view),
by what (weights and structure of the encoder), and how (side of the input, resampling, precision of
the arithmetic). Other weights or another view are another file, so nothing is ever out of date. The
key stands in the file as well, with a checksum of the numbers: a file that was moved or damaged is
made again.

Views are encoded one at a time. In float32 the same view in a call with others comes out with other
last bits on a processor, even after rounding to half precision, and what a file holds must not
depend on which other files were there. Calls of sixteen are 9 % faster in float32 and 30 % in
bfloat16 (nano, one core).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from converters.dataset import Image
from converters.errors import InputError
from toolkit.console import note, track
from toolkit.devices import has_bfloat16
from toolkit.segment.data import ImageView, ahead, read_picture
from toolkit.segment.frames import Frame
from toolkit.segment.lora import state_sha256
from toolkit.segment.model import encode
from toolkit.segment.sam import Sam
from toolkit.segment.views import View
from toolkit.training import packed

FORMAT = 1
"""Of the files; one more whenever the same key would give other numbers."""

VARIABLE = "TOOLKIT_CACHE"
"""Environment variable that names the folder for caches of the toolkit."""

GIGABYTE = 10**9

Key: TypeAlias = str
"""What an embedding is of, by what and how, as JSON."""

_HEADER = 1024
"""Bytes of a file beside its numbers, at most."""

_STALE = 3600
"""Seconds after which a half-written file is that of a killed process."""

_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.safetensors\.[0-9a-f]{16}\.partial")


def default_folder() -> Path:
    """Where embeddings lie by default: ``$TOOLKIT_CACHE/embeddings``, or in the user's caches.

    Those are ``$XDG_CACHE_HOME``, or the platform's: ``~/.cache``, on macOS ``~/Library/Caches``,
    on Windows ``%LOCALAPPDATA%``; in them ``defect-toolkit/embeddings``.

    Raises:
        InputError: the user has no home folder.
    """
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]) / "embeddings"
    try:
        caches = {
            "darwin": Path("~/Library/Caches"),
            "win32": Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")),
        }.get(sys.platform, Path("~/.cache"))
        caches = Path(os.environ.get("XDG_CACHE_HOME") or caches).expanduser()
    except RuntimeError as error:
        raise InputError(
            "cache: this user has no home folder: give --cache, or --cache-gb 0 for none"
        ) from error
    return caches / "defect-toolkit" / "embeddings"


class Shelf(Protocol):
    """Where embeddings lie."""

    def reserve(self, keys: Collection[Key], workers: int) -> set[Key]:
        """Make room for the embeddings of a run; those that are there already, whole."""

    def get(self, key: Key) -> Tensor | None:
        """An embedding; None where it is not there, or not whole."""

    def put(self, key: Key, embedding: Tensor) -> None:
        """Keep an embedding."""


class Memory:
    """Embeddings in memory, for one run."""

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}

    def reserve(self, keys: Collection[Key], workers: int) -> set[Key]:
        """As ``Shelf.reserve``; memory is not counted."""
        return self._kept.keys() & keys

    def get(self, key: Key) -> Tensor | None:
        """As ``Shelf.get``."""
        return self._kept.get(key)

    def put(self, key: Key, embedding: Tensor) -> None:
        """As ``Shelf.put``."""
        self._kept[key] = embedding


class Folder:
    """Embeddings in a folder that runs share, also at the same time.

    Files appear whole or not at all, and whoever writes the file of a key writes the same bytes, so
    nothing is locked. A run may lose files to another one that needs the room: see
    ``EmbeddingCache.recall``. Nothing but the cache's own files is ever removed.
    """

    def __init__(self, root: Path, gigabytes: float, shape: tuple[int, ...]) -> None:
        """Describe the folder; ``reserve`` makes it.

        Args:
            root: the folder.
            gigabytes: size that it may have in all, in units of 10^9 bytes.
            shape: of each embedding.
        """
        self.root = root
        self.damaged: set[str] = set()
        """Names of the files that were found not to be whole."""
        self._gigabytes = gigabytes
        self._shape = shape

    def reserve(self, keys: Collection[Key], workers: int) -> set[Key]:
        """Read all files of a run once, and remove those of others that are in its way.

        What was used least recently goes first.

        Raises:
            InputError: the run's own files do not fit, or the disk is too full.
        """
        check_size(self._gigabytes, len(keys), self._shape)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            wanted = list(keys)
            whole = ahead(lambda key: self.get(key) is not None, wanted, workers)
            shown = track(whole, "reading embeddings", total=len(wanted))
            found = {key for key, is_whole in zip(wanted, shown, strict=True) if is_whole}
            self._make_room(keys, len(keys) - len(found))
        except OSError as error:
            raise self._not_writable(error) from error
        return found

    def get(self, key: Key) -> Tensor | None:
        """Read and check a file, and remember that it was used.

        Returns:
            float16, on the CPU; None where there is no such file, or (see ``damaged``) where it is
            cut short, changed, of another key or shape, or has values that are not finite.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copied, because the rest of the file would stay mapped.
                embedding: Tensor = file.get_tensor("embedding").clone()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            self.damaged.add(path.name)
            return None
        if (
            embedding.dtype != torch.float16
            or tuple(embedding.shape) != self._shape
            or metadata.get("embedding") != _description(key, embedding)
            or not _is_finite(embedding)
        ):
            self.damaged.add(path.name)
            return None
        with suppress(OSError):  # somebody else's file, or gone by now
            os.utime(path)
        return embedding

    def put(self, key: Key, embedding: Tensor) -> None:
        """Write a file, beside its name first.

        Raises:
            InputError: it cannot be written; nothing of it is left.
        """
        path = self._path(key)
        # One entry of metadata, because several come in any order.
        content = packed({"embedding": embedding}, {"embedding": _description(key, embedding)})
        # A name of its own: another run may be writing the same embedding.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            raise self._not_writable(error) from error
        finally:
            with suppress(OSError):
                partial.unlink()

    def _path(self, key: Key) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.root / name[:2] / f"{name}.safetensors"

    def _make_room(self, keys: Collection[Key], missing: int) -> None:
        """Remove what others used least recently, if so many files more are to fit."""
        own = {self._path(key).name for key in keys}
        others = sorted(self._others(own))
        bytes_each = file_size(self._shape)
        surplus = len(keys) * bytes_each + sum(size for _, size, _ in others)
        surplus -= int(self._gigabytes * GIGABYTE)
        leaving = []
        for _, size, path in others:
            if surplus <= 0:
                break
            leaving.append((size, path))
            surplus -= size
        free = shutil.disk_usage(self.root).free + sum(size for size, _ in leaving)
        if missing * bytes_each > free:
            raise InputError(
                f"{self.root}: {missing} embeddings take {_gb(missing * bytes_each)} GB more, the "
                f"disk has {free / GIGABYTE:.1f} free: make room, or give --cache on another disk, "
                "or --cache-gb 0 (in memory)"
            )
        for _, path in leaving:
            path.unlink(missing_ok=True)

    def _others(self, own: set[str]) -> Iterable[tuple[float, int, Path]]:
        """When each file that is not of this run was used last, its size, and the file.

        What killed processes have left half-written comes first.
        """
        now = time.time()
        for folder in self.root.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(folder):
                half_written = _PARTIAL.fullmatch(entry.name) is not None
                if entry.name in own or not (half_written or _FILE.fullmatch(entry.name)):
                    continue
                with suppress(FileNotFoundError):  # removed by another run
                    status = entry.stat()
                    if not half_written:
                        yield status.st_mtime, status.st_size, Path(entry.path)
                    elif now - status.st_mtime > _STALE:
                        yield 0.0, status.st_size, Path(entry.path)

    def _not_writable(self, error: OSError) -> InputError:
        reason = error.strerror or str(error)
        return InputError(
            f"{self.root}: embeddings cannot be written ({reason}): make room, or give --cache "
            "another folder, or --cache-gb 0 (in memory), with --resume"
        )


class EmbeddingCache:
    """The embeddings that a frozen encoder gives for the views of a run."""

    def __init__(
        self, sam: Sam, folder: Path | None = None, gigabytes: float = 0.0, workers: int = 0
    ) -> None:
        """Describe a cache; ``build`` fills it.

        Args:
            sam: the model, on its device; its encoder must stay as it is from now on.
            folder: of the cache; None for ``default_folder``.
            gigabytes: what may lie in the folder in all; 0 keeps embeddings in memory instead.
            workers: threads that read ahead.
        """
        self._sam = sam
        self._workers = workers
        self._shape = embedding_shape(sam)
        self._folder: Folder | None = None
        if gigabytes:
            self._folder = Folder(folder or default_folder(), gigabytes, self._shape)
        self._shelf: Shelf = self._folder or Memory()
        self._keys: dict[ImageView, Key] = {}
        self._images: dict[str, Image] = {}
        self._encoder = encoder_sha256(sam)
        self._lock = threading.Lock()
        self._made_again = 0

    def build(self, wanted: Sequence[tuple[Image, View]]) -> None:
        """Encode the views of a run, as far as they are not in the cache.

        Raises:
            InputError: a picture cannot be read; the embeddings do not fit or cannot be written; an
                embedding has values that are not finite.
        """
        self._images = {image.file_name: image for image, _ in wanted}
        images = self._images.values()
        hashed = zip(images, ahead(_picture_sha256, images, self._workers), strict=True)
        sha256 = {image.file_name: digest for image, digest in hashed}
        self._keys = {
            (image.file_name, view): self._key(sha256[image.file_name], view)
            for image, view in wanted
        }
        keys = set(self._keys.values())
        found = self._shelf.reserve(keys, self._workers)
        missing: dict[Key, ImageView] = {
            key: view for view, key in self._keys.items() if key not in found
        }
        if self._folder is not None:
            note(
                f"encoder frozen: {len(found)} of {len(keys)} views are in {self._folder.root}, "
                f"{len(missing)} to encode"
            )
            if self._folder.damaged:
                count = len(self._folder.damaged)
                note(f"{self._folder.root}: {count} damaged files are made again")
        self._encode_all(list(missing.values()))

    def recall(self, views: Sequence[ImageView]) -> list[Tensor]:
        """Embeddings of views that were built, from any thread.

        What another run has removed meanwhile, or was damaged, is encoded again; see ``report``.

        Returns:
            for each view float16 of shape (channels, grid, grid), on the CPU.
        """
        return [self._recall(view) for view in views]

    def report(self) -> None:
        """Tell how many embeddings had to be made again since the last report, if any."""
        with self._lock:
            if self._made_again and self._folder is not None:
                note(
                    f"{self._folder.root}: {self._made_again} embeddings, removed by another run "
                    "or damaged, were made again"
                )
            self._made_again = 0

    def _recall(self, view: ImageView) -> Tensor:
        embedding = self._shelf.get(self._keys[view])
        if embedding is not None:
            return embedding
        with self._lock:
            self._made_again += 1
            name, window = view
            image = self._images[name]
            return self._encode(view, self._shown(image, [window])[0])

    def _encode_all(self, missing: Sequence[ImageView]) -> None:
        """Encode views picture by picture, the next ones read by threads meanwhile."""
        of_picture: dict[str, list[View]] = {}
        for name, view in missing:
            of_picture.setdefault(name, []).append(view)

        def read(plan: tuple[str, list[View]]) -> list[Tensor]:
            name, views = plan
            return self._shown(self._images[name], views)

        plans = list(of_picture.items())
        shown = track(ahead(read, plans, self._workers), "encoding images", total=len(plans))
        for (name, views), pixels in zip(plans, shown, strict=True):
            for view, seen in zip(views, pixels, strict=True):
                self._encode((name, view), seen)

    def _shown(self, image: Image, views: Sequence[View]) -> list[Tensor]:
        """What the encoder is shown of a picture."""
        pixels = read_picture(image)
        side = self._sam.image_encoder.img_size
        frames = [Frame(*view.size, side, self._sam.stretches) for view in views]
        return [f.image(v.image(pixels)) for f, v in zip(frames, views, strict=True)]

    @torch.no_grad()
    def _encode(self, view: ImageView, pixels: Tensor) -> Tensor:
        """Encode one view, and keep what it gives."""
        device = self._sam.device
        # Whatever the caller trains in.
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            embedding = encode(self._sam, [pixels])[0].half().cpu()
        if not _is_finite(embedding):
            raise InputError(
                f"{self._images[view[0]].path}: its embedding has values that are not finite: "
                "start from other weights"
            )
        self._shelf.put(self._keys[view], embedding)
        return embedding

    def _key(self, picture: str, view: View) -> Key:
        device = self._sam.device
        parts = {
            "format": FORMAT,
            "picture": picture,
            "view": [int(value) for value in astuple(view)],
            "encoder": self._encoder,
            "side": int(self._sam.image_encoder.img_size),
            "resampling": "PIL bilinear",
            "precision": f"{device.type} {'bfloat16' if has_bfloat16(device) else 'float32'}",
        }
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def encoder_sha256(sam: Sam) -> str:
    """SHA-256 over all that the image encoder computes with: weights, means, and structure."""
    tensors = {**dict(sam.named_parameters()), **dict(sam.named_buffers())}
    state = {name: t for name, t in tensors.items() if name.startswith(sam.in_embeddings)}
    # Heads, windows and the like are in no shape, and not in every layer's description.
    plain = (bool, int, float, str, tuple)
    settings = [
        (
            name,
            sorted(
                (k, v) for k, v in vars(module).items() if isinstance(v, plain) and k != "training"
            ),
        )
        for name, module in sam.image_encoder.named_modules()
    ]
    text = f"{state_sha256(state)}\n{sam.image_encoder}\n{settings}"
    return hashlib.sha256(text.encode()).hexdigest()


def embedding_shape(sam: Sam) -> tuple[int, int, int]:
    """Shape of the embedding of one view: channels, grid, grid."""
    height, width = sam.prompt_encoder.image_embedding_size
    return sam.embedding_width, int(height), int(width)


def file_size(shape: tuple[int, ...]) -> int:
    """Bytes that the file of an embedding has, at most."""
    return 2 * math.prod(shape) + _HEADER


def check_size(gigabytes: float, views: int, shape: tuple[int, ...]) -> None:
    """Refuse a run whose own embeddings are more than its cache may hold.

    Args:
        gigabytes: of the cache; 0 for embeddings in memory, which are not counted.
        views: number of different views.
        shape: of each embedding.

    Raises:
        InputError: they are more.
    """
    needed = views * file_size(shape)
    if 0 < gigabytes * GIGABYTE < needed:
        raise InputError(
            f"cache_gb: the embeddings of {views} views take {_gb(needed)} GB, more than "
            f"{gigabytes:g}: give --cache-gb {_gb(needed)}, fewer --cache-views, or --cache-gb 0 "
            "(in memory)"
        )


def _gb(count: int) -> str:
    """Bytes in gigabytes, rounded up to what is enough."""
    digits = 1 if count > GIGABYTE // 10 else 6
    return f"{math.ceil(count / GIGABYTE * 10**digits) / 10**digits:g}"


def _picture_sha256(image: Image) -> str:
    try:
        return hashlib.sha256(image.path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{image.path}: cannot be read ({error.strerror})") from error


def _description(key: Key, embedding: Tensor) -> str:
    """What a file says of its embedding: its key, and the checksum of its numbers."""
    checksum = zlib.crc32(embedding.contiguous().numpy().data)
    return f'{{"crc32":"{checksum:08x}","key":{key}}}'


def _is_finite(embedding: Tensor) -> bool:
    # By the exponent, ten times as fast as isfinite in half precision.
    exponents = embedding.numpy().view(np.uint16) & 0x7C00
    return not bool((exponents == 0x7C00).any())
