"""What the profiles add, and that it is gone when they are off."""

from collections.abc import Generator

import httpx2
import pytest

from tests.stack.bundle import ANSWER_S, Stack
from tests.stack.conftest import ADA_TOKEN


@pytest.fixture
def as_before(stack: Stack) -> Generator[None]:
    """Only the default services run after the test."""
    yield
    stack.compose("--profile", "demo", "--profile", "scale", "rm", "--stop", "--force",
                  "demo", "demo-secrets", "proxy", "service-2")  # fmt: skip
    stack.up()


def may_call(stack: Stack) -> list[str]:
    lines = stack.in_volume("secrets-service", "cat", "/volume/tokens").splitlines()
    return [line.split()[1] for line in lines if line.strip() and not line.startswith("#")]


def test_the_agents_of_the_demo_may_call_only_while_its_profile_is_on(stack: Stack, as_before: None) -> None:
    stack.compose("--profile", "demo", "up", "--detach", "--wait")
    agents = may_call(stack)
    assert len(agents) > 5
    demos = "|".join(agents[3:])
    calls = f'{{service_name="handoff"}} | json | event="tool.call" | outcome="ok" | agent=~"{demos}"'
    stack.eventually(lambda: len({it["agent"] for it in stack.logql(calls)}) > 2)
    stack.compose("--profile", "demo", "stop", "demo")
    stack.up()
    assert may_call(stack) == ["ada", "operator", "alertmanager"]


async def test_two_services_answer_behind_one_address_and_one_alone_is_enough(stack: Stack, as_before: None) -> None:
    stack.compose("--profile", "scale", "up", "--detach", "--wait")
    stack.settings["HANDOFF_PORT"], direct = stack.settings["PROXY_PORT"], stack.settings["HANDOFF_PORT"]
    try:
        async with stack.agent(ADA_TOKEN) as ada:
            session = await ada.session("ada")
            for _ in range(6):
                await ada.says(session, "hello", "ada")
            answered = 'haproxy_server_http_responses_total{code="2xx"} > 0'
            stack.eventually(lambda: {it["metric"]["server"] for it in stack.promql(answered)} == {"one", "two"})
            stack.compose("stop", "service")
            await ada.says(session, "still here?", "ada")
    finally:
        stack.settings["HANDOFF_PORT"] = direct
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(stack.url("HANDOFF_PORT", "/healthz"), timeout=ANSWER_S)
