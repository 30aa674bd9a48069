"""OpenTelemetry's standard variables are heeded, or the operator is told that they are not."""

from typing import Any

import pytest
from opentelemetry import environment_variables
from opentelemetry.sdk import environment_variables as sdk_environment_variables

from handoff.app import open_app, open_telemetry
from handoff.cli.doctor import examine
from handoff.settings import Settings
from handoff.telemetry import calls
from handoff.telemetry.environment import VARIABLES, unheeded
from tests.agents import until
from tests.collector import Collector
from tests.requests import body, headers
from tests.server.test_http import edge

SAMPLED = "00-11111111111111111111111111111111-2222222222222222-01"
UNSAMPLED = "00-55555555555555555555555555555555-6666666666666666-00"
REGISTER = {"name": "register_session", "arguments": {"agent": "alice"}}


async def test_a_disabled_sdk_stops_all_three_signals(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with open_telemetry(Settings(telemetry=True)) as signals:
        assert signals is None


async def test_what_has_no_effect_is_said_at_the_start_and_by_doctor(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "jaeger_remote")
    names = ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_SAMPLER"]
    async with open_telemetry(Settings(telemetry=True)):
        pass

    assert [line["name"] for line in logged if line["event"] == "telemetry.setting_unheeded"] == names
    [finding] = [it async for it in examine(Settings(telemetry=True)) if it.check == "telemetry"]
    assert finding.todo == "Unset or correct OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_TRACES_SAMPLER."


@pytest.mark.parametrize(
    ("sampler", "argument", "is_heeded"),
    [
        ("", "0.1", False),
        ("always_on", "0.1", False),
        ("jaeger_remote", "0.1", False),
        ("traceidratio", "ten", False),
        ("traceidratio", "0.1", True),
        ("ParentBased_TraceIdRatio", "0.1", True),
        ("always_on", "", True),
    ],
)
def test_a_ratio_without_a_sampler_that_has_one_is_complained_about(sampler: str, argument: str, *, is_heeded: bool) -> None:
    complaints = unheeded({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})
    assert ("OTEL_TRACES_SAMPLER_ARG" not in complaints) is is_heeded


def test_values_that_are_what_happens_anyway_are_not_complained_about() -> None:
    assert unheeded({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "PATH": "x"}) == {}
    assert set(unheeded({"OTEL_LOGS_EXPORTER": "console", "OTEL_PROPAGATORS": "tracecontext,b3"})) == {
        "OTEL_LOGS_EXPORTER",
        "OTEL_PROPAGATORS",
    }


def test_every_standard_variable_is_in_the_table_once() -> None:
    known = [name for variable in VARIABLES for name in variable.names]
    standard = {
        value
        for module in (environment_variables, sdk_environment_variables)
        for name, value in vars(module).items()
        if name.startswith("OTEL_") and not name.startswith("OTEL_PYTHON_")
    }
    assert len(known) == len(set(known))
    assert standard - set(known) == set()


@pytest.mark.parametrize(("signal", "others"), [("traces", "logs"), ("logs", "traces"), ("metrics", "traces")])
async def test_a_signal_can_be_switched_off(
    settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch, signal: str, others: str
) -> None:
    monkeypatch.setenv(f"OTEL_{signal.upper()}_EXPORTER", "none")
    watched = settings.model_copy(update={"telemetry": True})
    async with open_telemetry(watched) as signals, open_app(watched, signals=signals) as app:
        assert signals is not None
        assert signal not in signals.shipments()
        async with edge(app) as http:
            await http.post("/mcp", json=body("tools/call", **REGISTER), headers=headers("tools/call", "register_session"))
        await until(lambda: bool(collector.bodies[others]))
        assert "mcp_server_operation_duration_seconds" in signals.exposition().decode()

    assert collector.bodies[signal] == []


@pytest.mark.parametrize(
    ("sampler", "argument", "parent", "kept"),
    [
        ("always_off", "", SAMPLED, False),
        ("always_on", "", UNSAMPLED, True),
        ("parentbased_always_off", "", "", False),
        ("parentbased_always_off", "", SAMPLED, True),
        ("traceidratio", "0", SAMPLED, False),
        ("traceidratio", "1", "", True),
    ],
)
async def test_a_standard_sampler_decides_which_traces_are_kept(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, parent: str, *, kept: bool
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    async with open_telemetry(Settings(telemetry=True)) as signals:
        assert signals is not None
        assert signals.tracer is not None
        record = calls.begin({"traceparent": parent} if parent else {}, {})
        decisions = {signals.tracer.decide(record, noteworthy=True) for _ in range(200)}
        calls.leave()

    assert decisions == ({"asked" if parent == SAMPLED else "ordinary"} if kept else {"no"})


async def test_the_context_of_callers_is_ignored_without_the_propagator_for_it(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for propagators, is_read in (("none", False), ("baggage", False), ("tracecontext,baggage", True)):
        monkeypatch.setenv("OTEL_PROPAGATORS", propagators)
        async with open_telemetry(Settings(telemetry=True)):
            record = calls.begin({"traceparent": SAMPLED, "baggage": "a=b"}, {})
            calls.leave()
        assert (record.parent is not None) is is_read


async def test_the_limits_of_queues_and_batches_can_be_set_and_wrong_ones_are_named(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "3")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "many")
    async with open_telemetry(Settings(telemetry=True)) as signals:
        assert signals is not None
        spans = next(shipper for shipper in signals.shippers if shipper.name == "traces")
        for _ in range(5):
            spans.put(object())
        assert (spans.state().waiting, spans.state().dropped) == (3, 2)
    named = [line["name"] for line in logged if line["event"] == "telemetry.setting_unheeded"]
    assert named == ["OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"]
