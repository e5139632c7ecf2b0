"""Weights that the toolkit knows by name: whose they are, where they come from, how to tell them.

Nothing here downloads: ``toolkit weights get`` does, and nothing else.

A SHA-256 is listed only where it is certain. The digits in the names of torchvision's files are
the first eight of theirs; those in the names of SAM's files are of an MD5, and are not used.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from converters.errors import InputError

FOLDER = Path("weights")
"""Where weights lie, in the folder that a command is run in."""

_STARTERS = Path(__file__).parent / "starter"
_ULTRALYTICS = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
_ULTRALYTICS_26 = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
_SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything"
_TORCHVISION = "https://download.pytorch.org/models"
_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_UNKNOWN = "no SHA-256 of it is known"
_IMAGENET = "learnt from ImageNet (own terms)"
_OURS = "--weights starter"

CLIP = "clip-vit-b-32"
"""Name of the text encoder that YOLO-World was made with."""
_CLIP_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"


@dataclass(frozen=True)
class KnownWeights:
    """One file of weights.

    Attributes:
        name: what it is called on the command line.
        file_name: what its file is called.
        task: the command that it is for.
        licence: as an SPDX identifier.
        url: where its authors publish it; None for what comes with the toolkit.
        sha256: of its bytes, where that is certain.
        sha256_prefix: first digits of it, where its authors put them into its name.
        size_bytes: of the file, where that is certain.
        note: what else one has to know.
    """

    name: str
    file_name: str
    task: str
    licence: str
    url: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    size_bytes: int | None = None
    note: str = ""

    def place(self, folder: Path = FOLDER) -> Path:
        """Where its file lies, or would."""
        return (_STARTERS if self.url is None else folder) / self.file_name


def _yolo_world(scale: str) -> KnownWeights:
    name = f"yolov8{scale}-worldv2"
    url = f"{_ULTRALYTICS}/{name}.pt"
    return KnownWeights(name, f"{name}.pt", "finetune yolo", "AGPL-3.0", url, note=_UNKNOWN)


def _plain(name: str) -> KnownWeights:
    release = _ULTRALYTICS_26 if name.startswith("yolo26") else _ULTRALYTICS
    url = f"{release}/{name}.pt"
    return KnownWeights(
        name, f"{name}.pt", "finetune yolo", "AGPL-3.0", url, note=f"--arch {name}; {_UNKNOWN}"
    )


def _sam(name: str, sha256: str, size: int) -> KnownWeights:
    url = f"{_SEGMENT_ANYTHING}/{name}.pth"
    return KnownWeights(
        name, f"{name}.pth", "finetune sam", "Apache-2.0", url, sha256, size_bytes=size
    )


def _resnet(name: str, sha256: str | None = None, size: int | None = None) -> KnownWeights:
    return KnownWeights(
        name,
        f"{name}.pth",
        "finetune classifier",
        "BSD-3-Clause",
        f"{_TORCHVISION}/{name}.pth",
        sha256,
        sha256_prefix=name.rpartition("-")[2],
        size_bytes=size,
        note=_IMAGENET,
    )


def _starter(name: str, task: str) -> KnownWeights:
    return KnownWeights(name, f"{name}.safetensors", task, "AGPL-3.0-or-later", note=_OURS)


KNOWN: tuple[KnownWeights, ...] = (
    _starter("yolo_world_n", "finetune yolo"),
    _starter("sam_nano", "finetune sam"),
    _starter("resnet18", "finetune classifier"),
    *(_yolo_world(scale) for scale in "smlx"),
    *(_plain(f"{family}{scale}") for family in ("yolov8", "yolo11", "yolo26") for scale in "nsmlx"),
    *(_plain(f"rtdetr-{scale}") for scale in "lx"),
    _sam(
        "sam_vit_b_01ec64",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    _sam(
        "sam_vit_l_0b3195",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    _sam(
        "sam_vit_h_4b8939",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
    _resnet(
        "resnet18-f37072fd",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        46_830_571,
    ),
    _resnet("resnet34-b627a593"),
    _resnet("resnet50-0676ba61"),
    _resnet(
        "resnet50-11ad3fa6",
        "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
        102_540_417,
    ),
    *(_resnet(f"wide_resnet50_2-{digits}") for digits in ("95faca4d", "9ba9bcbe")),
    *(_resnet(f"wide_resnet101_2-{digits}") for digits in ("32ee1156", "d733dc28")),
    KnownWeights(
        CLIP,
        "ViT-B-32.pt",
        "prompts make",
        "MIT",
        f"{_OPENAI}/{_CLIP_SHA256}/ViT-B-32.pt",
        _CLIP_SHA256,
        note="turns phrases into class embeddings",
    ),
)


def look_up(name: str) -> KnownWeights | None:
    """The weights of this name or file name; None where there are none."""
    return next((known for known in KNOWN if name in (known.name, known.file_name)), None)


def named(name: str) -> KnownWeights:
    """The weights of this name or file name.

    Raises:
        InputError: there are none; the nearest name is suggested.
    """
    known = look_up(name)
    if known is not None:
        return known
    names = [each.name for each in KNOWN]
    nearest = [each for each in names if name and each.startswith(name)]
    nearest += difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "`toolkit weights list` has all names"
    raise InputError(f"{name}: no such weights: {hint}")


def find(name: str) -> Path | None:
    """The file of official weights in ``weights/`` of the current folder; None if not there.

    Args:
        name: of the weights or of their file, without a folder.
    """
    known = look_up(name)
    if known is None or known.url is None:
        return None
    path = known.place()
    return path if path.is_file() else None


def located(weights: str) -> Path:
    """What ``--weights`` means: a path as it is given, or official weights in ``weights/``.

    Raises:
        InputError: official weights that are not there; it says how to get them.
    """
    path = Path(weights)
    found = path if path.exists() else find(weights)
    if found is not None:
        return found
    known = next((k for k in KNOWN if weights == k.name or path.name == k.file_name), None)
    if known is None or known.url is None:
        return path
    raise InputError(
        f"{weights}: no such file: download it from {known.url} by "
        f"`toolkit weights get {known.name}`, or put it at {known.place()} by hand"
    )
