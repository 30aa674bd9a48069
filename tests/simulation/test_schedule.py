"""What the simulated agents are going to do follows from the seed, and from nothing else."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import count, islice

from handoff.simulation.agents import FAULTS, NAMES, Fault
from handoff.simulation.schedule import ScheduledScenario, scheduled_scenarios
from handoff.simulation.steps import Answer, Step


def steps_of(scenario: ScheduledScenario, ids: Iterator[int]) -> list[Step]:
    """The steps of a scenario, answered by a stand-in service that takes its ids from `ids` and refuses nothing."""
    steps: list[Step] = []
    state = kind = ""
    answer: Answer = {}
    step = next(scenario.steps)
    while len(steps) < 500:
        steps.append(step)
        number = next(ids)
        action = step.arguments.get("action", step.operation)
        if not step.expected_errors:
            clock = {"offered": "expired", "accepted": "offered"} if "://handoffs/" in step.operation and step.wait_s else {}
            state = clock.get(state, state)
            state = {
                "request_handoff": "offered",
                "accept_handoff": "accepted",
                "renew_handoff": "accepted",
                "block": "blocked",
                "complete": "completed",
                "cancel": "cancelled",
                "reject": "rejected",
            }.get(action, state)
            kind = step.arguments.get("request_type", kind)
        shown = {"handoff_id": number, "state": state, "token": number, "request_type": kind}
        answer = {**shown, "handoff": shown, "session_key": f"s-{number}", "last_sequence": number, "sessions": []}
        try:
            step = scenario.steps.send({**answer, "answered_at": 0.0, "handoffs": [], "status": "active", "owner": "ada"})
        except StopIteration:
            break
    return steps


def schedule(seed: int, faults: Sequence[Fault] = (), first_id: int = 1) -> list[tuple[object, ...]]:
    """What the agents decide in the first scenarios, without the ids, which the service chooses."""
    ids = count(first_id)
    scenarios = islice(scheduled_scenarios(seed, NAMES[:6], faults), 40)
    steps = [step for scenario in scenarios for step in steps_of(scenario, ids)]
    chosen_by_service = ("session_key", "handoff_id", "token")
    return [
        (
            step.task,
            re.sub(r"\d+", "N", step.operation),
            json.dumps(
                {
                    name: value
                    for name, value in step.arguments.items()
                    if name not in chosen_by_service and name != "entries"
                }
            ),
            [{**entry, "supersedes": ...} for entry in step.arguments.get("entries", ()) if isinstance(entry, dict)],
            step.pause_s,
            step.wait_s,
            step.expected_errors,
        )
        for step in steps
    ]


def test_the_schedule_depends_on_the_seed_and_the_faults_and_not_on_the_ids_that_the_service_gives() -> None:
    assert len(schedule(1)) > 400
    assert schedule(1) == schedule(1, first_id=7_000)
    assert schedule(1) != schedule(2)
    for fault in FAULTS:
        assert schedule(1, [fault]) == schedule(1, [fault]) != schedule(1), fault


def test_names_roles_and_habits_follow_from_the_seed() -> None:
    agents = [next(scheduled_scenarios(seed, NAMES[:6])).session.agents for seed in (1, 1, 2)]

    assert agents[0] == agents[1]
    assert {agent.role for agent in agents[0]} != {"backend"}
    assert len({agent.habits for agent in agents[0]}) == 6
    assert [agent.habits for agent in agents[0]] != [agent.habits for agent in agents[2]]
