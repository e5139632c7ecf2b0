"""The text encoder of CLIP ViT-B/32, which YOLO-World learnt to compare picture regions with.

Reference: CLIP (arXiv 2103.00020); the modules are open_clip's. Weights are read from a file on
this machine: OpenAI's own archive, or their weights as open_clip saves them (safetensors, or a
pickled state dict), of which the text tower alone is kept. Nothing is downloaded.

A phrase becomes what ultralytics would make of it: its tokens through the text tower in single
precision, divided by their length, without any template around the phrase.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from converters.errors import InputError
from toolkit.detect.embeddings import EMBEDDING_SIZE
from toolkit.known_weights import CLIP, find, named

ARCHITECTURE = "CLIP ViT-B/32"
PATCH = 32
"""Side of the patches that the image tower cuts pictures into; ViT-B/16 has the same text tower."""

_HEAD_WIDTH = 64
_BATCH = 64
_TOWER = (
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_projection",
)
_PREFIXES = ("module.", "text.")
_BLOCK = 1 << 20


class TextEncoder:
    """Phrases to unit vectors.

    Args:
        tower: text tower, tokens of shape (n, context) to vectors of shape (n, 512).
        tokenizer: phrases to tokens, as open_clip's.
        source: name of the file that the weights come from.
    """

    def __init__(self, tower: nn.Module, tokenizer: Any, source: str) -> None:
        self.source = source
        self._tower = tower.eval()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, clip: str, *, trust: bool = False) -> TextEncoder:
        """Load the text encoder on the CPU.

        Args:
            clip: "clip-vit-b-32" for the official file in ``weights/``, or a path.
            trust: load a file that could run code, though its SHA-256 is not the official one's.

        Raises:
            InputError: open_clip is not installed; the file is missing, damaged, not to be trusted,
                or holds no OpenAI CLIP ViT-B/32.
        """
        path = _located(clip)
        open_clip = _import_open_clip()
        state = _text_tower(path, _read(path, trust))
        tower = _build(path, state)
        return cls(tower, open_clip.tokenizer.SimpleTokenizer(), path.name)

    @torch.no_grad()
    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """Encode phrases.

        Returns:
            shape (phrases, 512), float32, each row of length 1.

        Raises:
            InputError: a phrase has more tokens than CLIP reads (ultralytics would cut it).
        """
        context = int(self._tower.context_length)  # type: ignore[arg-type]
        for phrase in phrases:
            count = len(self._tokenizer.encode(phrase))
            if count > context - 2:  # one token marks the beginning, one the end
                raise InputError(
                    f"the phrase {_short(phrase)!r} has {count} tokens, and CLIP reads "
                    f"{context - 2}: say it in fewer words"
                )
        tokens = self._tokenizer(list(phrases), context_length=context)
        vectors: Tensor = torch.cat([self._tower(batch) for batch in tokens.split(_BATCH)])
        unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
        return unit


def missing_clip(path: Path) -> InputError:
    """The one line about weights of CLIP that are not there: which, from where, and what else."""
    known = named(CLIP)
    return InputError(
        f"{path}: no such file, and phrases need the weights of {ARCHITECTURE}: get them by "
        f"`toolkit weights get {known.name}`, or bring {known.url} (SHA-256 {known.sha256}) and "
        f"put it at {known.place()}; or make the class embeddings where the weights are, by "
        "`toolkit prompts make PHRASES.yaml --out FILE.safetensors`, and give that file"
    )


def _located(clip: str) -> Path:
    path = Path(clip)
    found = path if path.is_file() else find(clip)
    if found is not None:
        return found
    known = named(CLIP)
    raise missing_clip(known.place() if clip in (known.name, known.file_name) else path)


def _import_open_clip() -> Any:
    # open_clip brings a client of a model hub along, which is told to stay off the network.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    try:
        import open_clip
        import open_clip.tokenizer
    except ImportError as error:
        raise InputError(
            'phrases need the library open_clip: pip install "defect-toolkit[clip]", or make the '
            "class embeddings where it is, by `toolkit prompts make`"
        ) from error
    return open_clip


def _read(path: Path, trust: bool) -> Mapping[str, Any]:
    """Tensors by name, from a file of any of the three kinds.

    TorchScript archives and other pickles can run code when they are loaded: they must be the
    official file, or trusted.
    """
    damaged = f"{path}: is damaged or no file of CLIP: get it again"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_program(path):
            _check_trusted(path, trust)
            return _tensors_of_program(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            if not zipfile.is_zipfile(path):  # a cut archive looks like a pickle of the old kind
                raise
            _check_trusted(path, trust)
            content = torch.load(path, map_location="cpu", weights_only=False)
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(damaged) from error
    except Exception as error:  # bytes that are no pickle make an unpickler raise nearly anything
        raise InputError(damaged) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, not weights by name: {_ASK}")
    return content


_ASK = f"give a file of OpenAI's {ARCHITECTURE}"


def _tensors_of_program(path: Path) -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would like other formats better
        program: Any = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    state: dict[str, Tensor] = program.state_dict()
    return state


def _is_program(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_trusted(path: Path, trust: bool) -> None:
    if trust:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    known = named(CLIP)
    if digest.hexdigest() != known.sha256:
        raise InputError(
            f"{path}: could run any code when it is loaded, and its SHA-256 is "
            f"{digest.hexdigest()}, not {known.sha256} of the official file: get that by "
            f"`toolkit weights get {known.name}`, or give --trust if you know where it is from"
        )


def _text_tower(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The text tower's tensors in single precision, under OpenAI's names."""
    state = {str(name): tensor for name, tensor in content.items()}
    for prefix in _PREFIXES:
        if any(name.startswith(f"{prefix}{_TOWER[0]}") for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    stem = state.get("visual.conv1.weight")
    if stem is not None and stem.shape[-1] != PATCH:
        raise InputError(f"{path}: is a CLIP with patches of {stem.shape[-1]} pixels: {_ASK}")
    tower = {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and name.startswith(_TOWER)
    }
    tower.pop("transformer.attn_mask", None)
    if not all(torch.isfinite(tensor).all() for tensor in tower.values()):
        raise InputError(f"{path}: has values that are not finite: get it again")
    kernels = [tensor for name, tensor in tower.items() if name.endswith("in_proj_weight")]
    if not all(torch.equal(kernel, kernel.half().to(kernel.dtype)) for kernel in kernels):
        raise InputError(
            f"{path}: its weights are finer than half precision, as OpenAI's are not, so it is "
            f"another training of CLIP, which YOLO-World does not understand: {_ASK}"
        )
    return {name: tensor.float() for name, tensor in tower.items()}


def _build(path: Path, state: dict[str, Tensor]) -> nn.Module:
    """open_clip's text tower in the dimensions of the tensors."""
    from open_clip.transformer import QuickGELU, TextTransformer

    try:
        projection = state["text_projection"]
        width, size = projection.shape
        context = state["positional_embedding"].shape[0]
        vocabulary = state["token_embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: has no text encoder of CLIP's: {_ASK}") from error
    if size != EMBEDDING_SIZE:
        raise InputError(f"{path}: gives {size} numbers, not {EMBEDDING_SIZE}: {_ASK}")
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    tower: nn.Module = TextTransformer(
        context_length=context,
        vocab_size=vocabulary,
        width=width,
        heads=max(1, width // _HEAD_WIDTH),
        layers=len(blocks),
        output_dim=size,
        act_layer=QuickGELU,
    )
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: is no whole text encoder of CLIP's: get it again") from error
    return tower


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
