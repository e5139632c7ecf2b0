"""What is wrong, or worth knowing, about a dataset: one finding per file and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from converters.errors import InputError

Severity = Literal["error", "warning", "info"]

_RANK: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, order=True)
class Finding:
    """One thing found.

    Attributes:
        severity: "error" prevents the work, "warning" may spoil it, "info" is worth knowing.
        code: kind of finding, for counting ("empty-mask").
        file: path it is about, relative to the source or dataset; empty where it is about all.
        message: what is the matter.
        remedy: what to do about it.
    """

    severity: Severity
    code: str
    file: str
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values, for JSON and YAML."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return f"{where}{self.message}" + (f": {self.remedy}" if self.remedy else "")


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, each by kind and file; the same on every machine."""
    return sorted(findings, key=lambda f: (_RANK[f.severity], f.code, f.file, f.message))


def count_by_code(findings: Iterable[Finding]) -> dict[str, int]:
    """How many there are of each kind, sorted by kind."""
    return dict(sorted(Counter(finding.code for finding in findings).items()))


def refuse_errors(findings: Iterable[Finding], root: str) -> None:
    """Stop at findings that prevent the work.

    Raises:
        InputError: names the first one and says how many more there are.
    """
    errors = [finding for finding in ordered(findings) if finding.severity == "error"]
    if not errors:
        return
    more = len(errors) - 1
    rest = f" (and {more} more: `toolkit check {root}` lists them)" if more else ""
    raise InputError(f"{root}: {errors[0]}{rest}")
