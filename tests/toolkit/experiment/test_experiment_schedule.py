from __future__ import annotations

import pytest

from toolkit.experiment.schedule import Outcome, work_off


class FakeTask:
    """Ends after some looks."""

    going = 0
    most = 0

    def __init__(self, looks: int, error: str = "") -> None:
        self.looks, self.error, self.stopped = looks, error, False
        FakeTask.going += 1
        FakeTask.most = max(FakeTask.most, FakeTask.going)

    def poll(self) -> Outcome | None:
        self.looks -= 1
        if self.looks > 0:
            return None
        FakeTask.going -= 1
        return Outcome(self.error)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def nothing_goes_on() -> None:
    FakeTask.going = FakeTask.most = 0


def test_what_is_needed_comes_first_and_no_more_go_on_than_wanted() -> None:
    needs = {"c": "b", "a": None, "b": "a", "d": None, "e": "finished before"}
    started: list[str] = []
    ended: list[str] = []

    def start(name: str) -> FakeTask:
        need = needs[name]
        assert need not in needs or need in ended
        started.append(name)
        return FakeTask(looks=2)

    work_off(needs, start, at_once=2, ended=lambda name, _: ended.append(name), pause=0)
    assert sorted(started) == sorted(ended) == sorted(needs)
    assert started[:2] == ["a", "d"]
    assert FakeTask.most == 2


def test_a_failure_keeps_back_what_needs_it_and_nothing_else() -> None:
    needs = {"bad": None, "after bad": "bad", "after that": "after bad", "good": None}
    started: list[str] = []
    outcomes: dict[str, str] = {}

    def start(name: str) -> FakeTask:
        started.append(name)
        return FakeTask(1, "broke" if name == "bad" else "")

    def ended(name: str, outcome: Outcome) -> None:
        outcomes[name] = outcome.error

    work_off(needs, start, at_once=1, ended=ended, pause=0)
    assert started == ["bad", "good"]
    assert outcomes == {
        "bad": "broke",
        "after bad": "was not begun, because bad failed",
        "after that": "was not begun, because after bad failed",
        "good": "",
    }


def test_what_goes_on_is_stopped_when_the_experiment_is() -> None:
    tasks: list[FakeTask] = []

    def start(name: str) -> FakeTask:
        if name == "b":
            raise KeyboardInterrupt
        tasks.append(FakeTask(looks=100))
        return tasks[-1]

    with pytest.raises(KeyboardInterrupt):
        work_off({"a": None, "b": None}, start, at_once=2, ended=lambda *_: None)
    assert [task.stopped for task in tasks] == [True]
