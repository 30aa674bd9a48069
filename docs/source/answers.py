"""The table of the largest answers. tests/test_answers.py builds each of them, and holds the table to the service."""

from typing import Final, NamedTuple

from docs.source.markdown import code, table
from handoff.brief import BYTES_PER_TOKEN


class Answer(NamedTuple):
    """The largest answer at the default settings, in bytes of JSON; what limits it; and how to get what it leaves out."""

    bytes_max: int
    limited_by: str
    rest: str = ""


_SESSION: Final = "metadata and writers of the session"
_PAGE: Final = "`HANDOFF_PAGE_BYTES_MAX`"
_TEXTS: Final = "each text cut to 1,000 characters; `handoff://handoffs/{id}` has all of it"
_ENTRIES: Final = f"{_PAGE}; a larger entry is cut"

ANSWERS: Final[dict[str, Answer]] = {
    "register_session": Answer(18_000, _SESSION),
    "update_context": Answer(4_000, "entries per call"),
    "get_context view=brief": Answer(
        95_000, "`token_budget`, and 1,000 tokens of instructions", "`view=entries`; `omitted` says what there is"
    ),
    "get_context view=entries": Answer(95_000, f"{_ENTRIES}; and {_SESSION}", "`next_after_sequence`; `offset`"),
    "search_context": Answer(66_000, f"{_PAGE}, `limit`, and 500 characters per snippet", "`more`: add words to the query"),
    "request_handoff": Answer(10_000, "texts of the handoff", _TEXTS),
    "get_inbox": Answer(150_000, f"{_PAGE}, or the texts of one handoff, cut to 12,000 characters each", "`next_cursor`"),
    "accept_handoff": Answer(210_000, "`token_budget`, and the instructions", "`get_context view=entries`"),
    "renew_handoff": Answer(130_000, "texts of the handoff, whole"),
    "resolve_handoff": Answer(14_000, "texts of the handoff", _TEXTS),
    "close_session": Answer(25_000, _SESSION),
    "lapse_handoff": Answer(8_000, "texts of the handoff", _TEXTS),
    "session_data": Answer(13_000, "the reason"),
    "configuration": Answer(110_000, "32 KiB per version; `changes` has each field before and after"),
    "job": Answer(700, "one job"),
    "explain_anomaly": Answer(75_000, f"{_PAGE}; 200 anomalies, the strongest; 180 points of each of three series"),
    "backtest": Answer(45_000, f"{_PAGE}; 20 series; 200 alerts, the strongest", "labels of one series; fewer `days`"),
    "retry_webhooks": Answer(180, "the name of the endpoint"),
    "handoff://sessions": Answer(66_000, _PAGE, "`next_cursor`"),
    "handoff://sessions/{key}": Answer(25_000, _SESSION),
    "handoff://sessions/{key}/lifecycle": Answer(66_000, _PAGE, "`next_cursor`"),
    "handoff://context/{key}": Answer(66_000, _ENTRIES, "`next_cursor`; `offset`"),
    "handoff://summary/{key}": Answer(
        125_000,
        "20 handoffs, 50 participants, 10 key points of each kind, 280 characters per text",
        "`handoff://context/{key}`",
    ),
    "handoff://agents/{agent}/inbox": Answer(
        150_000, f"{_PAGE}, or the texts of one handoff, cut to 12,000 characters each", "`next_cursor`"
    ),
    "handoff://agents/{agent}/sent": Answer(
        150_000, f"{_PAGE}, or the texts of one handoff, cut to 12,000 characters each", "`next_cursor`"
    ),
    "handoff://agents/{agent}/sessions": Answer(66_000, _PAGE, "`next_cursor`"),
    "handoff://lifecycle": Answer(66_000, f"{_PAGE}; the newest weeks of the archive, then the oldest holds"),
    "handoff://handoffs": Answer(
        66_000, f"{_PAGE}; each text cut to 280 characters", "`next_cursor`; `handoff://handoffs/{id}`"
    ),
    "handoff://handoffs/{id}": Answer(250_000, "texts of the handoff, whole"),
    "handoff://handoffs/{id}/brief": Answer(95_000, "`token_budget` of accept_handoff, and 1,000 tokens of instructions"),
    "handoff://health": Answer(55_000, "`history`"),
    "handoff://metrics": Answer(33_000, "32 KiB", "`name`"),
    "handoff://config": Answer(40_000, "32 KiB per version"),
    "handoff://jobs": Answer(16_000, "all jobs"),
    "handoff://storage": Answer(25_000, "200 tables"),
    "handoff://webhooks": Answer(54_000, "20 endpoints, with 20 agents each"),
    "handoff://jobs/{name}": Answer(700, "one job"),
    "handoff://analytics/{type}": Answer(
        90_000, f"{_PAGE}; and 50 of each of agents, policies and routes, those with most", "`next_cursor`; `agent`"
    ),
    "handoff://alerts": Answer(340_000, f"{_PAGE}, or one alert with texts of 8,000 characters", "`next_cursor`"),
}


def answers() -> str:
    """Every tool and resource: its largest answer in bytes and tokens, what limits it, and how to get the rest."""
    return table(
        ("Tool or resource", "Bytes", "Tokens", "Limited by", "The rest"),
        [
            (code(name), f"{it.bytes_max:,}", f"{it.bytes_max // BYTES_PER_TOKEN:,}", it.limited_by, it.rest)
            for name, it in ANSWERS.items()
        ],
    )
