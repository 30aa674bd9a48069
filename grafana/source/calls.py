"""Label matchers for tool calls, with the same meaning as in the alert rules.

A call "failed" through a fault of the service, and was "refused" because of the caller's mistake. A call that its caller gave up
is neither.
"""

from typing import Final

from grafana.source.promql import matcher
from handoff.telemetry import metrics as t

SERVER_FAULTS: Final = ("internal", "unavailable", "overloaded")
_ANY_FAULT: Final = "|".join(SERVER_FAULTS)
TOOL_CALLS: Final = matcher(t.METHOD, "tools/call", "=")
OK: Final = matcher(t.CODE, "", "=")
FAILED: Final = matcher(t.CODE, _ANY_FAULT)
REFUSED: Final = matcher(t.CODE, f"|{_ANY_FAULT}|cancelled", "!~")
EXCEPT_GET_INBOX: Final = matcher(t.TOOL, "get_inbox", "!=")  # its calls may wait by design, so latencies leave them out
SELECTED: Final = (matcher(t.TOOL, "$tool"), matcher("service_instance_id", "$instance"))
