"""Metrics, traces and logs: what is recorded, and how it leaves the process. To add a metric, see `metrics`."""
