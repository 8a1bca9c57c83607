"""The board of workloads: rate, errors, duration (RED)."""

from __future__ import annotations

from scripts.dashboards.panels import Board, Panel, Row, quantiles

_WORK = '{namespace=~"$namespace", workload=~"$workload"}'
_NAMED = "{{namespace}}/{{workload}}"
WORKLOADS = Board(
    "llmos-workloads",
    "LLMOS / Workloads",
    "Rate, errors and duration of what clients ask for, and what it costs the models.",
    {
        "namespace": "label_values(llmos_gateway_requests_total, namespace)",
        "workload": 'label_values(llmos_gateway_requests_total{namespace=~"$namespace"}, workload)',
    },
    (
        Row(
            "Rate",
            (
                Panel(
                    "Requests",
                    "Requests answered by the gateway.",
                    "reqps",
                    {
                        f"sum by (namespace, workload) (rate(llmos_gateway_requests_total{_WORK}[$__rate_interval]))": _NAMED
                    },
                ),
                Panel(
                    "Tokens",
                    "Tokens read and generated, as answers told.",
                    "short",
                    {
                        f"sum by (workload, kind) (rate(llmos_gateway_tokens_total{_WORK}[$__rate_interval]))": "{{workload}} {{kind}}"
                    },
                ),
                Panel(
                    "Requests in flight and held",
                    "Requests at replicas, and those that wait for one to start.",
                    "short",
                    {
                        f"sum by (workload) (llmos_gateway_in_flight{_WORK})": "{{workload}} in flight",
                        f"sum by (workload) (llmos_gateway_held{_WORK})": "{{workload}} held",
                    },
                ),
            ),
        ),
        Row(
            "Errors",
            (
                Panel(
                    "Failed requests",
                    "Share of requests answered with 5xx.",
                    "percentunit",
                    {
                        'sum by (namespace, workload) (rate(llmos_gateway_requests_total{code=~"5..", namespace=~"$namespace", workload=~"$workload"}[$__rate_interval])) '
                        f"/ sum by (namespace, workload) (rate(llmos_gateway_requests_total{_WORK}[$__rate_interval]))": _NAMED
                    },
                    maximum=1,
                ),
                Panel(
                    "Replicas that broke off",
                    "Answers a replica broke off or never gave, by reason.",
                    "ops",
                    {
                        f"sum by (workload, reason) (rate(llmos_gateway_upstream_errors_total{_WORK}[$__rate_interval]))": "{{workload}} {{reason}}"
                    },
                ),
                Panel(
                    "Engines that ended",
                    "Engine processes that ended unasked in the last hour.",
                    "short",
                    {
                        f"sum by (namespace, workload) (increase(llmos_runtime_engine_restarts_total{_WORK}[1h]))": _NAMED
                    },
                ),
            ),
        ),
        Row(
            "Duration",
            (
                Panel(
                    "Whole request",
                    "Time to the last byte, holds included.",
                    "s",
                    quantiles("llmos_gateway_request_seconds", _WORK, "workload"),
                ),
                Panel(
                    "First token",
                    "Time to the first token in the runtime.",
                    "s",
                    quantiles("vllm:time_to_first_token_seconds", _WORK, "workload"),
                ),
                Panel(
                    "Between tokens",
                    "Time between two tokens.",
                    "s",
                    quantiles("vllm:inter_token_latency_seconds", _WORK, "workload"),
                ),
                Panel(
                    "Held",
                    "Time requests waited for a replica to start.",
                    "s",
                    quantiles("llmos_gateway_hold_seconds", _WORK, "workload"),
                ),
                Panel(
                    "Queue of the runtime",
                    "Time requests waited in a runtime.",
                    "s",
                    quantiles("vllm:request_queue_time_seconds", _WORK, "workload"),
                ),
                Panel(
                    "Gateway's own time",
                    "Time the gateway spent before it sent a request on.",
                    "s",
                    quantiles("llmos_gateway_overhead_seconds", ""),
                ),
            ),
        ),
        Row(
            "Models",
            (
                Panel(
                    "Running and waiting",
                    "Requests in the runtimes.",
                    "short",
                    {
                        f"sum by (workload) (vllm:num_requests_running{_WORK})": "{{workload}} running",
                        f"sum by (workload) (vllm:num_requests_waiting{_WORK})": "{{workload}} waiting",
                    },
                ),
                Panel(
                    "KV cache",
                    "Used share of the KV cache.",
                    "percentunit",
                    {f"max by (namespace, workload) (vllm:kv_cache_usage_perc{_WORK})": _NAMED},
                    maximum=1,
                ),
                Panel(
                    "Memory against prediction",
                    "Measured memory of a runtime as a share of what was predicted; above 1 the estimate was too low.",
                    "percentunit",
                    {
                        'max by (namespace, workload) (llmos_runtime_memory_bytes{kind="measured", namespace=~"$namespace", workload=~"$workload"}) '
                        '/ max by (namespace, workload) (llmos_runtime_memory_bytes{kind="predicted", namespace=~"$namespace", workload=~"$workload"})': _NAMED
                    },
                ),
                Panel(
                    "Load time",
                    "Time of the last load, by stage.",
                    "s",
                    {
                        f"max by (workload, stage) (llmos_runtime_load_seconds{_WORK})": "{{workload}} {{stage}}"
                    },
                ),
            ),
        ),
    ),
)
