"""The folder of official weights: what is in it, whether that is whole, and how it gets there."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from converters.errors import InputError
from converters.files import read_json, write_json
from toolkit.console import progress
from toolkit.known_weights import KNOWN, KnownWeights, look_up, named

if TYPE_CHECKING:
    from toolkit.config import WeightsGetConfig, WeightsListConfig, WeightsVerifyConfig

Status: TypeAlias = Literal["ok", "unknown", "damaged"]

_MEGABYTE = 1_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Listed:
    """Weights of the list, and where they are.

    Attributes:
        known: the weights.
        path: their file; None where it is not here.
        size_bytes: of the file, or what it will be; None where that is not known.
    """

    known: KnownWeights
    path: Path | None
    size_bytes: int | None


@dataclass(frozen=True)
class Checked:
    """What came of checking a file.

    Attributes:
        path: the file.
        status: ok, damaged, or unknown where there is nothing to compare it with.
        sha256: of the file.
        detail: what it was compared with, or what is wrong.
    """

    path: Path
    status: Status
    sha256: str
    detail: str


@dataclass(frozen=True)
class Got:
    """What came of getting weights.

    Attributes:
        known: the weights.
        checked: their file; None for what comes with the toolkit.
        downloaded: whether it was not here before.
    """

    known: KnownWeights
    checked: Checked | None
    downloaded: bool


def list_weights(config: WeightsListConfig) -> list[Listed]:
    """All weights that are known by name, and where they lie."""
    return [_listed(known, known.place(config.folder)) for known in KNOWN]


def get_weights(config: WeightsGetConfig) -> Got:
    """Download weights into a folder, unless they are there.

    Raises:
        InputError: there are no such weights, they cannot be downloaded, or what was downloaded or
            was there already is not them.
    """
    known = named(config.name)
    path = known.place(config.folder)
    if known.url is None:
        return Got(known, None, downloaded=False)
    if not path.exists():
        return Got(known, _download(known, config.url or known.url, path), downloaded=True)
    checked = check(path, known)
    if checked.status == "damaged":
        raise InputError(f"{path}: {checked.detail}: remove it and get it again")
    return Got(known, checked, downloaded=False)


def verify_weights(config: WeightsVerifyConfig) -> list[Checked]:
    """Check one file of weights, or all that lie in a folder.

    Raises:
        InputError: there is no such file or folder.
    """
    if config.name_or_path is not None:
        path = _path_of(config.name_or_path, config.folder)
        return [check(path, look_up(path.name))]
    if not config.folder.is_dir():
        raise InputError(f"{config.folder}: no such folder: `toolkit weights get NAME` makes it")
    return [
        check(path, look_up(path.name))
        for path in sorted(config.folder.iterdir())
        if _is_weights(path)
    ]


def check(path: Path, known: KnownWeights | None) -> Checked:
    """Compare a file with what is known of it, or with what was written when it was downloaded."""
    sha256 = _digest(path)
    if known is not None and known.url is None:
        return _check_starter(path, sha256)
    facts = _facts_of(path)
    return _compare(path, known, sha256, read_json(facts) if facts.is_file() else None)


def _listed(known: KnownWeights, path: Path) -> Listed:
    if not path.is_file():
        return Listed(known, None, known.size_bytes)
    return Listed(known, path, path.stat().st_size)


def _path_of(name_or_path: str, folder: Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.name != name_or_path:
        raise InputError(f"{path}: no such file")
    known = named(name_or_path)
    place = known.place(folder)
    if place.is_file():
        return place
    how = "install again" if known.url is None else f"`toolkit weights get {known.name}`"
    raise InputError(f"{place}: no such file: {how}")


def _is_weights(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.is_file() and not is_hidden and path.suffix not in (".json", ".part")


def _facts_of(path: Path) -> Path:
    """Where it is written what a file was when it was downloaded."""
    return path.with_name(f"{path.name}.json")


def _compare(path: Path, known: KnownWeights | None, sha256: str, facts: object) -> Checked:
    if known is not None and known.sha256 is not None:
        return _verdict(path, sha256, known.sha256, "on the list")
    prefix = None if known is None else known.sha256_prefix
    if prefix is not None and not sha256.startswith(prefix):
        return _verdict(path, sha256, f"{prefix}…", "in its name")
    if isinstance(facts, dict) and "sha256" in facts:
        origin = f"when it was downloaded from {facts.get('url')}"
        return _verdict(path, sha256, str(facts["sha256"]), origin)
    if prefix is not None:
        return Checked(path, "ok", sha256, f"SHA-256 begins with {prefix}, as in its name")
    return Checked(path, "unknown", sha256, f"no SHA-256 of it is on the list; it is {sha256}")


def _verdict(path: Path, sha256: str, expected: str, origin: str) -> Checked:
    if sha256 == expected:
        return Checked(path, "ok", sha256, f"SHA-256 as {origin}")
    return Checked(path, "damaged", sha256, f"SHA-256 is {sha256}, not {expected} as {origin}")


def _check_starter(path: Path, sha256: str) -> Checked:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError):
        return Checked(path, "damaged", sha256, "is no whole safetensors file: install again")
    detail = f"opens, but no SHA-256 of it is on the list; it is {sha256}"
    return Checked(path, "unknown", sha256, detail)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file, progress(f"checking {path.name}, MB") as advance:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            advance(done // _MEGABYTE, total // _MEGABYTE)
    return digest.hexdigest()


def _download(known: KnownWeights, url: str, path: Path) -> Checked:
    """Download to a part, check that, and only then give it its name."""
    from toolkit.download import BrokenOffError, DownloadError, discard, download, finish

    has_digest = known.sha256 is not None or known.sha256_prefix is not None
    try:
        part = download(url, path, known.size_bytes, has_digest=has_digest)
    except BrokenOffError as error:
        raise InputError(
            f"{path}: broke off ({error}): give the same command again, which goes on from there "
            f"where the server can; or {_by_hand(known, path)}"
        ) from error
    except DownloadError as error:
        raise InputError(
            f"{known.file_name}: cannot be downloaded from {url} ({error}): {_by_hand(known, path)}"
        ) from error
    checked = _compare(path, known, _digest(part), None)
    problem = checked.detail if checked.status == "damaged" else ""
    if not has_digest and not zipfile.is_zipfile(part):
        problem = "it is no PyTorch file"
    if problem:
        discard(part)
        raise InputError(f"{known.file_name}: {url} gave another file ({problem}): try --url")
    facts = {"url": url, "licence": known.licence, "sha256": checked.sha256}
    write_json(_facts_of(path), {**facts, "size_bytes": part.stat().st_size}, indent=2)
    finish(part, path)
    return checked


def _by_hand(known: KnownWeights, path: Path) -> str:
    digest = "no SHA-256 of it is known"
    if known.sha256 is not None:
        digest = f"SHA-256 {known.sha256}"
    elif known.sha256_prefix is not None:
        digest = f"its SHA-256 begins with {known.sha256_prefix}"
    return f"download {known.url} on another computer ({digest}) and put it at {path}"
