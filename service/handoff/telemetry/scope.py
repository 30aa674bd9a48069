"""The instrumentation scope of all our signals. It loads the SDK: import it only where something is exported."""

from typing import Final

from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv.schemas import Schemas

from handoff import __version__

SCHEMA_URL: Final = Schemas.V1_44_0.value  # whose names of attributes we use; those of GenAI and MCP have no version yet
SCOPE: Final = InstrumentationScope("handoff", __version__, SCHEMA_URL)
