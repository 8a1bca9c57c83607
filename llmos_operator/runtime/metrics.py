"""Figures of the runtime: vLLM's names and bucket edges, and our own under `llmos_runtime_`.

Dashboards, autoscalers and the Gateway API inference extension read vLLM's. Names of vLLM V1 as documented at
https://docs.vllm.ai/en/latest/design/metrics.html; labels `model_name` and `engine`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from llmos_operator.observability.metrics import span_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.ipc.client import EngineStatus

FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
PER_TOKEN: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKENS: Final = tuple(m * 10**e for e in range(6) for m in (1, 2, 5) if m * 10**e <= 200_000)  # noqa: PLR2004
CHOICES: Final = (1, 2, 5, 10, 20)
LOAD: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
SWAP: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_LABELS: Final = ["model_name", "engine"]
ENGINE: Final = "0"


class FrontMetrics:
    """What the front counts whoever makes the answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http = Counter(
            "llmos_runtime_http_requests_total",
            "Requests by endpoint and HTTP status.",
            ["endpoint", "code"],
            registry=registry,
        )
        self.disconnects = Counter(
            "llmos_runtime_client_gone_total", "Requests whose client left before the end.", registry=registry
        )
        self._swaps = Histogram(
            "llmos_runtime_adapter_swap_seconds",
            "Time from the order to load or unload an adapter to its effect.",
            ["action"],
            buckets=SWAP,
            registry=registry,
        )
        self.spans = span_counter(registry)
        self.drain = Histogram(
            "llmos_runtime_drain_seconds", "Time a drain took.", buckets=LATENCY, registry=registry
        )

    def adapter_swapped(self, action: str, seconds: float) -> None:
        """Count an adapter that came ("load") or went ("unload")."""
        self._swaps.labels(action).observe(seconds)


class RequestMetrics(FrontMetrics):
    """What the front observes of requests to our own engine."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        super().__init__(registry)
        self._registry = registry
        self._model = model

        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Time to the first token.", FIRST_TOKEN
        )
        self.inter_token = self._histogram("inter_token_latency_seconds", "Time between tokens.", PER_TOKEN)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between tokens of a request.", PER_TOKEN
        )
        self.end_to_end = self._histogram("e2e_request_latency_seconds", "Time of a whole request.", LATENCY)
        self.queue = self._histogram("request_queue_time_seconds", "Time a request waited.", LATENCY)
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "Time from start to first token.", LATENCY
        )
        self.decode = self._histogram(
            "request_decode_time_seconds", "Time from first to last token.", LATENCY
        )
        self.inference = self._histogram("request_inference_time_seconds", "Time from start to end.", LATENCY)
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.generation_tokens = self._histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.max_tokens = self._histogram("request_params_max_tokens", "max_tokens of requests.", TOKENS)
        self.choices = self._histogram("request_params_n", "n of requests.", CHOICES)
        self.audio = Counter(
            "llmos_runtime_audio_seconds_total", "Seconds of sound written down.", registry=registry
        )
        self._changes = Histogram(
            "llmos_runtime_format_change_seconds",
            "Time from the order to serve another format to its effect, by how that went.",
            ["result"],
            buckets=LOAD,
            registry=registry,
        )
        self._success = Counter(
            "vllm:request_success",
            "Requests finished, by reason.",
            [*_LABELS, "finished_reason"],
            registry=registry,
        )
        self.ended = {
            reason: self._success.labels(model, ENGINE, reason)
            for reason in ("stop", "length", "abort", "error")
        }

    def format_changed(self, result: str, seconds: float) -> None:
        """Count a change of format: "beside", "one_after_the_other" or "failed"."""
        self._changes.labels(result).observe(seconds)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        found = Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self._registry)
        return found.labels(self._model, ENGINE)


class EngineCollector(Collector):
    """Reads the engine's own figures when Prometheus asks: they are kept once, in its status."""

    def __init__(
        self,
        model: str,
        status: Callable[[], EngineStatus],
        admission: Admission,
        max_adapters: int,
        now: Callable[[], float],
    ) -> None:
        """``now`` gives epoch seconds."""
        self._labels = [model, ENGINE]
        self._status = status
        self._admission = admission
        self._max_adapters = max_adapters
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        status = self._status()
        yield from self._gauges(status)
        yield from self._counters(status)
        yield from self._infos(status)
        yield from self._own(status)

    def _gauges(self, status: EngineStatus) -> Iterator[Metric]:
        stats = status.stats
        share = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        asleep = 1.0 if status.state == "Asleep" else 0.0
        for name, text, value in (
            ("num_requests_running", "Requests being answered.", stats.running),
            ("num_requests_waiting", "Requests waiting.", stats.waiting),
            ("kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", share),
            ("gpu_cache_usage_perc", "Older name of kv_cache_usage_perc.", share),
            ("engine_sleep_state", "1 while the model sleeps.", asleep),
        ):
            yield self._gauge(f"vllm:{name}", text, value)

    def _counters(self, status: EngineStatus) -> Iterator[Metric]:
        stats = status.stats
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("num_preemptions", "Requests preempted.", stats.preemptions),
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_query_tokens),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_hit_tokens),
            ("spec_decode_num_draft_tokens", "Tokens guessed.", stats.draft_tokens),
            ("spec_decode_num_accepted_tokens", "Tokens guessed right.", stats.accepted_tokens),
            ("admission_rejections", "Requests refused with 429.", self._admission.rejected),
        ):
            yield self._counter(f"vllm:{name}", text, value)

    def _infos(self, status: EngineStatus) -> Iterator[Metric]:
        info = status.info
        use = status.stats.adapters
        lora = {
            "max_lora": str(self._max_adapters),
            "waiting_lora_adapters": ",".join(one.name for one in use if one.waiting),
            "running_lora_adapters": ",".join(one.name for one in use if one.running),
        }
        yield labelled(
            "vllm:lora_requests_info",
            "Adapters in use; the value is when that was so.",
            [(lora, self._now())],
        )
        state = [({"state": status.state.value}, 1.0)]
        yield labelled("llmos_runtime_state", "State of the runtime; 1 for the current one.", state)
        if info is None:
            return
        cache = {
            "block_size": str(info.kv_block_tokens),
            "num_gpu_blocks": str(info.kv_blocks),
            "cache_dtype": "auto",
            "engine": ENGINE,
        }
        yield labelled("vllm:cache_config_info", "The KV cache; always 1.", [(cache, 1.0)])
        model = {
            "model_name": self._labels[0],
            "format": info.format,
            "digest": info.digest,
            "architecture": info.architecture,
        }
        yield labelled("llmos_runtime_model_info", "The model; always 1.", [(model, 1.0)])
        stages = [
            ({"stage": stage, "path": info.load_path}, seconds) for stage, seconds in info.stage_seconds
        ]
        yield labelled("llmos_runtime_load_seconds", "Time of the last load, by stage.", stages)

    def _own(self, status: EngineStatus) -> Iterator[Metric]:
        memory = status.memory
        kinds = ("predicted", "measured", "peak", "weights", "kv", "base", "limit")
        sizes = [({"kind": kind}, float(getattr(memory, f"{kind}_bytes"))) for kind in kinds]
        yield labelled("llmos_runtime_memory_bytes", "Memory by kind: predicted, measured, its parts.", sizes)
        wait: list[tuple[dict[str, str], float]] = [({}, self._admission.expected_wait())]
        yield labelled("llmos_runtime_expected_wait_seconds", "Expected wait of a new request.", wait)
        for name, text, value in (
            ("engine_restarts", "Engines that ended unasked.", float(status.restarts)),
            ("step_seconds", "Time spent in engine steps.", status.stats.step_seconds),
            ("steps", "Engine steps.", float(status.stats.steps)),
        ):
            family = CounterMetricFamily(f"llmos_runtime_{name}", text)
            family.add_metric([], value)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, float(value))
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, float(value))
        return family


def labelled(name: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
    """Return a gauge with these labels and values."""
    family = GaugeMetricFamily(name, text, labels=list(samples[0][0]) if samples else [])
    for labels, value in samples:
        family.add_metric(list(labels.values()), value)
    return family
