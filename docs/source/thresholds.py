"""The table of thresholds: name, default, range, and what compares with each."""

import re
from typing import Final

import yaml

from docs.source.markdown import code, table
from docs.source.operations import RULES
from handoff.configuration import THRESHOLDS
from handoff.operations.checks import LIMITS

_NAME: Final = re.compile(r'handoff:threshold\{of="(\w+)"\}')


def thresholds() -> str:
    """Every threshold that can be configured."""
    users: dict[str, list[str]] = {name: [] for name in THRESHOLDS}
    for component, (degraded, unhealthy, _) in LIMITS.items():
        for name in (degraded, *([unhealthy] if unhealthy else [])):
            users[name].append(f"health: {code(component)}")
    for file in sorted(RULES.glob("*.yml")):
        for rule in (rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]):
            for name in sorted(set(_NAME.findall(str(rule["expr"]))) if "alert" in rule else ()):
                users[name].append(rule["alert"])
    return table(
        ("Threshold", "Default", "Allowed", "Compared with by"),
        [
            (code(name), code(f"{it.default:.15g}"), f"{it.least:,.15g} to {it.most:,.15g}", ", ".join(users[name]))
            for name, it in THRESHOLDS.items()
        ],
    )
