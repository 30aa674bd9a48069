"""What tools, resources and jobs work with: the App, which lives as long as the process, and the Call, one request."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from handoff.cache import Cache
from handoff.figures import Figures
from handoff.model import Caller
from handoff.operations.alerts import Alerts
from handoff.operations.health import Health
from handoff.operations.heartbeat import Heartbeat
from handoff.policies import Policies
from handoff.server.admission import Admission
from handoff.server.auth import Tokens
from handoff.settings import Settings
from handoff.store.connect import Pool
from handoff.store.lane import AppendLane
from handoff.wakeups import Wakeups

if TYPE_CHECKING:  # most of the telemetry's weight is in its exporters, which many processes never start
    from handoff.telemetry.otlp import Signals


@dataclass(frozen=True, slots=True)
class App:
    """Everything that lives as long as the process. `tokens` is None without a tokens file, `signals` without telemetry."""

    settings: Settings
    policies: Policies
    pool: Pool
    lane: AppendLane
    cache: Cache
    figures: Figures
    wakeups: Wakeups
    admission: Admission
    tokens: Tokens | None
    alerts: Alerts
    heartbeat: Heartbeat
    health: Health
    signals: "Signals | None"


@dataclass(slots=True)  # not frozen: one is built for every call
class Call:
    """A call: the App, the caller, and the time at which it was received (in monotonic seconds)."""

    app: App
    caller: Caller
    received: float
