"""The dashboards' source: a module a page, built from the names that handoff.telemetry declares. `make dashboards` writes
them to ../dashboards, as Grafana reads them.

    promql    what an instrument is called in Prometheus, and the questions that are asked of it again and again
    panels    the few kinds of panel, and what is the same on all: colours, thresholds, empty states
    page      a page: its question, variables, links and annotations
"""
