"""Class embeddings: from a file, from a checkpoint, or made; stored with their origin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from converters.errors import InputError
from toolkit.detect.embeddings import (
    ClassEmbeddings,
    make_embeddings,
    read_embeddings,
    resolve_embeddings,
)


def _known(*names: str) -> ClassEmbeddings:
    return ClassEmbeddings(names, make_embeddings(len(names), 99), ("from x.pt",) * len(names))


def test_made_embeddings_are_orthonormal_and_depend_on_the_seed_alone() -> None:
    made = make_embeddings(80, seed=3)

    assert made.dtype == torch.float32
    assert torch.allclose(made @ made.T, torch.eye(80), atol=1e-6)
    assert torch.equal(made, make_embeddings(80, seed=3))
    assert not torch.allclose(made, make_embeddings(80, seed=4))


def test_made_embeddings_are_the_same_on_every_machine() -> None:
    # Recorded once; LAPACK may choose the signs of QR freely, which must not show.
    first, second = make_embeddings(2, seed=0)[:, :2].tolist()
    assert first == pytest.approx([0.0055017625, -0.0057807071], abs=1e-8)
    assert second == pytest.approx([-0.0260046329, -0.0060431925], abs=1e-8)


def test_matching_names_come_from_the_checkpoint_and_the_rest_is_orthogonal_to_them() -> None:
    known = _known("person", "spot")

    found = resolve_embeddings(("crack", "spot", "dent"), None, known, seed=0)

    assert found.origins == ("made (seed 0)", "from x.pt", "made (seed 0)")
    assert torch.equal(found.vectors[1], known.vectors[1])
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(3), atol=1e-6)


def test_a_file_is_read_by_class_name_and_normalised(tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    save_file({"a": torch.full((1, 512), 2.0, dtype=torch.float16), "b/c": torch.ones(512)}, path)

    found = resolve_embeddings(("b/c", "a"), path, _known("a"), seed=0)

    assert found.names == ("b/c", "a")
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(2))
    assert found.origins == ("from classes.safetensors",) * 2


def test_saving_and_reading_keeps_vectors_order_and_origins(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.safetensors"
    written = resolve_embeddings(("z/1", "a", " spaced "), None, _known("a"), seed=1)
    written.save(path)

    back = read_embeddings(path, written.names)

    assert back.origins == written.origins
    assert torch.allclose(back.vectors, written.vectors, atol=1e-7)


def test_a_class_that_the_file_lacks_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    save_file({"bent_lead": torch.ones(512)}, path)

    with pytest.raises(InputError, match="'bent-lead': did you mean 'bent_lead'"):
        read_embeddings(path, ("bent-lead",))


@pytest.mark.parametrize(
    "vector", [torch.ones(511), torch.zeros(512), torch.full((512,), float("nan"))]
)
def test_a_vector_that_is_no_embedding_is_refused(tmp_path: Path, vector: torch.Tensor) -> None:
    path = tmp_path / "classes.safetensors"
    save_file({"a": vector}, path)

    with pytest.raises(InputError, match="class 'a': must be 512 finite numbers"):
        read_embeddings(path, ("a",))


def test_a_missing_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_embeddings(tmp_path / "none.safetensors", ("a",))
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(InputError, match="is not a safetensors file"):
        read_embeddings(tmp_path / "text.safetensors", ("a",))


def test_more_classes_than_ultralytics_trains_are_refused() -> None:
    with pytest.raises(InputError, match=r"81 classes: .* at most 80"):
        resolve_embeddings(tuple(str(i) for i in range(81)), None, None, seed=0)
