"""Class embeddings from phrases: what a class is called in words, through the encoder of CLIP.

A file of phrases is YAML, class names as the dataset has them::

    bent_lead:
      - bent lead of a transistor
      - transistor with a lead that is bent
    scratch: scratch on metal
    oil_stain:            # nothing: "oil stain"

A class's embedding is the mean of its phrases' unit vectors, made a unit vector again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from torch import Tensor

from converters.errors import InputError
from converters.folder import DatasetFolder, fold_numbers
from toolkit.config import FinetuneYoloConfig, PromptsMakeConfig
from toolkit.detect.clip import ARCHITECTURE, TextEncoder
from toolkit.detect.embeddings import (
    ClassEmbeddings,
    check_count,
    names_in,
    read_embeddings,
    resolve_embeddings,
)

Phrases: TypeAlias = dict[str, tuple[str, ...]]
"""Phrases by class name, in the order of the file; at least one for each."""

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Prompts:
    """What ``toolkit prompts make`` made.

    Attributes:
        path: the file.
        phrases: that the embeddings are of.
        embeddings: of the classes.
    """

    path: Path
    phrases: Phrases
    embeddings: ClassEmbeddings

    def most_alike(self) -> tuple[str, str, float] | None:
        """The two classes whose embeddings are nearest, and their cosine; None for one class."""
        names = self.embeddings.names
        if len(names) < 2:
            return None
        cosines = self.embeddings.vectors @ self.embeddings.vectors.T
        cosines.fill_diagonal_(-2.0)
        first, second = divmod(int(cosines.argmax()), len(names))
        return names[first], names[second], float(cosines[first, second])


def make_prompts(config: PromptsMakeConfig) -> Prompts:
    """Write the class embeddings of phrases to a file, for ``--embeddings`` on any machine.

    Raises:
        InputError: the file exists; phrases and dataset have other classes; the phrases or the
            weights of CLIP cannot be used.
    """
    if config.out.exists():
        raise InputError(f"{config.out}: exists: choose another --out or remove it")
    classes = None if config.dataset is None else _classes(config.dataset)
    phrases: Phrases
    if config.phrases is None:
        assert classes is not None, "refused by the configuration"
        phrases = {name: (_own_phrase(name),) for name in classes}
    else:
        phrases = read_phrases(config.phrases)
    if config.phrases is not None and classes is not None:
        check_classes(phrases, classes, f"{config.phrases}", f"{config.dataset}")
        phrases = _only(phrases, classes, config.phrases)
    embeddings = embed(phrases, TextEncoder.load(config.clip, trust=config.trust))
    embeddings.save(config.out)
    return Prompts(config.out, phrases, embeddings)


def choose_embeddings(
    names: tuple[str, ...], config: FinetuneYoloConfig, checkpoint: ClassEmbeddings | None
) -> ClassEmbeddings:
    """Embeddings to train with: of phrases, from a file, from the checkpoint, or made.

    Args:
        names: classes, in order.
        config: its ``embeddings`` is a file of phrases, one of embeddings, or None.
        checkpoint: as of ``resolve_embeddings``.

    Raises:
        InputError: as of ``resolve_embeddings`` and ``embeddings_from``.
    """
    check_count(names)
    if config.embeddings is not None and is_phrases(config.embeddings):
        return embeddings_from(config.embeddings, names, config.clip, trust=config.trust)
    return resolve_embeddings(names, config.embeddings, checkpoint, config.seed)


def embeddings_from(
    path: Path, names: tuple[str, ...] | None, clip: str, *, trust: bool
) -> ClassEmbeddings:
    """Embeddings from a file of phrases (``.yaml``), encoded now, or of embeddings (safetensors).

    Args:
        path: the file.
        names: classes, in order; None for all that the file has, in its order.
        clip: weights of CLIP, as of ``TextEncoder.load``; looked at for phrases alone.
        trust: as of ``TextEncoder.load``.

    Raises:
        InputError: the file is missing, damaged, or lacks a class; the weights cannot be used.
    """
    if not is_phrases(path):
        return read_embeddings(path, names_in(path) if names is None else names)
    phrases = read_phrases(path)
    wanted = phrases if names is None else _only(phrases, names, path)
    return embed(wanted, TextEncoder.load(clip, trust=trust))


def is_phrases(path: Path) -> bool:
    """Whether a file holds phrases, by its name, rather than embeddings."""
    return path.suffix.lower() in _YAML


def read_phrases(path: Path) -> Phrases:
    """Read a file of phrases.

    Raises:
        InputError: it is missing or no YAML, is not a mapping, names a class twice, or has a class
            with something else than phrases.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of phrases") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: is not readable YAML ({reason}): correct it") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: must map class names to phrases (scratch: scratch on metal)")
    found: Phrases = {}
    for key, value in content.items():
        name = _class_name(path, key)
        if name in found:  # 1 and "1"
            raise InputError(f"{path}: class {name!r} comes twice: keep one")
        found[name] = _phrases(path, name, value)
    return found


def embed(
    phrases: Mapping[str, Sequence[str]], encode: Callable[[Sequence[str]], Tensor]
) -> ClassEmbeddings:
    """The embedding of every class: the mean of its phrases' vectors, of length 1.

    Args:
        phrases: by class name.
        encode: phrases to unit vectors, shape (phrases, 512).
    """
    every = list(dict.fromkeys(phrase for each in phrases.values() for phrase in each))
    vectors = dict(zip(every, encode(every), strict=True))
    means = torch.stack(
        [torch.stack([vectors[phrase] for phrase in each]).mean(dim=0) for each in phrases.values()]
    )
    origins = tuple(f"{ARCHITECTURE}: {', '.join(map(repr, each))}" for each in phrases.values())
    return ClassEmbeddings(tuple(phrases), torch.nn.functional.normalize(means, dim=-1), origins)


def check_classes(
    names: Iterable[str], known: Collection[str], where: str, known_where: str
) -> None:
    """Refuse classes that data do not have.

    Args:
        names: classes that were given.
        known: classes of the data.
        where: file of the classes, for the message.
        known_where: folder of the data.

    Raises:
        InputError: one is unknown; the nearest known one is suggested.
    """
    for name in names:
        if name not in known:
            raise InputError(
                f"{where}: has a class {name!r}, and {known_where} has none: {_hint(name, known)}"
            )


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} comes {keys.count(key)} times")
        return super().construct_mapping(node, deep)


def _class_name(path: Path, name: object) -> str:
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if not isinstance(name, str):  # YAML takes no, off and 1.0 for something else than words
        raise InputError(f'{path}: {name!r} is not a class name: put it in quotes ("…")')
    return name


def _phrases(path: Path, name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return (_own_phrase(name),)
    given = value if isinstance(value, list) else [value]
    phrases = [each.strip() for each in given if isinstance(each, str)]
    if not given or len(phrases) < len(given) or not all(phrases):
        raise InputError(
            f"{path}: class {name!r}: must have a phrase, a list of phrases, or nothing for its "
            f"own name, not {value!r}"
        )
    return tuple(dict.fromkeys(phrases))


def _own_phrase(name: str) -> str:
    return name.replace("_", " ").strip()


def _only(phrases: Phrases, names: Iterable[str], path: Path) -> Phrases:
    """The phrases of some classes, in their order."""
    for name in names:
        if name not in phrases:
            raise InputError(f"{path}: has no phrases for class {name!r}: {_hint(name, phrases)}")
    return {name: phrases[name] for name in names}


def _hint(name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(list(known)[:5])}"


def _classes(dataset: Path) -> tuple[str, ...]:
    """Classes of a dataset folder, which are the same in all of its folds and splits."""
    folds = fold_numbers(dataset)
    whole = not folds or (dataset / "test.json").is_file()
    folder = DatasetFolder.open(dataset, None if whole else folds[0])
    splits = folder.splits()
    if not splits:
        raise InputError(f"{dataset}: has no split: convert again")
    return folder.read(splits[0]).categories
