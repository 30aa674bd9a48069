"""OpenTelemetry's standard variables are heeded, or the operator is told that they are not."""

from typing import Any

import pytest

from handoff.app import open_telemetry
from handoff.cli.doctor import examine
from handoff.settings import Settings
from handoff.telemetry.environment import unheeded
from tests.collector import Collector


async def test_a_disabled_sdk_stops_all_three_signals(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with open_telemetry(Settings(telemetry=True)) as signals:
        assert signals is None


async def test_what_has_no_effect_is_said_at_the_start_and_by_doctor(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    names = ["OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_PROTOCOL"]
    async with open_telemetry(Settings(telemetry=True)):
        pass

    assert [line["name"] for line in logged if line["event"] == "telemetry.setting_unheeded"] == names
    [finding] = [it async for it in examine(Settings(telemetry=True)) if it.check == "telemetry"]
    assert finding.todo == "Unset OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_PROTOCOL."


def test_values_that_are_what_happens_anyway_are_not_complained_about() -> None:
    assert unheeded({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "PATH": "x"}) == {}
    assert set(unheeded({"OTEL_LOGS_EXPORTER": "none"})) == {"OTEL_LOGS_EXPORTER"}
