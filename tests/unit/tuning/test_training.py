"""Runs on tiny models: they learn, they stop and go on as if they had not, they live with little memory."""

import json

import pytest
import torch

from llmos_operator.api.v1alpha1.workload_jobs import FineTuneMethod
from llmos_operator.errors import Permanent
from llmos_operator.tuning.checkpoints import Checkpoints, read_tensors
from llmos_operator.tuning.memory import Meter, Parts, ShortOfMemory
from llmos_operator.tuning.recipe import Lora
from llmos_operator.tuning.spans import Stopped
from tests.support.learning import CPU, SAMPLES, Run, one_thread, recipe, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    one_thread()
    return tiny(tmp_path_factory.mktemp("model"))


class StopAfter:
    """Asks to stop once so many updates are done."""

    def __init__(self, updates):
        self.updates = updates
        self.run = None

    def __call__(self):
        return self.run.board.now.step >= self.updates


def interrupted(folder, place, wanted, updates):
    """Train, ended after so many updates, and then to the end; return both runs."""
    stop = StopAfter(updates)
    first = Run(folder, wanted, place=place, stop=stop)
    stop.run = first
    with pytest.raises(Stopped):
        first.train()
    second = Run(folder, wanted, place=place)
    return first, second, second.train()


@pytest.mark.parametrize(
    ("method", "fmt"),
    [
        (FineTuneMethod.LORA, "fp32"),
        (FineTuneMethod.LORA, "bf16"),
        (FineTuneMethod.QLORA, "int8"),
        (FineTuneMethod.QLORA, "int4"),
        (FineTuneMethod.FULL, "fp32"),
    ],
)
def test_the_loss_falls_with_every_method_and_format(folder, method, fmt):
    rate = 1e-3 if method is FineTuneMethod.FULL else 1e-2
    run = Run(folder, recipe(method=method, steps=0, epochs=12, learning_rate=rate), fmt=fmt)
    run.train()
    assert len(run.losses) == 12 * 3
    first, last = sum(run.losses[:3]), sum(run.losses[-3:])
    assert last < first / 2


def test_only_the_adapter_has_changed_after_a_run(folder):
    learner = Run(folder, recipe()).train()
    fresh = Run(folder, recipe(steps=1)).train()
    for name, one in learner.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(one, fresh.model.get_parameter(name)), name
    assert any(not torch.equal(one, fresh.parameters[name]) for name, one in learner.parameters.items())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_that_was_stopped_goes_on_bit_by_bit_as_if_it_had_not_been(folder, tmp_path, dropout):
    wanted = recipe(lora=Lora(rank=4, dropout=dropout), validation=0.2, batch_size=2)
    whole = Run(folder, wanted)
    expected = whole.train()
    first, second, learner = interrupted(folder, tmp_path / "saved", wanted, 3)
    assert first.losses + second.losses == whole.losses
    assert (len(first.losses), len(second.losses)) == (3, 5)
    for name, one in learner.parameters.items():
        assert torch.equal(one, expected.parameters[name]), name
    assert second.point.validation_loss == whole.point.validation_loss
    assert second.point.tokens == whole.point.tokens


def test_a_stop_in_the_middle_of_an_update_is_as_good(folder, tmp_path):
    wanted = recipe(lora=Lora(rank=4, dropout=0.2))
    whole = Run(folder, wanted, plan=Parts(8, recompute=False))
    whole.train()
    asked = []

    def stop():
        asked.append(None)
        return len(asked) == 12  # between two parts: each update has two, and asks once before them

    first = Run(folder, wanted, place=tmp_path, plan=Parts(8, recompute=False), stop=stop)
    with pytest.raises(Stopped):
        first.train()
    assert len(first.losses) == 3
    second = Run(folder, wanted, place=tmp_path)
    second.train()
    assert first.losses + second.losses == whole.losses


def test_all_weights_that_learn_are_saved_and_go_on_too(folder, tmp_path):
    wanted = recipe(method=FineTuneMethod.FULL, learning_rate=1e-3)
    whole = Run(folder, wanted)
    whole.train()
    first, second, _ = interrupted(folder, tmp_path, wanted, 4)
    assert first.losses + second.losses == whole.losses


def test_the_newest_two_checkpoints_are_kept(folder, tmp_path):
    Run(folder, recipe(), place=tmp_path, every=0.0).train()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["step-0000000007", "step-0000000008"]
    tensors = read_tensors(tmp_path / "step-0000000008" / "state.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"weight", "exp_avg", "exp_avg_sq", "random"}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(folder, tmp_path):
    whole = Run(folder, recipe())
    whole.train()
    Run(folder, recipe(), place=tmp_path, every=0.0).train()
    damaged = tmp_path / "step-0000000008" / "state.safetensors"
    raw = bytearray(damaged.read_bytes())
    raw[-100] ^= 1
    damaged.write_bytes(raw)
    again = Run(folder, recipe(), place=tmp_path)
    again.train()
    assert again.losses == whole.losses[-1:]


def test_a_checkpoint_half_written_is_no_checkpoint(folder, tmp_path):
    (tmp_path / ".step-0000000005.partial").mkdir()
    (tmp_path / "step-0000000004").mkdir()
    again = Run(folder, recipe(), place=tmp_path)
    again.train()
    assert len(again.losses) == 8


def test_checkpoints_of_another_run_are_neither_taken_nor_touched(folder, tmp_path):
    Run(folder, recipe(), place=tmp_path, every=0.0).train()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Permanent, match="holds checkpoints of another run"):
        Checkpoints(tmp_path, "two").newest()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_state_is_json_and_says_what_the_run_needs(folder, tmp_path):
    Run(folder, recipe(), place=tmp_path, every=0.0).train()
    state = json.loads((tmp_path / "step-0000000008" / "state.json").read_text())
    assert (state["step"], state["part_tokens"], state["recompute"]) == (8, 64, False)
    assert state["sha256"]


class Narrow(Meter):
    """A machine on which a part of more than so many rows x columns does not fit."""

    def __init__(self, refusals):
        super().__init__(1, CPU)
        self.refusals = refusals

    def measure(self):
        return 0

    def check(self):
        if self.refusals:
            self.refusals -= 1
            raise ShortOfMemory("2 MiB in use, 1 MiB allowed")


def test_when_memory_runs_short_the_update_is_made_again_in_smaller_parts(folder):
    roomy = Run(folder, recipe(batch_size=6))
    roomy.train()
    tight = Run(folder, recipe(batch_size=6), meter=Narrow(2))
    tight.train()
    assert tight.board.now.retreats == 2
    assert tight.point.part_tokens < 64
    assert tight.losses == pytest.approx(roomy.losses, rel=1e-3)


def test_when_parts_cannot_be_smaller_layers_are_recomputed_and_then_the_run_fails_with_advice(folder):
    one_row = Parts(1, recompute=False)
    tight = Run(folder, recipe(), plan=one_row, meter=Narrow(1))
    tight.train()
    assert tight.point.recompute
    with pytest.raises(Permanent, match=r"one sample of \d+ tokens at a time") as caught:
        Run(folder, recipe(), plan=one_row, meter=Narrow(99)).train()
    assert caught.value.reason == "OutOfMemory"


def test_the_size_of_parts_changes_no_loss(folder):
    runs = [Run(folder, recipe(batch_size=6, steps=3), plan=Parts(n, recompute=False)) for n in (1, 30, 1000)]
    for run in runs:
        run.train()
    assert runs[0].losses == pytest.approx(runs[2].losses, rel=1e-4)
    assert runs[1].losses == pytest.approx(runs[2].losses, rel=1e-4)


def test_a_rate_that_is_too_high_ends_the_run_with_advice(folder):
    with pytest.raises(Permanent, match=r"lower fineTune\.training\.learningRate"):
        Run(folder, recipe(method=FineTuneMethod.FULL, learning_rate=1e30, max_gradient_norm=0.0)).train()


def test_progress_tells_steps_tokens_and_losses(folder, tmp_path):
    run = Run(folder, recipe(validation=0.2), place=tmp_path, every=0.0)
    run.train()
    now = run.board.now
    assert (now.step, now.total_steps, now.checkpoint_step) == (8, 8, 8)
    assert now.loss == run.losses[-1]
    assert now.validation_loss is not None
    assert now.tokens == run.point.tokens > sum(len(one.tokens) for one in SAMPLES)
