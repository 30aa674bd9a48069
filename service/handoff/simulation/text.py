"""What the agents write: sentences about plausible engineering work, usually a few bytes to a few KB, rarely much more."""

from dataclasses import dataclass
from random import Random
from typing import Any, Final

LARGE_BYTES: Final = (20_000, 60_000)
LARGE_PROBABILITY: Final = 0.01
TYPICAL_BYTES_MAX: Final = 6_000

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Topic:
    """A piece of work, with the words that fill its sentences."""

    title: str
    things: tuple[str, ...]
    files: tuple[str, ...]
    choices: tuple[str, ...]


TOPICS: Final = (
    Topic(
        "move the invoice ledger to its own schema",
        ("the ledger", "the nightly import", "the foreign key on invoice", "the balance check"),
        ("billing/ledger.py", "billing/imports.py", "migrations/0042_ledger.sql"),
        (
            "write to both schemas for a week",
            "copy in batches of 5,000 rows",
            "keep the old view until the reports have moved",
        ),
    ),
    Topic(
        "make the login page work without third-party cookies",
        ("the session cookie", "the redirect", "the consent screen", "the token refresh"),
        ("auth/session.py", "web/login.ts", "tests/test_login.py"),
        ("use a same-site cookie", "refresh in the background", "drop the embedded frame"),
    ),
    Topic(
        "find why search is slow for long queries",
        ("the query planner", "the text index", "the ranking", "the cache of results"),
        ("search/rank.py", "search/index.sql", "bench/long_queries.py"),
        ("rank only the newest 500 matches", "cut queries at 32 words", "keep the index in memory"),
    ),
    Topic(
        "upgrade the message broker with no loss",
        ("the consumer group", "the dead letters", "the replication lag", "the old cluster"),
        ("deploy/broker.yaml", "queue/consumer.py", "runbooks/broker.md"),
        ("mirror the topics first", "move one consumer at a time", "keep the old cluster for three days"),
    ),
    Topic(
        "write the guide for new maintainers",
        ("the release steps", "the test setup", "the glossary", "the list of owners"),
        ("docs/maintaining.md", "docs/release.md", "docs/glossary.md"),
        ("begin with a worked example", "link the runbooks", "leave out what the tools print anyway"),
    ),
    Topic(
        "reduce the memory of the image resizer",
        ("the decoder", "the worker pool", "the thumbnail cache", "the upload buffer"),
        ("images/resize.py", "images/pool.py", "bench/memory.py"),
        ("decode in strips", "cap the pool at four", "stream uploads to disk"),
    ),
    Topic(
        "review access to the production buckets",
        ("the deploy role", "the audit log", "the old service account", "the read-only group"),
        ("iam/roles.tf", "iam/audit.py", "docs/access.md"),
        ("remove what was not used for 90 days", "give each job a role of its own", "ask for a ticket with every grant"),
    ),
    Topic(
        "forecast storage for the next quarter",
        ("the growth of events", "the retention rule", "the seasonal peak", "the compression ratio"),
        ("analysis/storage.ipynb", "analysis/growth.sql", "docs/forecast.md"),
        ("fit on the last 26 weeks", "leave the holidays out", "report a range, not a number"),
    ),
    Topic(
        "stabilise the flaky payment tests",
        ("the fake gateway", "the clock in the tests", "the retry loop", "the shared fixture"),
        ("tests/test_payments.py", "tests/gateway.py", "payments/retry.py"),
        ("freeze the clock", "give each test a database of its own", "fail fast on an unknown card"),
    ),
    Topic(
        "cut the noise of the disk alerts",
        ("the disk alert", "the on-call rota", "the threshold of 85 %", "the node exporter"),
        ("alerts/disk.yaml", "runbooks/disk.md", "dashboards/nodes.json"),
        ("alert on hours until full", "group by host", "page only when a write fails"),
    ),
)

_MESSAGES: Final = (
    "Looked at {thing}: it is not what the report says.",
    "{thing} is touched in {file} and nowhere else.",
    "I can reproduce it: {thing} fails on the second run.",
    "Next: {choice}, then look at {thing} again.",
    "{thing} behaves since the last change in {file}.",
    "Measured {thing}: {number} ms in the median, {more} ms at the worst.",
    "No change to {thing} is needed for this.",
    "Half done. {thing} is left, and {file} wants a test.",
    "Asked the owner of {file}; {thing} may change.",
)
_SHORT: Final = ("ok", "Done.", "Agreed.", "On it.", "See above.", "It passes.", "Not yet.")
_DECISIONS: Final = (
    "We {choice}, because {thing} can't wait for more.",
    "Decided: {choice}. {thing} stays as it is.",
    "{thing} goes first; after that we {choice}.",
)
_QUESTIONS: Final = (
    "May {thing} be away for a minute?",
    "Who owns {file}?",
    "Do we {choice}, or is that for later?",
    "Is {number} ms for {thing} good enough?",
)
_ANSWERS: Final = ("Yes, if {thing} is watched.", "No. We {choice}.", "Yes; the owner of {file} agrees.")
_OUTPUTS: Final = (
    "$ pytest -q {file}\n{number} passed in {more} ms",
    "$ git log --oneline {file}\n{number} changes, the last one to {thing}",
    "$ grep -n deprecated {file}\n{number}: deprecated: {thing}",
)
_SUMMARIES: Final = (
    "{thing} is done, {file} is changed and tested. Left: {choice}.",
    "So far: {number} of {more} cases pass. {thing} was the cause.",
    "We {choice}. {thing} was checked twice, {number} lines changed.",
)
_INSTRUCTIONS: Final = (
    "Go on with {file}: {thing} is left. We {choice}.",
    "Please finish {thing}. The decision is to {choice}; the tests are in {file}.",
    "Take over: look at {thing} first, then sum up.",
    "Check {file} and say whether we can {choice}.",
)
_REJECTIONS: Final = ("I know nothing of {thing}.", "I am full until tomorrow; ask another.", "{file} belongs to others.")
_OBSTACLES: Final = ("Waiting for the owner of {file}.", "{thing} is locked by another change.", "The test machine is away.")
_OUTCOMES: Final = ("{thing} is done: {number} tests pass.", "Done. We {choice}.", "{file} is changed and reviewed.")


def sentence(rng: Random, topic: Topic, patterns: tuple[str, ...]) -> str:
    """Return one sentence about a topic."""
    number = rng.randint(2, 400)
    text = rng.choice(patterns).format(
        thing=rng.choice(topic.things),
        file=rng.choice(topic.files),
        choice=rng.choice(topic.choices),
        number=number,
        more=number + rng.randint(5, 4_000),
    )
    return text[0].upper() + text[1:]


def instructions(rng: Random, topic: Topic) -> str:
    """Return instructions for the receiver of a handoff."""
    return sentence(rng, topic, _INSTRUCTIONS)


def rejection(rng: Random, topic: Topic) -> str:
    """Return a reason for rejecting an offer."""
    return sentence(rng, topic, _REJECTIONS)


def obstacle(rng: Random, topic: Topic) -> str:
    """Return a reason why work is blocked."""
    return sentence(rng, topic, _OBSTACLES)


def outcome(rng: Random, topic: Topic) -> str:
    """Return the outcome of a completed handoff."""
    return sentence(rng, topic, _OUTCOMES)


def query(rng: Random, topic: Topic) -> str:
    """Return a search query."""
    thing = rng.choice(topic.things).removeprefix("the ")
    return rng.choice((thing, f'"{thing}"', f"{thing.split()[0]} or tests", f"{thing.split()[-1]} -todo"))


def question(rng: Random, topic: Topic) -> Entry:
    """Return a question, which stays open until it is superseded."""
    return {"type": "message", "content": sentence(rng, topic, _QUESTIONS), "metadata": {"question": True}}


def answer(rng: Random, topic: Topic, sequence: int) -> Entry:
    """Return the decision that answers the question with this sequence number."""
    return {"type": "decision", "content": sentence(rng, topic, _ANSWERS), "supersedes": [sequence]}


def summary(rng: Random, topic: Topic) -> Entry:
    """Return a summary of the work so far."""
    return {"type": "summary", "content": sentence(rng, topic, _SUMMARIES)}


def entry(rng: Random, topic: Topic, content_bytes: int) -> Entry:
    """Return a message, tool call, file, decision or system entry of roughly `content_bytes`, rarely much more."""
    if rng.random() < LARGE_PROBABILITY:
        size_bytes = rng.randint(*LARGE_BYTES)
    else:
        size_bytes = min(TYPICAL_BYTES_MAX, int(content_bytes * rng.lognormvariate(0, 0.9)))
    kind = rng.choices(("message", "tool_call", "file", "decision", "system"), (9, 4, 3, 2, 1))[0]
    match kind:
        case "tool_call":
            return {"type": kind, "content": text(rng, topic, size_bytes, _OUTPUTS)}
        case "file":
            path = rng.choice(topic.files)
            return {"type": kind, "content": text(rng, topic, size_bytes), "metadata": {"path": path}}
        case "decision":
            return {"type": kind, "content": sentence(rng, topic, _DECISIONS)}
        case "system":
            return {"type": kind, "content": f"Context {rng.randint(20, 95)} % full."}
        case _ if size_bytes < 40:
            return {"type": kind, "content": rng.choice(_SHORT)}
        case _:
            return {"type": kind, "content": text(rng, topic, size_bytes)}


def text(rng: Random, topic: Topic, size_bytes: int, patterns: tuple[str, ...] = _MESSAGES) -> str:
    """Return sentences of about `size_bytes` in total. A large text repeats itself, as logs do."""
    sentences: list[str] = []
    length = 0
    while length < size_bytes and len(sentences) < 40:
        sentences.append(sentence(rng, topic, patterns))
        length += len(sentences[-1]) + 1
    block = "\n".join(sentences)
    return (block + "\n") * (size_bytes // (len(block) + 1)) + block if length < size_bytes else block
