"""One file over HTTP, to a part beside its place; what was begun is gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.error import HTTPError
from urllib.request import Request, build_opener

from converters.errors import InputError
from converters.files import read_json, write_json
from toolkit.console import progress

MEGABYTE = 1_000_000
_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


class DownloadError(Exception):
    """A download that came to nothing; the message is the reason."""


class BrokenOffError(DownloadError):
    """A download that ended too early; its part stays."""


class _NoSuchRangeError(DownloadError):
    """The server's file ends before what was asked for."""


def part_of(target: Path) -> Path:
    """Where a file lies while it is downloaded."""
    return target.with_name(f"{target.name}.part")


def download(url: str, target: Path, size: int | None, *, has_digest: bool) -> Path:
    """Download all bytes of a file to its part, from where an earlier attempt broke off.

    Args:
        url: where it is.
        target: the place that it is for; nothing is written there.
        size: bytes that it must have; None takes what the server says.
        has_digest: whether the caller can tell a wrong file. If not, a part is gone on with only
            where the server says that its file is still the same.

    Returns:
        The part, to be checked and renamed.

    Raises:
        DownloadError: the server cannot be reached, or has a file of another size.
        BrokenOffError: it stopped midway.
    """
    part = part_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    response, start = _connect(url, part, has_digest)
    with response:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else size
        if size is not None and total != size:
            raise DownloadError(f"what is there has {total:,} bytes, not {size:,}")
        if start == 0:
            discard(part)
            write_json(_origin_of(part), {"url": url, "version": _version(response)})
        _append(response, part, start, total)
    return part


def discard(part: Path) -> None:
    """Remove a part, and what is known of it."""
    part.unlink(missing_ok=True)
    _origin_of(part).unlink(missing_ok=True)


def finish(part: Path, target: Path) -> None:
    """Give a part that is whole its name."""
    part.replace(target)
    _origin_of(part).unlink(missing_ok=True)


def _origin_of(part: Path) -> Path:
    """Where it is written what a part is a part of."""
    return part.with_name(f"{part.name}.json")


def _connect(url: str, part: Path, has_digest: bool) -> tuple[HTTPResponse, int]:
    """A response, and the number of bytes of the part that it goes on from."""
    headers = _rest(url, part, has_digest)
    if headers:
        begun = part.stat().st_size
        with suppress(_NoSuchRangeError):
            response = _open(url, headers)
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                return response, 0
            if response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
                return response, begun
            response.close()
    return _open(url, {}), 0


def _rest(url: str, part: Path, has_digest: bool) -> dict[str, str]:
    """Headers that ask for the rest of a part; none where it has to begin again."""
    begun = part.stat().st_size if part.is_file() else 0
    if begun == 0:
        return {}
    headers = {"Range": f"bytes={begun}-"}
    version = _version_of(part, url)
    if version:
        return {**headers, "If-Range": version}
    return headers if has_digest else {}


def _version_of(part: Path, url: str) -> str:
    """Which version of the file at this address a part is of; empty where that is not known."""
    try:
        origin = read_json(_origin_of(part))
    except InputError:
        return ""
    same = isinstance(origin, dict) and origin.get("url") == url
    return str(origin.get("version", "")) if same else ""


def _version(response: HTTPResponse) -> str:
    tag = response.headers.get("ETag", "")
    is_strong = tag and not tag.startswith("W/")
    return tag if is_strong else response.headers.get("Last-Modified", "")


def _open(url: str, headers: dict[str, str]) -> HTTPResponse:
    try:
        request = Request(url, headers={"User-Agent": "defect-toolkit", **headers})
        return cast(HTTPResponse, build_opener().open(request, timeout=_TIMEOUT))
    except HTTPError as error:
        error.close()
        no_range = error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        kind = _NoSuchRangeError if no_range else DownloadError
        raise kind(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(_reason(error)) from error


def _append(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    done = start
    description = f"{part.stem}, MB"
    with part.open("ab" if start else "wb") as file, progress(description) as advance:
        try:
            for block in _blocks(response):
                file.write(block)
                done += len(block)
                advance(done // MEGABYTE, (total or done) // MEGABYTE)
            reason = "the server closed the connection"
        except BrokenOffError as error:
            if total is None:
                raise
            reason = str(error)
    if total is not None and done < total:
        raise BrokenOffError(f"{done:,} of {total:,} bytes came, then {reason}")
    if total is not None and done > total:
        raise DownloadError(f"more than {total:,} bytes came")


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, HTTPException) as error:
            raise BrokenOffError(_reason(error)) from error
        if not block:
            return
        yield block


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return f"no answer for {_TIMEOUT:.0f} s"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
