"""The board of devices: utilisation, saturation, errors (USE)."""

from __future__ import annotations

from scripts.dashboards.panels import Board, Panel, Row, stat

_GPU = '{node=~"$node", product=~"$product"}'
_DEVICE = "{{node}} {{gpu}}"
FLEET = Board(
    "llmos-fleet",
    "LLMOS / Fleet",
    "Utilisation, saturation and errors of every device.",
    {"node": "label_values(llmos_gpu_info, node)", "product": "label_values(llmos_gpu_info, product)"},
    (
        Row(
            "Overview",
            (
                stat("Devices", "Devices the agents report.", "short", f"count(llmos_gpu_info{_GPU})"),
                stat(
                    "Not healthy",
                    "Devices whose verdict is Degraded, Unhealthy or Unknown.",
                    "short",
                    'sum(llmos_gpu_verdict{verdict!="Healthy", node=~"$node", product=~"$product"})',
                ),
                stat("Memory", "Memory of all devices.", "bytes", f"sum(llmos_gpu_memory_total_bytes{_GPU})"),
                stat(
                    "Memory used",
                    "Used share of the memory of all devices.",
                    "percentunit",
                    f"sum(llmos_gpu_memory_used_bytes{_GPU}) / sum(llmos_gpu_memory_total_bytes{_GPU})",
                ),
                stat("Power", "Draw of all devices.", "watt", f"sum(llmos_gpu_power_watts{_GPU})"),
                stat(
                    "Agents heard",
                    "Agents whose telemetry the operator took in the last minute.",
                    "short",
                    'count(time() - max by (node) (llmos_operator_telemetry_timestamp_seconds{node=~"$node"}) < 60)',
                ),
            ),
        ),
        Row(
            "Utilisation",
            (
                Panel(
                    "Kernels running",
                    "Share of time in which some kernel ran. It says nothing about how much of the device it used.",
                    "percentunit",
                    {f"llmos_gpu_utilization_ratio{_GPU}": _DEVICE},
                    maximum=1,
                ),
                Panel(
                    "Multiprocessors busy",
                    "Share of multiprocessors at work, where the device can tell.",
                    "percentunit",
                    {f"llmos_gpu_sm_active_ratio{_GPU}": _DEVICE},
                    maximum=1,
                ),
                Panel(
                    "Memory used",
                    "Used share of each device's memory.",
                    "percentunit",
                    {f"llmos_gpu_memory_used_bytes{_GPU} / llmos_gpu_memory_total_bytes{_GPU}": _DEVICE},
                    maximum=1,
                ),
            ),
        ),
        Row(
            "Saturation",
            (
                Panel(
                    "Clocks held down",
                    "Devices whose clocks are limited, by reason.",
                    "short",
                    {f"sum by (reason) (llmos_gpu_clock_limited{_GPU})": "{{reason}}"},
                ),
                Panel(
                    "Temperature",
                    "Temperature of the die.",
                    "celsius",
                    {f"llmos_gpu_temperature_celsius{_GPU}": _DEVICE},
                ),
                Panel(
                    "Strain",
                    "How much less devices count in placement than their like, by heat and power brakes, and by the age of their memory.",
                    "percentunit",
                    {
                        'sum by (node, gpu) (llmos_operator_device_strain_ratio{node=~"$node"})': _DEVICE,
                    },
                    maximum=1,
                ),
                Panel(
                    "Held down",
                    "Devices that take no new work because heat or a power brake holds them down most of the time.",
                    "short",
                    {'max by (node) (llmos_operator_held_down_devices{node=~"$node"})': "{{node}}"},
                ),
                Panel(
                    "Power against budget",
                    "Of the power budget of nodes and racks: what is drawn, and what is expected with everything at work.",
                    "percentunit",
                    {
                        "max by (level, name) (llmos_operator_power_drawn_watts) / max by (level, name) (llmos_operator_power_budget_watts)": "{{level}} {{name}} drawn",
                        "max by (level, name) (llmos_operator_power_expected_watts) / max by (level, name) (llmos_operator_power_budget_watts)": "{{level}} {{name}} expected",
                    },
                ),
                Panel(
                    "Power against limit",
                    "Draw as a share of the limit in force.",
                    "percentunit",
                    {f"llmos_gpu_power_watts{_GPU} / llmos_gpu_power_limit_watts{_GPU}": _DEVICE},
                ),
            ),
        ),
        Row(
            "Errors",
            (
                Panel(
                    "Findings against devices",
                    "What stands against a device's health, by reason.",
                    "short",
                    {
                        f"sum by (node, gpu, reason) (llmos_gpu_health_cause{_GPU})": "{{node}} {{gpu}} {{reason}}"
                    },
                ),
                Panel(
                    "XID errors",
                    "Errors the driver reported, in the last hour.",
                    "short",
                    {
                        f"sum by (node, gpu, xid) (increase(llmos_gpu_xid_errors_total{_GPU}[1h]))": "{{node}} {{gpu}} XID {{xid}}"
                    },
                ),
                Panel(
                    "Memory errors",
                    "ECC errors in the last hour.",
                    "short",
                    {f"sum by (node, gpu) (increase(llmos_gpu_ecc_errors_total{_GPU}[1h]))": _DEVICE},
                ),
                Panel(
                    "Use beyond the ledger",
                    "Device memory in use that no reservation covers.",
                    "bytes",
                    {'max by (node) (llmos_operator_unreserved_bytes{node=~"$node"})': "{{node}}"},
                ),
                Panel(
                    "Silence",
                    "Time since the operator took a node's telemetry.",
                    "s",
                    {
                        'time() - max by (node) (llmos_operator_telemetry_timestamp_seconds{node=~"$node"})': "{{node}}"
                    },
                ),
                Panel(
                    "Reports not taken",
                    "Reports of agents that the operator or the API server did not take.",
                    "ops",
                    {
                        'sum by (node, receiver) (rate(llmos_agent_publish_total{result="error", node=~"$node"}[$__rate_interval]))': "{{node}} to {{receiver}}"
                    },
                ),
                Panel(
                    "Driver calls that hang",
                    "Calls into the driver that have not come back.",
                    "short",
                    {'llmos_agent_hung_calls{node=~"$node"}': "{{node}}"},
                ),
            ),
        ),
    ),
)
