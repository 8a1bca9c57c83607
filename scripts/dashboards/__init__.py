"""The chart's Grafana dashboards, written as data: `helm/llmos-operator/dashboards/*.json`.

A panel is a title, a sentence on what it tells, a unit and queries; everything else of Grafana's format follows from
that, so three boards look alike and a review reads queries. tests/unit/chart/test_monitoring.py holds every metric and
label named here against what the processes expose.
"""
