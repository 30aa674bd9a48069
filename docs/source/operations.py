"""The tables of alerts and of jobs."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import yaml

from docs.source.markdown import code, escaped, sentence, table
from handoff.jobs.table import JOBS, Job
from handoff.settings import Settings

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "prometheus" / "rules"
RUNBOOK: Final = "../prometheus/runbook.md"
_SEVERITIES: Final = ("critical", "warning", "info")


def alerts() -> str:
    """A table of the alerts of each file of rules, the gravest first, linked to the runbook."""
    parts: list[str] = []
    count = 0
    for path in sorted(RULES.glob("*.yml")):
        rules: list[dict[str, Any]] = [
            rule
            for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
            for rule in group["rules"]
            if "alert" in rule and rule["labels"]["severity"] in _SEVERITIES
        ]
        if rules:
            count += len(rules)
            rules.sort(key=lambda rule: _SEVERITIES.index(rule["labels"]["severity"]))
            parts += [f"From `prometheus/rules/{path.name}`:", table(("Alert", "Severity", "Summary"), map(_alert, rules))]
    return "\n\n".join([f"There are {count}, besides the Watchdog, which always fires.", *parts])


def jobs() -> str:
    """Every job: its interval by default, and what it does."""
    return table(("Job", "Runs every", "What it does"), map(_job, JOBS))


def _alert(rule: dict[str, Any]) -> tuple[str, str, str]:
    name: str = rule["alert"]
    return (
        f"[{name}]({RUNBOOK}#{name.lower()})",
        rule["labels"]["severity"],
        escaped(_readable(rule["annotations"]["summary"])),
    )


def _readable(template: str) -> str:
    """An annotation without Prometheus's template language: `{value}` and `{label}` stand for what it puts in."""
    text = re.sub(r"\{\{ with .*?\{\{ end \}\}", "{threshold}", template)
    text = re.sub(r"\{\{ if ne .*?\}\}s\{\{ end \}\}", "s", text)  # the plural
    text = re.sub(r"\{\{ \$value\b.*?\}\}", "{value}", text)
    return re.sub(r"\{\{ \$labels\.(\w+)\b.*?\}\}", r"{\1}", text)


def _job(job: Job) -> tuple[str, str, str]:
    module = import_module(job.run.__module__)
    return code(job.name), f"{job.every_s(Settings.model_construct()):,.0f} s", escaped(sentence(module.__doc__))
