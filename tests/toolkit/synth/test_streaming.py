"""Batches without end: the same ones for any number of workers, from any place on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from toolkit.synth.picture import Sample
from toolkit.synth.source import SourceDomain
from toolkit.synth.streaming import SynthBatches, load


def _collate(pictures: Sequence[Sample], number: int) -> tuple[int, bytes]:
    return number, b"".join(picture.image.tobytes() for picture in pictures)


def _stream(start: int, count: int | None) -> SynthBatches[tuple[int, bytes]]:
    return SynthBatches(SourceDomain(32), _collate, batch=2, seed=7, start=start, count=count)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers: int) -> None:
    assert list(load(_stream(0, 5), workers)) == list(load(_stream(0, 5), 0))


def test_a_stream_goes_on_where_it_was_stopped() -> None:
    whole = list(load(_stream(0, 5), 0))

    assert list(load(_stream(3, 2), 2)) == whole[3:]


def test_no_two_batches_are_alike() -> None:
    pictures = [data for _, data in load(_stream(0, 6), 0)]

    assert len(set(pictures)) == 6


def test_without_a_count_it_never_ends() -> None:
    stream = load(_stream(10**6, None), 0)

    assert [next(stream)[0] for _ in range(3)] == [10**6, 10**6 + 1, 10**6 + 2]
