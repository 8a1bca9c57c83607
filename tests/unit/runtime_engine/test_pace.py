"""How many tokens a step may hold beside running answers: what it comes to on machines of any speed."""

import pytest

from llmos_operator.runtime.batching.pace import FEWEST, TARGET_SECONDS, Pace


class Computer:
    """Steps of x tokens take a fixed time and one for each token, on a clock that is told so."""

    def __init__(self, fixed, each, most=256):
        self.fixed, self.each, self.pace = fixed, each, Pace(most)

    def steps(self, count, decoding=8, strain=1.0):
        """Return the seconds of so many steps of a prompt without end beside ``decoding`` rows."""
        taken = []
        for _ in range(count):
            tokens = self.pace.room(decoding) + decoding
            taken.append((self.fixed + self.each * tokens) * strain)
            self.pace.took(tokens, taken[-1])
        return taken


def test_a_step_beside_running_answers_takes_about_the_target():
    computer = Computer(fixed=0.06, each=0.0045)
    settled = computer.steps(20)[10:]
    assert all(TARGET_SECONDS * 0.7 < seconds <= TARGET_SECONDS * 1.1 for seconds in settled)


def test_no_step_passes_the_target_while_the_pace_is_found():
    assert max(Computer(fixed=0.06, each=0.0045).steps(20)) <= TARGET_SECONDS * 1.1


def test_a_quick_device_gets_whole_pieces_after_a_few_steps():
    computer = Computer(fixed=0.005, each=0.00002)
    computer.steps(5, decoding=64)
    assert computer.pace.room(64) == 256


def test_a_device_that_cannot_keep_the_target_still_moves_prompts():
    computer = Computer(fixed=2.0, each=0.05)
    computer.steps(10)
    assert computer.pace.room(8) == FEWEST


def test_what_a_neighbour_took_is_forgotten():
    computer = Computer(fixed=0.06, each=0.0045)
    before = computer.steps(20)[-1]
    computer.steps(1, strain=20)
    assert computer.pace.room(8) == FEWEST
    assert computer.steps(20)[-1] == pytest.approx(before, rel=0.3)


def test_a_prompt_that_keeps_nobody_waiting_comes_in_whole_pieces():
    computer = Computer(fixed=2.0, each=0.05)
    computer.steps(10)
    assert computer.pace.room(0) == 256


def test_a_step_of_few_tokens_teaches_nothing():
    computer = Computer(fixed=0.06, each=0.0045)
    computer.steps(20)
    before = computer.pace.room(8)
    computer.pace.took(1, 0.3)
    assert computer.pace.room(8) == before


def test_a_limit_below_the_fewest_is_kept():
    assert Pace(16).room(8) == 16
    assert Pace(5).room(3) == 5
