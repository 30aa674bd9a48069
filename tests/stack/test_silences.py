"""What Alertmanager knows outlives it when it ends uncleanly."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

from tests.stack.alertmanager import ALWAYS, running
from tests.stack.bundle import ANSWER_S, Stack
from tests.stack.catchers import Caught
from tests.stack.turns import eventually


def test_silences_and_what_was_notified_outlive_a_kill(alone: Stack, caught: Caught) -> None:
    given, began = {"webhook-url": caught.url("/webhook")}, datetime.now(UTC)
    with TemporaryDirectory(prefix="handoff-channels-") as name:
        kept = Path(name)
        kept.chmod(0o777)  # Alertmanager runs as another user
        with running(alone, caught, given, ALWAYS, kept) as alertmanager:
            alertmanager.send("critical", began)
            eventually(lambda: caught.summaries("/webhook"))
            silence = alertmanager.silence()
            written = [f"alertmanager_{what}_maintenance_total" for what in ("silences", "nflog")]
            before = [alertmanager.counted(it) for it in written]
            # One may have been under way before the silence was made.
            eventually(
                lambda: all(alertmanager.counted(it) >= was + 2 for it, was in zip(written, before, strict=True)),
                show=lambda: (before, [alertmanager.counted(it) for it in written]),
            )

        with running(alone, caught, given, ALWAYS, kept) as alertmanager:
            assert alertmanager.silences() == [silence]
            httpx2.delete(f"{alertmanager.url}/api/v2/silence/{silence}", timeout=ANSWER_S).raise_for_status()
            asked = alertmanager.counted("alertmanager_nflog_queries_total")
            alertmanager.send("critical", began)
            eventually(lambda: alertmanager.counted("alertmanager_nflog_queries_total") >= asked + 4)  # two channels, twice
    assert len(caught.calls["/webhook"]) == 1, "what was notified before is not notified again"
