"""The board of the scheduler: what waits, how decisions go, what the operator knows."""

from __future__ import annotations

from scripts.dashboards.panels import Board, Panel, Row, quantiles, stat

SCHEDULER = Board(
    "llmos-scheduler",
    "LLMOS / Scheduler",
    "What waits, how fast decisions are taken and carried out, and whether the operator sees the cluster as it is.",
    {},
    (
        Row(
            "Overview",
            (
                stat(
                    "Leader",
                    "Operators that lead: 1, or 0 for seconds while another takes over.",
                    "short",
                    "sum(llmos_operator_leader)",
                ),
                stat("Synced", "1 while decisions are taken.", "short", "max(llmos_operator_synced)"),
                stat("Waiting", "Workloads that wait.", "short", "sum(llmos_operator_pending_workloads)"),
                stat(
                    "Writes under way",
                    "Writes waiting or under way.",
                    "short",
                    "sum(llmos_operator_waiting_writes)",
                ),
                stat(
                    "Decision, p99",
                    "Planning time of one cycle.",
                    "s",
                    "histogram_quantile(0.99, sum by (le) (rate(llmos_operator_cycle_seconds_bucket[$__rate_interval])))",
                ),
                stat(
                    "Oldest view",
                    "Age of the watch that was silent longest.",
                    "s",
                    "max(llmos_operator_view_age_seconds)",
                ),
            ),
        ),
        Row(
            "Queue",
            (
                Panel(
                    "Waiting, by reason",
                    "Why workloads wait.",
                    "short",
                    {"sum by (reason) (llmos_operator_pending_workloads)": "{{reason}}"},
                ),
                Panel(
                    "Waiting, by queue",
                    "Workloads with a replica that has no place.",
                    "short",
                    {"sum by (queue) (llmos_operator_waiting_workloads)": "{{queue}}"},
                ),
                Panel(
                    "Longest wait",
                    "How long the workload that waits longest has waited.",
                    "s",
                    {"time() - min by (queue) (llmos_operator_waiting_since_timestamp_seconds)": "{{queue}}"},
                ),
                Panel(
                    "Devices held",
                    "Devices that claims hold, by queue; a shared device counts by the part that is held.",
                    "short",
                    {
                        "sum by (queue) (rate(llmos_operator_gpu_seconds_total[$__rate_interval]))": "{{queue}}"
                    },
                ),
                Panel(
                    "Workloads, by phase",
                    "All workloads.",
                    "short",
                    {"sum by (phase) (llmos_operator_workloads)": "{{phase}}"},
                ),
                Panel(
                    "Time to the first pod",
                    "From the creation of a workload to its first pod.",
                    "s",
                    quantiles("llmos_operator_bind_seconds", ""),
                ),
                Panel(
                    "Time to serve",
                    "From the decision to place a replica until it serves.",
                    "s",
                    quantiles("llmos_operator_ready_seconds", ""),
                ),
            ),
        ),
        Row(
            "Use",
            (
                Panel(
                    "Utilisation",
                    "Of the capacity of all devices: the part that is held, and the part that works.",
                    "percentunit",
                    {
                        "sum(rate(llmos_operator_gpu_seconds_total[$__rate_interval])) / count(llmos_gpu_info)": "held",
                        "sum(rate(llmos_operator_gpu_busy_seconds_total[$__rate_interval])) / count(llmos_gpu_info)": "busy",
                    },
                    maximum=1,
                ),
                Panel(
                    "Held and idle",
                    "Devices that are held and do nothing, by queue.",
                    "short",
                    {
                        "sum by (queue) (rate(llmos_operator_gpu_idle_seconds_total[$__rate_interval]))": "{{queue}}"
                    },
                ),
                Panel(
                    "Workloads, by what they do",
                    "Workloads with pods that work, idle, or of which nobody can tell.",
                    "short",
                    {"sum by (activity) (llmos_operator_workload_activity)": "{{activity}}"},
                ),
                Panel(
                    "Lost to neighbours",
                    "Part of its speed that a model was seen to lose on a shared device beside another one.",
                    "percentunit",
                    {
                        "max by (model, beside) (llmos_operator_interference_ratio)": "{{model}} beside {{beside}}"
                    },
                    maximum=1,
                ),
                Panel(
                    "Lost to evictions",
                    "Devices whose work evictions threw away, by queue.",
                    "short",
                    {
                        "sum by (queue) (rate(llmos_operator_gpu_lost_seconds_total[$__rate_interval]))": "{{queue}}"
                    },
                ),
                Panel(
                    "Memory reserved",
                    "Device memory that claims hold, by queue.",
                    "bytes",
                    {
                        "sum by (queue) (rate(llmos_operator_gpu_memory_byte_seconds_total[$__rate_interval]))": "{{queue}}"
                    },
                ),
                Panel(
                    "Power of work",
                    "Power of the devices that are held, by queue.",
                    "watt",
                    {
                        "sum by (queue) (rate(llmos_operator_energy_joules_total[$__rate_interval]))": "{{queue}}"
                    },
                ),
                Panel(
                    "Tokens",
                    "Tokens read and generated, by queue.",
                    "ops",
                    {"sum by (queue) (rate(llmos_operator_tokens_total[$__rate_interval]))": "{{queue}}"},
                ),
            ),
        ),
        Row(
            "Decisions",
            (
                Panel(
                    "Planning time", "Time of one cycle.", "s", quantiles("llmos_operator_cycle_seconds", "")
                ),
                Panel(
                    "Actions",
                    "Actions of plans.",
                    "ops",
                    {"sum by (action) (rate(llmos_operator_actions_total[$__rate_interval]))": "{{action}}"},
                ),
                Panel(
                    "Cycles cut short",
                    "Cycles that ended at their time budget.",
                    "ops",
                    {"sum(rate(llmos_operator_cycles_interrupted_total[$__rate_interval]))": "cut short"},
                ),
                Panel(
                    "Plans that failed",
                    "Cycles that ended in a bug, in the last hour.",
                    "short",
                    {"sum(increase(llmos_operator_failed_plans_total[1h]))": "failed"},
                ),
                Panel(
                    "Evictions",
                    "Evictions by reason and result.",
                    "ops",
                    {
                        "sum by (reason, result) (rate(llmos_operator_evictions_total[$__rate_interval]))": "{{reason}} {{result}}"
                    },
                ),
                Panel(
                    "Pods refused",
                    "Pods the API server refused.",
                    "ops",
                    {"sum(rate(llmos_operator_bind_failures_total[$__rate_interval]))": "refused"},
                ),
                Panel(
                    "Models inspected",
                    "Inspections of models by result.",
                    "ops",
                    {
                        "sum by (result) (rate(llmos_operator_inspections_total[$__rate_interval]))": "{{result}}"
                    },
                ),
            ),
        ),
        Row(
            "The API server",
            (
                Panel(
                    "Requests",
                    "Requests by verb and resource.",
                    "reqps",
                    {
                        "sum by (verb, resource) (rate(llmos_operator_api_request_seconds_count[$__rate_interval]))": "{{verb}} {{resource}}"
                    },
                ),
                Panel(
                    "Latency",
                    "Time of a request.",
                    "s",
                    quantiles("llmos_operator_api_request_seconds", "", "verb"),
                ),
                Panel(
                    "Failures",
                    "Requests without an answer (0), refused or failed.",
                    "ops",
                    {
                        'sum by (code) (rate(llmos_operator_api_request_seconds_count{code!~"2.."}[$__rate_interval]))': "{{code}}"
                    },
                ),
            ),
        ),
        Row(
            "What the operator knows",
            (
                Panel(
                    "Age of views",
                    "Seconds since the last sign of life of each watch.",
                    "s",
                    {"max by (kind) (llmos_operator_view_age_seconds)": "{{kind}}"},
                ),
                Panel(
                    "Repaired by resync",
                    "Changes no watch had told.",
                    "short",
                    {"sum by (kind) (increase(llmos_operator_repaired_objects_total[1h]))": "{{kind}}"},
                ),
                Panel(
                    "Telemetry",
                    "Batches of agents by result.",
                    "ops",
                    {
                        "sum by (result) (rate(llmos_operator_telemetry_batches_total[$__rate_interval]))": "{{result}}"
                    },
                ),
                Panel(
                    "Fenced writes",
                    "Writes dropped because the process did not lead any more.",
                    "short",
                    {"sum(llmos_operator_fenced_writes)": "fenced"},
                ),
            ),
        ),
    ),
)
