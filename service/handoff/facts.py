"""Facts: what was checked of a work tree, kept in an entry's metadata, and what that says about the claims before it. Pure.

Whoever checks a work tree (`handoff facts`) appends an entry whose metadata has `facts`, which replaces the entry of the
last check. Its `moved_after` is the number of the last check that saw other files, or 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

FACTS: Final = "facts"  # the name in an entry's metadata

Standing = Literal["claimed", "checked", "stale"]


class Check(NamedTuple):
    """A check: the sequence number of its entry, and of the last one that saw other files, 0 if there was none."""

    sequence: int
    moved_after: int

    def standing(self, sequence: int) -> Standing:
        """What the check says about a claim: not checked yet, checked, or the files have changed since they were checked."""
        if sequence > self.sequence:
            return "claimed"
        return "checked" if sequence > self.moved_after else "stale"


def newest_check(entries: Iterable[tuple[int, Mapping[str, Any] | None]]) -> Check | None:
    """The newest check among entries, given as sequence numbers with their metadata. None if nothing was checked.

    Any client may write metadata: what is not shaped as a check is none.
    """
    found: Check | None = None
    for sequence, metadata in entries:
        facts = (metadata or {}).get(FACTS)
        if isinstance(facts, Mapping) and (found is None or sequence > found.sequence):
            moved_after = facts.get("moved_after")
            if isinstance(moved_after, int) and isinstance(facts.get("tree"), str):
                found = Check(sequence, moved_after)
    return found
