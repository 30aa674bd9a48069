"""The source of the dashboards: one module per page, built from the names declared in handoff.telemetry.metrics.

`make dashboards` writes the JSON that Grafana loads to ../dashboards.

    promql    metric and label names in Prometheus, and the PromQL expressions that pages share
    panels    the panel types, and what all panels share: colours, thresholds, texts for missing values
    page      a page: its question, variables, links and annotations
"""
