"""A loaded model at work: the scheduler, the backend and the counters between them."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import KV_BLOCK_TOKENS
from llmos_operator.errors import Permanent
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.batching import Batcher, BatchLimits, Emitted
from llmos_operator.runtime.engine.adapters import AdapterShelf
from llmos_operator.runtime.engine.embedding import Embeds
from llmos_operator.runtime.engine.forms import Forms
from llmos_operator.runtime.engine.speech import problem_with
from llmos_operator.runtime.grammar.guide import Guide
from llmos_operator.runtime.ipc.messages import (
    AdapterUse,
    EngineInfo,
    EngineMemory,
    FinishReason,
    RequestOutput,
    Stats,
    Timing,
)
from llmos_operator.runtime.kvcache import KvCache
from llmos_operator.runtime.loader.pipeline import Loaded, plan_of, trim_memory
from llmos_operator.runtime.speech.form import Transcript

if TYPE_CHECKING:
    from llmos_operator.clock import Clock
    from llmos_operator.runtime.backends.causal import StepResult
    from llmos_operator.runtime.batching import StepPlan
    from llmos_operator.runtime.batching.plan import Form
    from llmos_operator.runtime.ipc.messages import AdapterResult, Embed, EmbedResult, Submit, TokenLogprob
    from llmos_operator.runtime.loader.memory import KvPlan, Meter

log = logger(__name__)

MEMORY_SECONDS = 10.0  # measuring walks page tables: too dear for every heartbeat
_MOST_FAILURES = 3  # steps in a row that may fail before the engine gives up and is restarted
_DRAFT_TOKENS = 4
_CORRECTIONS = 3  # times a new limit is measured, and the cache cut by what is beyond it


class Serving:
    """Requests in, outputs out, one step at a time."""

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        self._loaded = loaded
        self._clock = clock
        self._info = loaded.info
        self._memory = loaded.memory()
        self._memory_at = clock.monotonic()
        self._kv_most = 0  # blocks that running sequences ever held together
        self._embeds = Embeds(loaded.built.encoder, self._info, loaded.built.pictures)
        self._prompt_logprobs: dict[str, list[TokenLogprob]] = {}
        self._begun: set[str] = set()  # requests that have had their first output
        self._counts = Stats()
        self._failures = 0
        self._random = random.SystemRandom()
        causal = loaded.built.causal
        slots = causal.store.geometry.slots if causal is not None else 1
        slot_tokens = causal.store.geometry.slot_tokens if causal is not None else 1
        self._rules = loaded.rules
        speech = self._rules is not None
        self._cache = KvCache(
            blocks=loaded.plan.blocks,
            slots=slots,
            slot_tokens=slot_tokens,
            prefix_caching=not speech,  # the same tokens mean something else after another sound
            beside=loaded.shape.cross_tokens,
        )
        limits = BatchLimits(
            max_rows=loaded.load.max_num_seqs,
            max_tokens=loaded.plan.max_model_len,
            draft_tokens=0 if speech else _DRAFT_TOKENS,
            flights=causal.depth if causal is not None else 1,
            new_rows=int(speech),  # others go on between one window that is heard and the next
        )
        self._batcher = Batcher(limits, self._cache, self._info.eos_token_ids)
        self._flights: deque[StepPlan] = deque()  # steps that have begun, oldest first
        self._landed: list[
            RequestOutput
        ] = []  # outputs of steps that had to be finished between two of `step`
        self._forms = Forms(self._info)
        self.adapters = AdapterShelf(loaded, clock)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        queued = self._batcher.running or self._batcher.waiting or self._flights or self._landed
        return bool(queued or self._embeds.pending or self._forms.pending)

    def info(self, stage_seconds: tuple[tuple[str, float], ...], *, load_path: str = "") -> EngineInfo:
        """Return the model's description with the durations of its load."""
        return dataclasses.replace(
            self._info, stage_seconds=stage_seconds, load_path=load_path or self._info.load_path
        )

    def memory(self) -> EngineMemory:
        """Return predicted and measured memory, measured now."""
        self._kv_most = max(self._kv_most, self._cache.live_blocks)
        self._memory = self._loaded.memory(
            kv_used_tokens=self._cache.used_blocks * KV_BLOCK_TOKENS,
            kv_most_tokens=self._kv_most * KV_BLOCK_TOKENS,
        )
        self._memory_at = self._clock.monotonic()
        return self._memory

    # ------------------------------------------------------------ generation

    def submit(self, submit: Submit) -> str:
        """Queue a request; return "" or what is wrong with it."""
        if self._loaded.built.causal is None:
            return f"{self._info.architecture} does not generate"
        vocabulary = self._info.vocab_size
        if submit.prompt and not (min(submit.prompt) >= 0 and max(submit.prompt) < vocabulary):
            return f"the prompt has a token outside 0..{vocabulary - 1}"
        problem = problem_with(submit, self._rules, self._info)
        if self.adapters.salt(submit.adapter) is None:
            problem = f"adapter {submit.adapter!r} is not loaded"
        if problem:
            return problem
        if submit.sampling.seed is None:
            drawn = dataclasses.replace(submit.sampling, seed=self._random.getrandbits(63))
            submit = dataclasses.replace(submit, sampling=drawn)
        if self._rules is not None:
            return self._queue(submit, Transcript(self._rules, submit.script, times=submit.times))
        if submit.grammar:
            return self._forms.compile(submit)
        return self._queue(submit)

    def _queue(self, submit: Submit, form: Form | None = None) -> str:
        return self._batcher.add(
            submit, self._clock.monotonic(), form, self.adapters.salt(submit.adapter, leaving=True) or b""
        )

    def turn_adapters(self) -> list[AdapterResult]:
        """Between two steps: let adapters come and go; return the answers to who ordered it."""
        if not self.adapters.pending:
            return []
        return self.adapters.turn({*self._batcher.adapter_use(), *self._forms.adapters})

    def cancel(self, request_id: str) -> bool:
        """Stop a request; False if it is over already."""
        here = (self._batcher, self._forms, self._embeds)
        if not any(one.cancel(request_id) for one in here):
            return False
        self._forget(request_id)
        self._counts = dataclasses.replace(self._counts, aborted=self._counts.aborted + 1)
        return True

    def abort_embeds(self, why: str) -> list[EmbedResult]:
        """Stop all requests to an encoder and return the answer to each."""
        gone = self._embeds.abort_all(why)
        self._counts = dataclasses.replace(self._counts, aborted=self._counts.aborted + len(gone))
        return gone

    def abort_all(self, why: str) -> list[RequestOutput]:
        """Stop all that is generated and return the last output of each request."""
        self._land()
        landed, self._landed = self._landed, []
        gone = [sequence.submit.request_id for sequence in self._batcher.cancel_all()]
        gone += self._forms.cancel_all()
        for request_id in gone:
            self._forget(request_id)
        self._counts = dataclasses.replace(self._counts, aborted=self._counts.aborted + len(gone))
        return landed + [RequestOutput(one, finish_reason=FinishReason.ABORT, message=why) for one in gone]

    def step(self) -> list[RequestOutput]:
        """Finish the oldest step once as many are under way as can be; return what it gave, [] without any."""
        outputs, self._landed = self._landed + self._admit_compiled(), []
        if self._loaded.built.causal is None:
            return outputs
        if self._batcher.running or self._batcher.waiting:
            now = self._clock.monotonic()
            outputs += [self._output(one, [], now) for one in self._batcher.expire(now)]
            self._begin_steps(now)
        return outputs + self._finish_step() if self._flights else outputs

    def _begin_steps(self, now: float) -> None:
        """Begin steps until as many are under way as the model has stages, or nothing is left to compute."""
        causal = self._loaded.built.causal
        while causal is not None and len(self._flights) < causal.depth:
            plan = self._batcher.plan(now)
            if not (plan.works or plan.copies or plan.released):
                return
            self._flights.append(plan)
            causal.begin(plan)

    def _finish_step(self) -> list[RequestOutput]:
        """Finish the oldest step that is under way and return what it gave."""
        causal = self._loaded.built.causal
        if causal is None:
            raise AssertionError("steps are those of a generative model")
        plan, outputs = self._flights.popleft(), list[RequestOutput]()
        began = self._clock.monotonic()
        try:
            result = causal.finish(plan, self._info.eos_token_ids)
        except (RuntimeError, MemoryError) as error:
            return self._fail_step(plan, error)
        self._failures = 0
        outputs += self._drop_lost(plan)
        now = self._clock.monotonic()
        self._batcher.pace.took(plan.tokens, now - began)
        self._collect_prompt_logprobs(plan, result)
        index = {id(work.sequence): i for i, work in enumerate(plan.works)}
        for one in self._batcher.commit(plan, result.tokens, now):
            logprobs = result.logprobs[index[id(one.sequence)]][: len(one.tokens)]
            outputs.append(self._output(one, [item for item in logprobs if item is not None], now))
        self._count(plan, outputs, now - began)
        return outputs

    def _land(self) -> None:
        """Finish every step that is under way; what they give goes out with the next one."""
        while self._flights:
            self._landed += self._finish_step()

    def _admit_compiled(self) -> list[RequestOutput]:
        """Queue the requests whose grammar has been compiled; return the end of those whose grammar is no good."""
        outputs = []
        busy = bool(self._batcher.running or self._batcher.waiting or self._embeds.pending)
        for submit, form, fault in self._forms.finished(wait=not busy):
            problem = fault or self._queue(submit, form)
            if problem:
                outputs.append(_refused(submit.request_id, problem, bad_grammar=bool(fault)))
        return outputs

    def _drop_lost(self, plan: StepPlan) -> list[RequestOutput]:
        """End the requests whose form could not be followed in this step."""
        outputs = []
        for work in plan.works:
            form, request_id = work.sequence.form, work.sequence.submit.request_id
            if isinstance(form, Guide) and form.trouble and self._batcher.cancel(request_id):
                self._forget(request_id)
                outputs.append(_refused(request_id, form.trouble, bad_grammar=True))
        return outputs

    def _fail_step(self, plan: StepPlan, error: Exception) -> list[RequestOutput]:
        """End the requests of a step that failed; the others go on. Re-raises when step after step fails."""
        self._failures += 1
        causal = self._loaded.built.causal
        if self._failures >= _MOST_FAILURES or (causal is not None and not causal.alone):
            raise error  # ranks of which one failed in the middle of a step no longer compute the same
        log.error(
            "step failed",
            error=repr(error),
            requests=len(plan.works),
            tokens=plan.tokens,
        )
        text = f"the step failed: {error}"[:500]
        outputs = []
        for request_id in [work.sequence.submit.request_id for work in plan.works]:
            self._batcher.cancel(request_id)
            self._forget(request_id)
            outputs.append(RequestOutput(request_id, finish_reason=FinishReason.ERROR, message=text))
        self._cache.drop_cached()  # what the step wrote is unknown
        return outputs

    def _collect_prompt_logprobs(self, plan: StepPlan, result: StepResult) -> None:
        for work, found in zip(plan.works, result.prompt_logprobs, strict=True):
            if found and work.sequence.slot == work.slot:  # not cancelled meanwhile
                request_id = work.sequence.submit.request_id
                before = self._prompt_logprobs.get(request_id, []) if work.start else []
                self._prompt_logprobs[request_id] = before + found

    def _output(self, one: Emitted, logprobs: list[TokenLogprob], now: float) -> RequestOutput:
        sequence = one.sequence
        request_id = sequence.submit.request_id
        first = request_id not in self._begun
        if first and sequence.first_token_at:
            self._begun.add(request_id)
            counts = self._counts
            self._counts = dataclasses.replace(
                counts,
                prompt_tokens=counts.prompt_tokens + len(sequence.submit.prompt),
                first_tokens=counts.first_tokens + 1,
                first_token_seconds=counts.first_token_seconds
                + max(0.0, sequence.first_token_at - sequence.arrived_at),
            )
        output = RequestOutput(
            request_id=request_id,
            tokens=one.tokens,
            finish_reason=one.finish_reason,
            stop_token=one.stop_token,
            logprobs=tuple(logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs.pop(request_id, ())),
            cached_tokens=sequence.cached_tokens if first else 0,
            message=one.message,
            timing=Timing(sequence.arrived_at, sequence.scheduled_at, sequence.first_token_at, now)
            if one.finish_reason
            else None,
        )
        if one.finish_reason:
            self._forget(request_id)
        return output

    def _forget(self, request_id: str) -> None:
        if (causal := self._loaded.built.causal) is not None:
            causal.forget(request_id)
        self._begun.discard(request_id)
        self._prompt_logprobs.pop(request_id, None)

    def _count(self, plan: StepPlan, outputs: list[RequestOutput], seconds: float) -> None:
        counts = self._counts
        decoded = sum(len(output.tokens) for output in outputs)
        ended = sum(output.stop_token is not None for output in outputs)  # generated, too, as the usage says
        drafts = sum(work.drafts for work in plan.works)
        self._counts = dataclasses.replace(
            counts,
            finished=counts.finished + sum(bool(output.finish_reason) for output in outputs),
            generation_tokens=counts.generation_tokens + decoded + ended,
            draft_tokens=counts.draft_tokens + drafts,
            accepted_tokens=counts.accepted_tokens + (decoded - 1 if drafts else 0),
            steps=counts.steps + 1,
            step_seconds=counts.step_seconds + seconds,
        )

    # ------------------------------------------------------------ embeddings

    def enqueue_embed(self, embed: Embed) -> None:
        """Queue an embedding request."""
        self._embeds.add(embed)

    def embed_step(self) -> list[EmbedResult]:
        """Compute a part of one embedding request; return its answer once it is complete."""
        if not self._embeds.pending:
            return []
        began = self._clock.monotonic()
        result = self._embeds.step()
        if result is not None and result.error:
            return [result]
        counts = self._counts
        self._counts = dataclasses.replace(
            counts,
            finished=counts.finished + (result is not None),
            prompt_tokens=counts.prompt_tokens + (result.prompt_tokens if result is not None else 0),
            steps=counts.steps + 1,
            step_seconds=counts.step_seconds + self._clock.monotonic() - began,
        )
        return [] if result is None else [result]

    # ------------------------------------------------------------ memory and counters

    def set_budget(self, memory_bytes: int) -> None:
        """Fit the KV cache into a new memory limit: what no longer fits is computed again later.

        A limit that cannot be kept is refused, and the former one stays: who asked sees it in the memory that is reported.
        """
        causal = self._loaded.built.causal
        self._land()
        try:
            plan = self._plan(memory_bytes)
        except Permanent as error:
            log.warning("the budget is below what the model needs and is refused", detail=str(error))
            self.memory()
            return
        if causal is not None and plan.blocks < self._cache.total_blocks and not causal.store.gives_back:
            log.warning("the KV cache of this device cannot become smaller; the budget is refused")
            return
        self._loaded.meter.limit_bytes = memory_bytes
        self._resize(plan)
        self._keep_to(memory_bytes)
        self.memory()

    def _plan(self, memory_bytes: int) -> KvPlan:
        """Return the plan under a limit. Raises Permanent if the cache would not hold one sequence of full length."""
        loaded = self._loaded
        plan = plan_of(loaded.load, loaded.meter, loaded.shape, memory_bytes)
        if plan.max_model_len < self._info.max_model_len:
            raise Permanent(
                f"{memory_bytes >> 20} MiB hold {plan.max_model_len} tokens, one context of {self._info.max_model_len} must fit",
                reason="OutOfMemory",
            )
        return plan

    def _resize(self, plan: KvPlan) -> None:
        """Give the KV cache the blocks of ``plan``."""
        self._loaded.plan = plan
        if (causal := self._loaded.built.causal) is not None:
            self._batcher.shrink(plan.blocks)
            causal.release(self._cache.take_released())
            trim_memory()
        self._info = dataclasses.replace(self._info, kv_blocks=plan.blocks)

    def _keep_to(self, memory_bytes: int) -> None:
        """Let the KV cache make up for what is in use beyond the limit, as far as it can."""
        causal = self._loaded.built.causal
        if causal is None or not causal.store.gives_back or not causal.alone:
            return  # what other ranks hold is known too late to be corrected by
        target = memory_bytes
        for _ in range(_CORRECTIONS):
            over = self._loaded.meter.measure() - memory_bytes
            if over <= 0:
                return
            target -= over
            try:
                self._resize(self._plan(target))
            except Permanent:
                return

    def sleep(self) -> bool:
        """Drop the KV cache and let go of the weights; requests must have been aborted.

        Returns whether the weights wait in host memory; False: they are where they were and have to be dropped.
        """
        self._cache.drop_cached()
        loaded = self._loaded
        if loaded.built.causal is not None:
            loaded.built.causal.release_all()
        if not loaded.built.let_go():
            return False
        loaded.host_bytes = loaded.built.mapped_bytes
        return True

    def wake(self) -> float:
        """Take the weights back; return the seconds that took."""
        began = self._clock.monotonic()
        self._loaded.built.take_back()
        self._loaded.host_bytes = 0
        return self._clock.monotonic() - began

    @property
    def meter(self) -> Meter:
        """What measures the memory of the whole runtime."""
        return self._loaded.meter

    def stats(self) -> Stats:
        """Return counters and gauges; memory is measured now and then."""
        if self._clock.monotonic() - self._memory_at >= MEMORY_SECONDS:
            self.memory()
        live = self._cache.live_blocks
        self._kv_most = max(self._kv_most, live)
        return dataclasses.replace(
            self._counts,
            running=self._batcher.running,
            waiting=self._batcher.waiting + self._embeds.pending + self._forms.pending,
            kv_blocks_used=live,
            kv_blocks_total=self._cache.total_blocks,
            preemptions=self._batcher.preemptions,
            prefix_query_tokens=self._cache.query_tokens,
            prefix_hit_tokens=self._cache.hit_tokens,
            memory=self._memory,
            adapters=tuple(
                AdapterUse(name, *use) for name, use in sorted(self._batcher.adapter_use().items())
            ),
        )


def _refused(request_id: str, problem: str, *, bad_grammar: bool) -> RequestOutput:
    return RequestOutput(
        request_id, finish_reason=FinishReason.ERROR, message=problem, bad_grammar=bad_grammar
    )
