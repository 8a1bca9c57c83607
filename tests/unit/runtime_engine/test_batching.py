"""The scheduler's decisions, seen from outside: what each step computes and what becomes of each request."""

import random

import pytest

from llmos_operator.runtime.batching import Batcher, BatchLimits
from llmos_operator.runtime.batching.drafting import propose
from llmos_operator.runtime.ipc.messages import SamplingParams, Submit
from llmos_operator.runtime.kvcache import KvCache

EOS = 99


class Machine:
    """A model that knows arithmetic: the token after position p of a sequence is a function of all before it."""

    def __init__(self, *, model=None, blocks=64, slots=8, slot_tokens=256, **limits):
        self.model = model or next_token
        self.cache = KvCache(blocks=blocks, slots=slots, slot_tokens=slot_tokens)
        self.batcher = Batcher(BatchLimits(**{"max_tokens": slot_tokens, **limits}), self.cache, [EOS])
        self.rows = {}  # slot -> tokens whose keys and values stand there
        self.outputs, self.reasons, self.steps, self.now = {}, {}, [], 0.0

    def add(self, request_id, prompt, **options):
        sampling = SamplingParams(max_tokens=options.pop("max_tokens", 5))
        problem = self.batcher.add(Submit(request_id, tuple(prompt), sampling, **options), self.now)
        self.outputs.setdefault(request_id, [])
        return problem

    def step(self):
        self.now += 1
        for gone in self.batcher.expire(self.now):
            self.reasons[gone.sequence.submit.request_id] = gone.finish_reason
        plan = self.batcher.plan(self.now)
        self.steps.append(plan)
        for copy in plan.copies:
            self.rows[copy.target] = self.rows[copy.source][: copy.tokens]
        sampled = []
        for work in plan.works:
            row = self.rows.get(work.slot, [])[: work.start]
            assert row == work.sequence.tokens[: work.start], "the row does not hold the sequence's past"
            self.rows[work.slot] = row + list(work.tokens)
            ends = range(len(work.tokens) - work.logits + 1, len(work.tokens) + 1)
            sampled.append([self.model(row + list(work.tokens[:end])) for end in ends])
        for emitted in self.batcher.commit(plan, sampled, self.now):
            self.outputs[emitted.sequence.submit.request_id] += emitted.tokens
            if emitted.finish_reason:
                self.reasons[emitted.sequence.submit.request_id] = emitted.finish_reason
        self.cache.check()
        return plan

    def run(self, most=500):
        for _ in range(most):
            if not self.batcher.running and not self.batcher.waiting:
                return
            self.step()
        raise AssertionError("the queue did not drain")

    def run_until_decoding(self, request_id):
        while not self.outputs[request_id]:
            self.step()


def next_token(tokens):
    return (sum((i + 1) * t for i, t in enumerate(tokens)) * 31 + len(tokens)) % 98


def repeating(tokens):
    """Return mostly what stood four tokens ago, so that drafts are often right and sometimes wrong."""
    return tokens[-4] if len(tokens) >= 4 and len(tokens) % 7 else next_token(tokens)


def expected(prompt, count, model=next_token):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(model(tokens))
    return tokens[len(prompt) :]


def test_every_running_sequence_gets_a_token_each_step_while_a_long_prompt_comes_in_chunks():
    machine = Machine(prefill_tokens=16)
    machine.add("short", [1, 2], max_tokens=20)
    machine.step()
    machine.add("long", range(60))
    for _ in range(4):
        works = {work.sequence.submit.request_id: work for work in machine.step().works}
        assert len(works["short"].tokens) == 1
        assert len(works["long"].tokens) <= 16
    machine.run()
    assert machine.outputs["short"] == expected([1, 2], 20)
    assert machine.outputs["long"] == expected(range(60), 5)


def test_pieces_follow_the_pace_beside_running_answers_and_are_whole_without_any():
    machine = Machine(slot_tokens=1024, blocks=128)
    machine.add("long", range(600), max_tokens=200)
    assert [len(work.tokens) for work in machine.step().works] == [256]
    machine.run_until_decoding("long")
    machine.add("second", range(700, 1000))
    machine.batcher.pace.took(256, 1.0)  # 0.4 s would have been enough for 102
    assert sorted(len(work.tokens) for work in machine.step().works) == [1, 96]
    machine.batcher.pace.took(97, 60.0)
    assert sorted(len(work.tokens) for work in machine.step().works) == [1, 64]
    machine.run()
    assert machine.outputs["second"] == expected(range(700, 1000), 5)


def test_a_step_packs_several_prompts_up_to_the_limit():
    machine = Machine(prefill_tokens=32)
    for name in "abcd":
        machine.add(name, range(12))
    assert [len(work.tokens) for work in machine.step().works] == [12, 12, 8]
    machine.run()
    assert machine.outputs["d"] == expected(range(12), 5)


def test_a_stop_token_ends_a_sequence_and_is_not_part_of_it():
    machine = Machine()
    prompt = [3, 1, 4]
    tokens = expected(prompt, 10)
    sampling = SamplingParams(max_tokens=10, stop_token_ids=(tokens[4],))
    machine.outputs["a"] = []
    machine.batcher.add(Submit("a", tuple(prompt), sampling), 0)
    machine.run()
    assert machine.outputs["a"] == tokens[: tokens.index(tokens[4])]
    assert machine.reasons["a"] == "stop"


def test_a_cancelled_request_is_gone_in_the_next_step():
    machine = Machine()
    machine.add("a", [1], max_tokens=100)
    machine.add("b", [2], max_tokens=4)
    machine.step()
    assert machine.batcher.cancel("a")
    assert not machine.batcher.cancel("a")
    assert [work.sequence.submit.request_id for work in machine.step().works] == ["b"]
    machine.run()


@pytest.mark.parametrize(
    ("prompt", "text"), [((), "no tokens"), (range(256), "256 tokens"), (range(300), "may have 256")]
)
def test_a_prompt_that_can_never_run_is_refused_with_the_limit(prompt, text):
    assert text in Machine().add("a", prompt)


def test_a_full_cache_preempts_the_youngest_and_recomputes_it_to_the_same_end():
    machine = Machine(blocks=6, slots=8)
    prompts = {name: [seed * 7 + i for i in range(30)] for seed, name in enumerate("abc")}
    for name, prompt in prompts.items():
        machine.add(name, prompt, max_tokens=30)
    machine.run()
    assert machine.batcher.preemptions > 0
    assert all(machine.outputs[name] == expected(prompt, 30) for name, prompt in prompts.items())


def test_higher_priority_takes_a_place_and_its_victim_comes_back():
    machine = Machine(max_rows=1)
    machine.add("low", [1, 2, 3], max_tokens=20)
    machine.step()
    machine.add("high", [4, 5], max_tokens=5, priority=1)
    assert [work.sequence.submit.request_id for work in machine.step().works] == ["high"]
    machine.run()
    assert machine.outputs == {"low": expected([1, 2, 3], 20), "high": expected([4, 5], 5)}


def test_equal_priority_never_preempts():
    machine = Machine(max_rows=1)
    machine.add("first", [1], max_tokens=20)
    machine.step()
    machine.add("second", [2])
    machine.step()
    assert machine.batcher.preemptions == 0
    machine.run()


def test_a_tenant_with_many_requests_does_not_starve_another():
    machine = Machine(max_rows=1)
    for i in range(10):
        machine.add(f"greedy-{i}", [i + 1], tenant="greedy")
    machine.step()
    machine.add("modest", [50], tenant="modest")
    machine.run()
    order = list(machine.reasons)
    assert order.index("modest") <= 2


def test_a_request_that_cannot_start_before_its_deadline_is_dropped():
    machine = Machine(max_rows=1)
    machine.add("long", [1], max_tokens=50)
    machine.step()
    machine.add("late", [2], deadline_at=machine.now + 3)
    machine.run()
    assert machine.reasons["late"] == "error"
    assert machine.reasons["long"] == "length"


def test_a_shrunk_cache_preempts_and_ends_what_no_longer_fits():
    machine = Machine(blocks=20)
    machine.add("big", range(100), max_tokens=100)
    machine.add("small", range(200, 210), max_tokens=20)
    for _ in range(3):
        machine.step()
    machine.batcher.shrink(4)
    machine.run()
    assert machine.reasons["big"] == "length"
    assert machine.outputs["small"] == expected(range(200, 210), 20)


def test_a_repeated_prompt_computes_only_its_end():
    machine = Machine()
    machine.add("first", range(64))
    machine.run()
    machine.add("second", range(64))
    assert len(machine.step().works[0].tokens) == 16
    machine.run()
    assert machine.outputs["second"] == machine.outputs["first"]


def test_drafts_are_taken_as_far_as_they_are_right():
    machine = Machine(draft_tokens=4, model=repeating)
    cycle = [5, 6, 7, 8] * 6
    machine.add("a", cycle, max_tokens=40)
    machine.run()
    assert machine.outputs["a"] == expected(cycle, 40, repeating)
    assert len(machine.steps) < 30


def test_guessing_stops_when_it_does_not_pay():
    tokens = [1, 2, 3, 1, 2]
    assert propose(tokens, 4) == (3, 1, 2)
    assert propose(tokens, 4, accepted=5, drafted=30) == ()
    assert propose([1, 2, 3, 4], 4) == ()
    assert propose([258, 1, 2, 513, 1, 2], 1) == (513,)


@pytest.mark.parametrize("seed", range(20))
def test_random_arrivals_cancellations_and_shrinks_change_no_answer(seed):
    rng = random.Random(seed)
    machine = Machine(
        blocks=rng.choice([20, 40, 64]), max_rows=rng.choice([1, 3, 8]), prefill_tokens=rng.choice([5, 16, 64]),
        draft_tokens=rng.choice([0, 3]), model=repeating,
    )  # fmt: skip
    stem = [rng.randrange(98) for _ in range(40)]
    prompts, cancelled = {}, set()
    for i in range(60):
        prompts[f"r{i}"] = stem[: rng.randrange(40)] + [
            rng.randrange(98) for _ in range(rng.randrange(1, 40))
        ]
    for name, prompt in prompts.items():
        tenant, priority = rng.choice(["x", "y"]), rng.choice([0, 0, 1])
        assert not machine.add(
            name, prompt, max_tokens=rng.randrange(1, 30), tenant=tenant, priority=priority
        )
        for _ in range(rng.randrange(4)):
            machine.step()
        if rng.random() < 0.15:
            victim = rng.choice(list(prompts))
            if machine.batcher.cancel(victim):
                cancelled.add(victim)
    machine.run(3000)
    for name in set(machine.reasons) - cancelled:
        output = machine.outputs[name]
        assert output == expected(prompts[name], len(output), repeating), name
        assert machine.reasons[name] == "length"
    assert len(machine.reasons) + len(cancelled) == 60
    assert machine.cache.live_blocks == 0


class Line(Machine):
    """A machine with stages: up to ``flights`` plans are begun before the oldest is finished."""

    def __init__(self, *, flights, **options):
        super().__init__(flights=flights, **options)
        self.begun, self.widths = [], []

    def step(self):
        self.now += 1
        while len(self.begun) < self.batcher.limits.flights:
            plan = self.batcher.plan(self.now)
            if not (plan.works or plan.copies or plan.released):
                break
            busy = {id(work.sequence) for other in self.begun for work in other.works}
            assert not busy & {id(work.sequence) for work in plan.works}, (
                "a sequence is in one step at a time"
            )
            self.begun.append(plan)
        if not self.begun:
            return
        self.widths.append([len(plan.works) for plan in self.begun])
        plan, sampled = self.begun.pop(0), []
        for copy in plan.copies:
            self.rows[copy.target] = self.rows[copy.source][: copy.tokens]
        for work in plan.works:
            row = self.rows.get(work.slot, [])[: work.start]
            if work.sequence.slot == work.slot:
                assert row == work.sequence.tokens[: work.start], "the row does not hold the sequence's past"
            self.rows[work.slot] = row + list(work.tokens)
            ends = range(len(work.tokens) - work.logits + 1, len(work.tokens) + 1)
            sampled.append([self.model(row + list(work.tokens[:end])) for end in ends])
        for emitted in self.batcher.commit(plan, sampled, self.now):
            self.outputs[emitted.sequence.submit.request_id] += emitted.tokens
        self.cache.check()


def never_ends(tokens):
    return sum(tokens) % 89


def test_as_many_steps_are_under_way_as_there_are_stages_and_share_the_rows():
    line = Line(flights=3, model=never_ends)
    for i in range(6):
        line.add(f"r{i}", [i + 1, 2, 3], max_tokens=12)
    line.run()
    assert [2, 2, 2] in line.widths
    assert all(len(widths) == 3 for widths in line.widths[:20])


@pytest.mark.parametrize("seed", range(8))
def test_steps_under_way_change_no_answer_and_leave_no_block_behind(seed):
    rng = random.Random(seed)
    asked = [[rng.randrange(1, 90) for _ in range(rng.randrange(1, 60))] for _ in range(14)]
    gone = set(rng.sample(range(14), 4))
    line = Line(flights=rng.choice((2, 3)), blocks=12, model=never_ends)
    for i, prompt in enumerate(asked):
        line.add(f"r{i}", prompt, max_tokens=16, priority=rng.randrange(2))
        line.step()
        if i in gone and rng.random() < 0.7:
            line.batcher.cancel(f"r{i}")
        else:
            gone.discard(i)
    line.run(most=2000)
    for i, prompt in enumerate(asked):
        if i not in gone:
            tokens = list(prompt)
            for _ in range(16):
                tokens.append(never_ends(tokens))
            assert line.outputs[f"r{i}"] == tokens[len(prompt) :]
    assert line.cache.live_blocks == 0
