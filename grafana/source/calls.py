"""Which calls count, in the dashboards as in the rules: tool calls; `failed` is our fault, `refused` the caller's."""

from typing import Final

from grafana.source.promql import where
from handoff.telemetry import metrics as t

CALLS: Final = where(t.METHOD, "tools/call", "=")
OURS: Final = "internal|unavailable|overloaded"
FAILED: Final = where(t.CODE, OURS)
REFUSED: Final = where(t.CODE, f"|{OURS}", "!~")
OK: Final = where(t.CODE, "", "=")
PROMPT: Final = where(t.TOOL, "get_inbox", "!=")  # which may wait by design
ON_TOOLS: Final = (where(t.TOOL, "$tool"), where("service_instance_id", "$instance"))
