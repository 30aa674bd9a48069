"""One command starts the whole stack, any number of times, and no data is lost."""

import re
from collections.abc import Callable, Generator
from typing import Any

import httpx2
import pytest

from tests.stack.bundle import ANSWER_S, Stack, run
from tests.stack.conftest import ADA_TOKEN

CALLS = "mcp_server_operation_duration_seconds_count"
ONE_SHOTS = {"check-permissions", "secrets", "volumes", "roles", "migrate"}


@pytest.fixture
def back_up(stack: Stack) -> Generator[None]:
    """Start the stack again after the test, whatever it stopped."""
    yield
    stack.up()


def states(stack: Stack) -> dict[str, dict[str, Any]]:
    return {it["Config"]["Labels"]["com.docker.compose.service"]: it["State"] for it in stack.containers()}


def test_one_command_starts_it_from_scratch_and_everything_is_healthy(stack: Stack) -> None:
    for name, state in states(stack).items():
        if name in ONE_SHOTS:
            assert (state["Status"], state["ExitCode"]) == ("exited", 0), name
        else:
            assert state["Status"] == "running", name
            assert state.get("Health", {"Status": "healthy"})["Status"] == "healthy", name
    unwatched = {name for name, state in states(stack).items() if "Health" not in state} - ONE_SHOTS
    assert unwatched == {"otel-collector", "jaeger", "loki"}, "these have no shell, so `watch` checks them"
    assert httpx2.get(stack.url("HANDOFF_PORT", "/readyz"), timeout=ANSWER_S).json() == {"status": "ready"}


def test_a_second_start_changes_nothing(stack: Stack) -> None:
    before = {it["Id"]: it["State"]["StartedAt"] for it in stack.containers() if it["State"]["Running"]}
    made = stack.in_volume("secrets", "sh", "-c", "sha256sum /volume/*")
    stack.up()
    after = {it["Id"]: it["State"]["StartedAt"] for it in stack.containers() if it["State"]["Running"]}
    assert after == before
    assert stack.in_volume("secrets", "sh", "-c", "sha256sum /volume/*") == made


async def test_down_and_up_loses_nothing(stack: Stack, back_up: None, say: Callable[[str], None]) -> None:
    async with stack.agent(ADA_TOKEN) as ada:
        session = await ada.session("ada")
        await ada.says(session, "This must be there tomorrow.", "ada")
        written = await ada.ok("get_context", session_key=session, view="entries")
    logged = f'{{service_name="handoff"}} | json | event="tool.call" | session="{session}"'
    (line,) = stack.eventually(lambda: [it for it in stack.logql(logged) if it["tool"] == "update_context"])
    spans = stack.eventually(lambda: stack.trace(line["trace_id"]))
    calls = f'max_over_time({CALLS}{{{stack.instance()}, gen_ai_tool_name="update_context"}}[1h])'

    def counted() -> dict[str, float]:
        return {str(sorted(it["metric"].items())): float(it["value"][1]) for it in stack.promql(calls)}

    before = stack.eventually(counted)

    stack.down()
    assert stack.containers_left() == ""
    say(f"healthy {stack.up():.1f} s after `up`, with existing volumes")

    async with stack.agent(ADA_TOKEN) as ada:
        assert await ada.ok("get_context", session_key=session, view="entries") == written
    assert [it["line"] for it in stack.logql(logged) if it["tool"] == "update_context"] == [line["line"]]
    assert {it["spanId"] for it in stack.trace(line["trace_id"])} >= {it["spanId"] for it in spans}
    after = counted()
    assert {series for series, figure in before.items() if after.get(series, 0) < figure} == set()


def test_watch_becomes_unhealthy_with_what_it_watches_and_names_it(stack: Stack, back_up: None) -> None:
    stack.compose("stop", "jaeger")
    ill = stack.eventually(lambda: (it := states(stack)["watch"]["Health"])["Status"] == "unhealthy" and it)
    assert "http://jaeger:13133/status does not answer" in ill["Log"][-1]["Output"]
    stack.compose("start", "jaeger")
    stack.eventually(lambda: states(stack)["watch"]["Health"]["Status"] == "healthy")


def test_a_second_build_changes_nothing(stack: Stack) -> None:
    image = stack.settings["HANDOFF_IMAGE"]
    stack.compose("build", "--quiet")
    before = run("docker", "image", "inspect", "--format={{.Id}}", image)
    stack.compose("build", "--quiet")
    assert run("docker", "image", "inspect", "--format={{.Id}}", image) == before


def test_the_image_has_no_compiler_and_no_uv_and_runs_unprivileged(stack: Stack) -> None:
    image = stack.settings["HANDOFF_IMAGE"]
    look = "id -u; for it in cc gcc g++ uv; do command -v $it; done; true"
    said = run("docker", "run", "--rm", "--network=none", image, "sh", "-c", look)
    assert said.split() == ["10001"]
    labels = run("docker", "image", "inspect", "--format={{json .Config.Labels}}", image)
    assert re.search(r'"org.opencontainers.image.version":"\d+\.\d+', labels)


def test_prometheus_discovers_every_process_and_stores_its_series_only_once(stack: Stack) -> None:
    def found() -> list[str]:
        targets = stack.get("PROMETHEUS_PORT", "/api/v1/targets", scrapePool="handoff")["data"]["activeTargets"]
        return sorted(it["labels"]["kind"] for it in targets if it["health"] == "up")

    stack.eventually(lambda: found() == ["service", "worker"])
    build = stack.eventually(lambda: (it := stack.promql("handoff_build_info")) and len(it) >= 2 and it)
    assert not [it for it in build if it["metric"]["instance"].endswith(":9464")], (
        "scraped series are stored as well as pushed ones"
    )


def test_everything_that_has_metrics_is_scraped(stack: Stack, left_out: set[str]) -> None:
    expected = {"handoff", "prometheus", "alertmanager", "otel-collector", "jaeger", "loki", "grafana"} - left_out
    stack.eventually(lambda: {it["metric"]["job"] for it in stack.promql("up == 1")} == expected)
    of_the_host = ["system_memory_utilization_ratio", "system_filesystem_utilization_ratio"]
    for name in [*of_the_host, "postgresql_backends", "redis_memory_used_bytes"]:
        stack.eventually(lambda name=name: stack.promql(name))
