"""The pieces of a long prompt beside a running answer, in a real engine whose steps take as long as the test says."""

import random

import pytest

from llmos_operator.clock import FakeClock
from llmos_operator.runtime.batching.pace import FEWEST
from llmos_operator.runtime.engine.serving import Serving
from llmos_operator.runtime.ipc import Load, SamplingParams, Submit
from llmos_operator.runtime.loader.pipeline import load_model
from llmos_operator.runtime.loader.progress import Stages
from tests.support.models import write_random

WHOLE = 256  # tokens of a piece that nothing makes smaller
PROMPT = 1800


class Watched:
    """A loaded model at work; each step takes ``seconds``, and ``pieces`` are the prompt tokens of the steps so far."""

    def __init__(self, folder, monkeypatch):
        write_random(folder, max_position_embeddings=4096)
        clock = FakeClock()
        load = Load(
            str(folder),
            format="fp32",
            cache_dir=str(folder / "cache"),
            allow_file=True,
            threads=1,
            max_num_seqs=4,
        )
        loaded = load_model(load, Stages(clock, lambda _: None))
        self.seconds, self.pieces = 0.01, []
        finish = loaded.built.causal.finish

        def timed(plan, eos):
            clock.advance(self.seconds)
            self.pieces += [len(work.tokens) for work in plan.works if len(work.tokens) > 1]
            return finish(plan, eos)

        monkeypatch.setattr(loaded.built.causal, "finish", timed)
        self.serving = Serving(loaded, clock)

    def ask(self, name, length):
        """Submit a prompt; it answers for longer than the test lasts."""
        rng = random.Random(name)
        params = SamplingParams(max_tokens=2000, ignore_eos=True, temperature=0.0)
        prompt = tuple(rng.randrange(2, 300) for _ in range(length))
        assert not self.serving.submit(Submit(name, prompt, params))

    def read(self, name):
        """Step until the request has its first token; return the pieces of its prompt."""
        self.pieces.clear()
        while all(output.request_id != name for output in self.serving.step()):
            pass
        return list(self.pieces)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """An engine with one running answer."""
    made = Watched(tmp_path / "m", monkeypatch)
    made.ask("runs", 3)
    made.read("runs")
    return made


def test_quick_steps_lead_to_whole_pieces_and_slow_ones_to_the_smallest(watched):
    watched.ask("quick", PROMPT)
    quick = watched.read("quick")
    assert quick[0] == FEWEST
    assert quick[-2] == WHOLE
    assert sum(quick) == PROMPT
    watched.serving.cancel("quick")
    watched.seconds = 5.0  # a step; the next prompt begins with what the quick ones have taught
    watched.ask("slow", PROMPT)
    slow = watched.read("slow")
    assert slow[0] == WHOLE
    assert set(slow[1:-1]) == {FEWEST}
    assert sum(slow) == PROMPT
