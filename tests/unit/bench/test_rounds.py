"""The benchmark of the runtime: who is measured when, what counts, and who takes no further part."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.bench.bars.contenders import ContenderLost
from tests.bench.bars.judging import MET, MISSED, UNKNOWN, Bar
from tests.bench.bars.lineup import BF16, STATIC, TAKES
from tests.bench.bars.rounds import Results, minutes, play, started, wanted_rounds
from tests.bench.bars.verdicts import RATES
from tests.bench.bars.work import FULL, QUICK, Book, Job, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence


class Words:
    """A tokenizer that knows one token for each word."""

    def __init__(self) -> None:
        self._words: list[str] = []

    def encode(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self._words:
                self._words.append(word)
        return [self._words.index(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " " + " ".join(self._words[one] for one in ids)


class Player:
    """A contender whose every token takes ``cpu`` seconds; it fails at job number ``fails_at``."""

    def __init__(
        self, name: str, turns: list[tuple[str, str]], *, cpu: float = 1.0, fails_at: int = -1
    ) -> None:
        self.name, self.start_seconds, self.peak_bytes = name, 0.0, 0
        self.stopped = 0
        self._turns, self._cpu, self._fails_at, self._jobs = turns, cpu, fails_at, 0

    async def start(self) -> None:
        if self._fails_at == 0:
            raise ContenderLost("no such program")

    async def run(self, job: Job) -> Sample:
        if job.name != "warm":
            self._turns.append((self.name, job.name))
            self._jobs += 1
        if self._jobs == self._fails_at:
            raise ContenderLost("it ended")
        tokens = sum(job.tokens)
        return Sample(tokens, tokens * self._cpu, 1.0)

    async def stop(self) -> None:
        self.stopped += 1


def played(
    players: list[Player], rounds: int, *, until: float = float("inf")
) -> tuple[Results, dict[str, str]]:
    missing: dict[str, str] = {}
    takes = dict.fromkeys(TAKES, tuple(one.name for one in players))
    book = Book(Words())

    async def game() -> Results:
        async with started(players, missing, book, lambda _: None) as running:
            return await play(
                running, takes, missing, book, rounds, gpu=False, until=until, say=lambda _: None
            )

    return asyncio.run(game()), missing


def test_no_prompt_is_given_twice_but_where_a_prefix_is_to_be_found_again() -> None:
    book = Book(Words(), seed=3)
    rounds = [book.round() for _ in range(20)]
    given = [
        prompt for jobs in rounds for name, job in jobs.items() if name != "hit" for prompt in job.prompts
    ]
    openings = [" ".join(prompt.split()[:16]) for prompt in given]
    assert len(set(openings)) == len(openings), "a prefix cache keeps blocks of 16 tokens"
    for jobs in rounds:
        assert set(jobs["hit"].prompts) == {jobs["cold"].prompts[0]}
        assert len(jobs["cold"].prompts[0].split()) >= FULL.prefix


def test_everybody_is_given_the_same_work() -> None:
    one, other = (Book(Words(), seed=1).round() for _ in range(2))
    assert one == other
    for job in (one["1"], one["8"], one["32"]):
        assert all(FULL.fewest <= count <= FULL.most for count in job.tokens)
        assert all(len(prompt.split()) <= FULL.longest for prompt in job.prompts)


def test_quick_jobs_are_the_same_jobs_with_less_to_do() -> None:
    full, quick = Book(Words()).round(), Book(Words(), QUICK).round()
    assert quick.keys() == full.keys()
    assert all(sum(quick[name].tokens) <= sum(full[name].tokens) for name in full)
    assert sum(len(job.prompts) for job in quick.values()) < 20


def test_a_job_is_done_in_batches_of_its_streams() -> None:
    job = Job("x", 2, ("a", "b", "c"), (1, 2, 3))
    assert list(job.batches()) == [(("a", "b"), (1, 2)), (("c",), (3,))]


def test_contenders_take_turns_at_each_job_and_nobody_is_always_first() -> None:
    turns: list[tuple[str, str]] = []
    results, missing = played([Player("a", turns), Player("b", turns)], rounds=2)
    assert not missing
    assert results.rounds == 2
    assert [name for name, job in turns if job == "8"] == ["a", "b", "b", "a"]


def test_a_ratio_is_taken_within_a_round() -> None:
    turns: list[tuple[str, str]] = []
    results, _ = played([Player("a", turns, cpu=1.0), Player("b", turns, cpu=2.0)], rounds=3)
    assert results.speedup("a", "b", "32") == pytest.approx([2.0, 2.0, 2.0])


def test_a_cost_is_that_of_one_answer_however_many_a_job_has() -> None:
    results = Results()
    results.samples["a", "cold"] = [None, Sample(1, 8.0, 9.0)]
    results.samples["a", "hit"] = [Sample(4, 9.0, 9.0), Sample(4, 4.0, 9.0)]
    assert results.costs(("a", "hit"), ("a", "cold")) == pytest.approx([1 / 8])


def test_a_contender_that_fails_is_stopped_once_and_the_others_go_on() -> None:
    turns: list[tuple[str, str]] = []
    steady, failing, absent = (
        Player("steady", turns),
        Player("failing", turns, fails_at=3),
        Player("absent", turns, fails_at=0),
    )
    results, missing = played([steady, failing, absent], rounds=2)
    assert missing == {"failing": "it ended", "absent": "no such program"}
    assert (steady.stopped, failing.stopped, absent.stopped) == (1, 1, 1)
    assert len(results.rates("steady", "copy")) == 2
    assert [job for name, job in turns if name == "failing"] == ["1", "8", "32"]
    assert results.speedup("steady", "failing", "32") == []


def test_no_round_begins_when_the_time_is_over_but_one_is_always_played() -> None:
    results, _ = played([Player("a", [])], rounds=5, until=time.monotonic() - 1)
    assert results.rounds == 1


@pytest.mark.parametrize("text", ["0", "-1", "five", "1.5"])
def test_rounds_that_are_no_number_are_refused_by_name(text: str) -> None:
    with pytest.raises(SystemExit, match=r"ROUNDS = .* whole number of at least 1"):
        wanted_rounds(text)


def test_five_rounds_unless_told_otherwise() -> None:
    assert wanted_rounds("") == 5
    assert wanted_rounds("2") == 2
    assert minutes(5)[0] < minutes(6)[0] < minutes(5)[1]


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        (Bar("a rate", 1.5, [1.5]), MET),
        (Bar("a rate", 1.5, [1.4, 1.49, 9.0]), MISSED),
        (Bar("a cost", 0.15, [0.15], most=True), MET),
        (Bar("a cost", 0.15, [0.1, 0.16, 0.17], most=True), MISSED),
        (Bar("failures", 0, [0], most=True), MET),
        (Bar("nothing", 1, []), UNKNOWN),
    ],
)
def test_the_median_is_what_meets_a_bar(bar: Bar, verdict: str) -> None:
    assert bar.verdict == verdict


def test_a_bar_that_was_not_measured_says_why() -> None:
    assert Bar("against vLLM", 0.95, [], why="no vLLM").cells() == [
        "against vLLM",
        "≥ 0.95x",
        "no vLLM",
        "",
        UNKNOWN,
    ]
    assert Bar("a load", 1.0, [0.4, 0.5, 0.9], most=True, unit="s").cells()[1:4] == [
        "≤ 1.00 s",
        "0.50 s",
        "0.40 to 0.90",
    ]


def test_whoever_a_bar_names_takes_the_job_that_it_is_measured_at() -> None:
    for what, one, other, job, _ in RATES:
        assert {one, other} <= set(TAKES[job]), what
    assert {BF16, STATIC} <= set(TAKES["copy"])
