"""Finds secrets in what agents write, and puts `[redacted: kind]` in their place. Pure: text in, text and kinds out.

Hyperscan looks for all patterns in one pass, in linear time, and says which of them occur; only those are then run by `re`,
and only on the pieces of a text in which they occur. Hashes, UUIDs, paths and encoded files are left as they are.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

from handoff.secret_patterns import ASSIGNED, HIGH_ENTROPY, PASSWORD, PATTERNS, PRIVATE_KEY

PIECE_CHARS: Final = 4_096  # that the patterns are run on at a time
_BEFORE_CHARS: Final = 80  # before a random string, which may say what it is
_CUT_CHARS: Final = 1_024  # at the end of a piece, within which it is cut between words
_KEY_BLOCK_CHARS_MAX: Final = 16_384  # of an armoured private key; RSA with 16,384 bits takes 13,000

_WORD_REST: Final = re.compile(r"[\w-]{0,255}")
_KEY_WORDS: Final = re.compile(r"[A-Za-z0-9+/]{32}")
_KEY_LINES: Final = re.compile(r"(?:[\s\\nr\"'+,|>]{0,16}[A-Za-z0-9+/=]{24,}+)++")
_NO_SECRET: Final = re.compile(
    r"(?i)x{4,}|\*{3,}|\.{3}|\bexample\b|change[-_]?me|your[-_]|placeholder|redacted|dummy|^(?:0x)?[0-9]{1,20}[a-z%]{0,2}$"
    r"|://|^/|^\d{4}-\d\d-\d\d|^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
)
_EXPRESSION: Final = re.compile(r"[A-Za-z_]\w*(?:(?:\.|::|->)\w+)+|\$|%|[A-Z][A-Z_]*[0-9]{0,2}|[A-Za-z]+:\w+|.*[:=*]{2}.*")
_ASSIGNED_ALL: Final = re.compile(rf"{ASSIGNED}\Z")
_NUMBERED: Final = re.compile(r"[a-z]+(?:[_-][a-z]+)*[_-]?[0-9]{1,2}")  # token=key1
_LABELLED_HASH: Final = re.compile(r"(?i)(?:sha-?\d{1,3}|md5|h1|blake\w{1,4}|base64|integrity|etag)[-:=, \"']{1,4}$")
_LINE_OF_BLOB: Final = re.compile(r"[A-Za-z0-9+/]{56}[\"'\\nr\s]{0,4}$")


class Redacted(NamedTuple):
    """A text without its secrets, and how many of each kind it had."""

    text: str
    kinds: Counter[str]


class Compiled(NamedTuple):
    """The patterns, and what says which of them occur. `stopped` is raised by a scan that its handler has ended."""

    regexes: tuple[re.Pattern[str], ...]
    scan: Any
    stopped: type[Exception]

    def occurring(self, text: str) -> list[int]:
        """The places of the patterns that occur in the text."""
        found: list[int] = []

        def occurs(place: int, *_: int) -> None:
            found.append(place)

        self.scan(text.encode(), match_event_handler=occurs)
        return found


_compiled: Compiled | None = None


def compiled() -> Compiled:
    """The patterns, compiled. The first call takes 0.1 s, so a process that writes nothing doesn't make it."""
    global _compiled  # noqa: PLW0603 - a process has one
    if _compiled is None:
        import hyperscan

        database = hyperscan.Database()
        database.compile(
            expressions=[(it.sign or re.sub(r"\?P<\w+>", "", it.regex)).encode() for it in PATTERNS],
            ids=list(range(len(PATTERNS))),
            flags=[
                hyperscan.HS_FLAG_SINGLEMATCH  # a pattern is reported once, however often it occurs
                | hyperscan.HS_FLAG_PREFILTER  # what Hyperscan can't do is left out of a pattern, so that it matches more
                | (hyperscan.HS_FLAG_CASELESS if it.ignores_case else 0)
                for it in PATTERNS
            ],
        )
        regexes = tuple(re.compile(it.regex, re.IGNORECASE if it.ignores_case else 0) for it in PATTERNS)
        _compiled = Compiled(regexes, database.scan, hyperscan.ScanTerminated)
    return _compiled


def is_compiled() -> bool:
    """Whether `compiled` returns at once."""
    return _compiled is not None


def _stop(*_: int) -> bool:
    return True


def may_hold_secret(texts: Iterable[str]) -> bool:
    """Whether a pattern occurs in one of the texts, or none has been compiled yet. What occurs may turn out to be no secret.

    It takes 1 µs for a text of 500 characters.
    """
    if _compiled is None:
        return True
    scan = _compiled.scan
    try:
        for text in texts:
            scan(text.encode(), match_event_handler=_stop)
    except _compiled.stopped:
        return True
    return False


def steps(text: str) -> Iterator[Redacted | None]:
    """Redact a text in steps of at most PIECE_CHARS: None after each step, and at last the result."""
    known = compiled()
    occurring = known.occurring(text)
    kinds: Counter[str] = Counter()
    if not occurring:
        yield Redacted(text, kinds)
        return
    if 0 in occurring:
        text = _without_private_keys(text, known.regexes[0], kinds)
    if len(text) <= PIECE_CHARS:
        yield Redacted(_redacted_piece(text, "", known, occurring, kinds), kinds)
        return
    done: list[str] = []
    start = 0
    while start < len(text):
        end = _cut(text, start)
        piece = text[start:end]
        before = text[max(0, start - _BEFORE_CHARS) : start]
        done.append(_redacted_piece(piece, before, known, known.occurring(piece), kinds))
        start = end
        yield None
    yield Redacted("".join(done), kinds)


def redact(text: str) -> Redacted:
    """Redact a text at once."""
    *_, last = steps(text)
    return last or Redacted(text, Counter())


def names_secret(name: str, value: str) -> bool:
    """Whether a value is a secret because of the name that it is stored under, as in an object of JSON."""
    match = _ASSIGNED_ALL.search(f'{name}="{value}')
    return match is not None and _is_password(match)


def marker(kind: str) -> str:
    """What is put in the place of a secret of this kind."""
    return f"[redacted: {kind}]"


def _cut(text: str, start: int) -> int:
    """Where the piece that begins at `start` ends: between words if there is such a place near its end."""
    end = start + PIECE_CHARS
    if end >= len(text):
        return len(text)
    between = max(text.rfind(sign, end - _CUT_CHARS, end) for sign in "\n ,;")
    return between + 1 if between >= 0 else end


def _redacted_piece(text: str, before: str, known: Compiled, occurring: list[int], kinds: Counter[str]) -> str:
    """The text without the secrets of those patterns, the most exact pattern first."""
    for place in sorted(occurring, key=lambda it: (PATTERNS[it].kind in (PASSWORD, HIGH_ENTROPY), it)):
        kind, regex = PATTERNS[place].kind, known.regexes[place]
        if kind == PRIVATE_KEY:
            continue
        parts: list[str] = []
        done = 0
        for match in regex.finditer(text):
            group = "secret" if "secret" in regex.groupindex else 0
            start, end = match.span(group)
            if start < done or not _holds(kind, match, before):
                continue
            if group == 0 and (rest := _WORD_REST.match(text, end)):
                end = rest.end()
            parts += (text[done:start], marker(kind))
            done = end
            kinds[kind] += 1
        text = "".join((*parts, text[done:])) if parts else text
    return text


def _holds(kind: str, match: re.Match[str], before: str) -> bool:
    """Whether what a pattern has found is a secret."""
    if kind == PASSWORD:
        return _is_password(match)
    if kind == HIGH_ENTROPY:
        return _is_random(match, before)
    if kind == "url_password":
        return not _NO_SECRET.search(match["secret"]) and not re.match(r"[\[{$%<]|[a-z]{1,8}$", match["secret"])
    if kind == "authorization":
        return bool(re.search(r"[0-9]", match["secret"])) and not _NO_SECRET.search(match["secret"])
    return True


def _is_password(match: re.Match[str]) -> bool:
    """Whether an assigned value is a secret, not an expression, a type, a number, a hash or a placeholder.

    A value of letters only is taken for a word: prose and code have many of them after such a name.
    """
    value = match["secret"].rstrip(".:?")
    if match["after"] or len(value) < 6 or _NO_SECRET.search(value) or _EXPRESSION.fullmatch(value):
        return False
    if not (re.search("[0-9]", value) and re.search("[A-Za-z]", value)):
        return False
    is_quoted = match.string[: match.start("secret")].endswith(('"', "'"))
    return is_quoted or len(value) >= 8 or not _NUMBERED.fullmatch(value)


def _is_random(match: re.Match[str], before: str) -> bool:
    """Whether a word is random: capitals, small letters and digits, which follow on each other as by chance.

    Names in code change less often, paths have too many signs, and hashes have no capitals or a label before them.
    """
    word = match["secret"]
    if not (re.search("[a-z]", word) and re.search("[A-Z]", word) and re.search("[0-9]", word)):
        return False
    signs = sum(word.count(sign) for sign in "+/_-")
    if signs * 7 > len(word):
        return False
    classes = [0 if sign.islower() else 1 if sign.isupper() else 2 if sign.isdigit() else 3 for sign in word.rstrip("=")]
    changes = sum(one != other for one, other in pairwise(classes))
    if changes < 0.42 * (len(classes) - 1) or sum(it == 2 for it in classes) * 2 > len(classes):
        return False
    if _entropy_bits(word) < 0.82 * math.log2(len(word)):
        return False
    before = (before + match.string[: match.start("secret")])[-_BEFORE_CHARS:]
    return not (_LABELLED_HASH.search(before) or _LINE_OF_BLOB.search(before) or re.search(r"://\S*$", before))


def _entropy_bits(word: str) -> float:
    """Shannon's entropy of a word's characters, in bits per character."""
    return -sum(count / len(word) * math.log2(count / len(word)) for count in Counter(word).values())


def _without_private_keys(text: str, header: re.Pattern[str], kinds: Counter[str]) -> str:
    """The text without private keys: from the header to the footer or, where it is missing, to the last line of base64."""
    parts: list[str] = []
    done, footer = 0, -1
    for match in header.finditer(text):
        start, body = match.span()
        if start < done:
            continue
        if footer < body:
            footer = text.find("-----END", body)
            footer = footer if footer >= 0 else len(text)
        end = body
        inside = text[body:footer] if footer - body <= _KEY_BLOCK_CHARS_MAX else ""
        if footer < len(text) and "-----BEGIN" not in inside and _KEY_WORDS.search(inside):
            close = text.find("-----", footer + 8, footer + 80)
            end = close + 5 if close >= 0 else footer + 8
        elif lines := _KEY_LINES.match(text, body):
            end = lines.end()
        if end > body:
            parts += (text[done:start], marker(PRIVATE_KEY))
            done = end
            kinds[PRIVATE_KEY] += 1
    return "".join((*parts, text[done:])) if parts else text
