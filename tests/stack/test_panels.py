"""Every panel shows data while the demo runs, whatever values its variables have."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping

import pytest

from tests.stack import panels
from tests.stack.bundle import Stack
from tests.stack.conftest import GRAFANA_LEFT_OUT
from tests.stack.panels import Grafana, Json, Question, Sources, dashboards, questions, variables

Chosen = dict[str, list[str]]
Asked = tuple[Question, Chosen, dict[str, str]]


@pytest.fixture
def demo(stack: Stack) -> Generator[Stack]:
    """Agents at work."""
    stack.compose("--profile", "demo", "up", "--detach", "--wait")
    yield stack
    stack.compose("--profile", "demo", "rm", "--stop", "--force", "demo", "demo-secrets")
    stack.up()  # this also removes the demo's tokens


def everything(page: Json, values: dict[str, list[str]]) -> tuple[Chosen, dict[str, str]]:
    """The selection when a dashboard is opened: "All" for each variable, as its values or as its custom "All" value."""
    found = variables(page)
    own = {name: it["allValue"] for name, it in found.items() if it.get("allValue")}
    return {name: [] if name in own else values.get(name, []) for name in found}, own


def selections(page: Json, offered: Mapping[str, list[str]]) -> Iterator[tuple[Chosen, list[Question]]]:
    """Selections of a dashboard's variables, each with queries that use it.

    Each value of a variable is in one query, the first and the last in all of them, and several of all variables at once.
    """
    queries = list(questions(page))

    def using(names: Collection[str]) -> list[Question]:
        return [it for it in queries if any(f"${name}" in it.text or f"${{{name}" in it.text for name in names)]

    for name, values in offered.items():
        found = using([name])
        assert found, f"{page['title']}: no query uses {name}"
        for place, value in enumerate(values):
            yield {name: [value]}, found if place in (0, len(values) - 1) else [found[place % len(found)]]
    yield {name: values[:2] for name, values in offered.items()}, using(offered)


@pytest.mark.timeout(900)
def test_every_panel_has_data_while_the_demo_runs(demo: Stack, say: Callable[[str], None]) -> None:
    sources = Sources(demo)
    pages = dashboards()
    waiting: list[Asked] = []
    offered: dict[str, dict[str, list[str]]] = {}

    def all_offer() -> bool:
        for uid, page in pages.items():
            offered[uid] = {name: sources.values(it) for name, it in variables(page).items() if it["type"] != "textbox"}
        return all(it for found in offered.values() for it in found.values())

    demo.eventually(all_offer, show=lambda: offered)
    for uid, page in pages.items():
        waiting += [(it, *everything(page, offered[uid])) for it in questions(page)]
    total = len(waiting)
    empty = [it for it in waiting if it[0].may_be_empty]

    def answered() -> bool:
        waiting[:] = [it for it in waiting if not sources.answers(*it) and not it[0].may_be_empty]
        return not waiting

    demo.eventually(answered, most=10, show=lambda: [str(it[0]) for it in waiting])
    bare = sum(not sources.answers(*it) for it in empty)

    # No query is refused, and some panel has data for each variable.
    asked = 0
    for uid, page in pages.items():
        everyone, own = everything(page, offered[uid])
        answers: Counter[str] = Counter()
        for choice, queries in selections(page, offered[uid]):
            for it in queries:
                asked += 1
                found = sources.answers(it, everyone | choice, own)
                answers.update(dict.fromkeys(choice, found))
        assert {name for name, count in answers.items() if count} == set(offered[uid]), uid
    count = sum(len(panels.panels(it)) for it in pages.values())
    say(f"dashboards: {count} panels with {total} queries, all answered; {bare} of the results are empty, as they may be")
    say(f"dashboards: {asked} more queries with values selected, alone and together")


def test_every_panel_has_data_through_grafana(demo: Stack, left_out: set[str]) -> None:
    url = os.environ.get("GRAFANA_URL")
    if url is None and "grafana" in left_out:
        count = sum(len(panels.panels(it)) for it in dashboards().values())
        pytest.skip(f"{GRAFANA_LEFT_OUT}, and no GRAFANA_URL names another; {count} panels are only tested without it")
    if url is None:
        url = demo.url("GRAFANA_PORT").replace("http://", f"http://admin:{demo.secret('grafana-admin')}@")
    grafana, sources = Grafana(url), Sources(demo)
    waiting: list[Asked] = []
    for uid, page in dashboards().items():
        assert grafana.dashboard(uid)["title"] == page["title"]
        offered = {name: sources.values(it) for name, it in variables(page).items()}
        waiting += [(it, *everything(page, offered)) for it in questions(page)]

    def answered() -> bool:
        waiting[:] = [it for it in waiting if not grafana.answers(*it) and not it[0].may_be_empty]
        return not waiting

    demo.eventually(answered, most=10, show=lambda: [str(it[0]) for it in waiting])
