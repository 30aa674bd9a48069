"""What a search finds: words of the world's languages, and what agents write, such as paths, identifiers and versions."""

# ruff: noqa: RUF001 - letters that look like Latin ones are what is tested

import asyncio
import random
import re
import string
from collections.abc import Callable, Generator
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agents import Agent
from tests.stack.bundle import ROOT

MIGRATIONS = ROOT / "service" / "handoff" / "store" / "migrations"

HASH = "54fa40c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f6a7"

# By language: entries, and for each query the places of those that it must find, and no others.
FINDS: dict[str, tuple[list[str], dict[str, set[int]]]] = {
    "Chinese": (
        ["Worker/Server 队列端口错配导致任务无人消费", "使用PostgreSQL存储会话数据，不用Redis。", "端口没有队列"],
        {
            "队列端口错配": {0},
            "端口": {0, 2},
            "端口队列": set(),
            "PostgreSQL": {1},
            "postgresql 存储": {1},
            "使用PostgreSQL存储": {1},
            "会话 -redis": set(),
            "无人消费 or 会话": {0, 1},
            '"队列端口"': {0},
            "端口 -错配": {2},
        },
    ),
    "Japanese": (
        ["データベース接続のタイムアウト", "ﾃﾞｰﾀﾍﾞｰｽの設計、ＡＰＩ設計", "東京・大阪"],
        {
            "データベース": {0, 1},
            "データ": {0, 1},
            "接続": {0},
            "タイムアウト": {0},
            "API": {1},
            "大阪": {2},
            "ベース設計": set(),
        },
    ),
    "Korean": (
        ["데이터베이스를 포스트그레스로 옮겼습니다", "큐가 비었다"],
        {"데이터베이스": {0}, "옮겼": {0}, "비었다": {1}, "데이터 포스트": {0}},
    ),
    "Thai": (["ย้ายฐานข้อมูลไปที่PostgreSQLแล้ว"], {"ฐานข้อมูล": {0}, "postgresql": {0}, "คิว": set()}),
    "Russian": (
        ["Мы перенесли базы данных", "База «ПОЛЬЗОВАТЕЛИ» и очереди", "Ёлка удалёна; май"],
        {"база": {0, 1}, "БАЗУ": {0, 1}, "пользователь": {1}, "очередь": {1}, "елка": {2}, "удалён": {2}, "май": {2}},
    ),
    "Ukrainian and Greek": (
        ["Черга порожня, її видалено", "Η βάση δεδομένων ΑΛΛΑΞΕ"],
        {"черга": {0}, "її": {0}, "βαση": {1}, "άλλαξε": {1}},
    ),
    "German": (
        ["Die Größe der Warteschlange überschreitet die Straße", "Datenbank-Verbindung getrennt", "GRÖSSE"],
        {"größe": {0, 2}, "Grösse": {0, 2}, "STRASSE": {0}, "überschreitet": {0}, "ubSchreitet": set(), "datenbank": {1}},
    ),
    "accents": (
        ["Résumé du café déjà vu", "re\u0301sume\u0301 decompose\u0301", "São Paulo, naïve, İstanbul, Đà Nẵng, zażółć"],
        {"resume": {0, 1}, "résumé": {0, 1}, "deja": {0}, "sao": {2}, "naive": {2}, "istanbul": {2}, "nẵng": {2}},
    ),
    "Arabic and Hebrew": (
        ["تم نقل قاعدة البيانات، الآن", "قَاعِدَة", "מסד הנתונים הועבר"],
        {"قاعدة": {0, 1}, "البيانات": {0}, "الآن": {0}, "מסד": {2}, "הנתונים": {2}},
    ),
    "Hindi": (["डेटाबेस को स्थानांतरित किया गया।", "कतार खाली है"], {"डेटाबेस": {0}, "गया": {0}, "कतार": {1}}),
    "English": (
        ["“Queues” were emptied — twice…", "The migration isn’t done", "naming queues"],
        {"queue": {0, 2}, "emptying": {0}, "twice": {0}, '"migration isn\'t done"': {1}, "named": {2}, "the": set()},
    ),
    "paths and addresses": (
        [
            "changed service/handoff/store/entries.py:137 and ~/notes/to do.md",
            "see https://example.com/docs/v2/search?x=1&page=7#top",
            r"C:\Users\ada\report.final.docx by ada.lovelace@example.org",
            "listens on 10.0.0.12:8642 and [::1]",
        ],
        {
            "entries.py": {0},
            "entries": {0},
            "store/entries.py": {0},
            "service/handoff/store/entries.py": {0},
            "handoff/entries": set(),
            "notes": {0},
            "example.com": {1},
            "docs/v2": {1},
            "search": {1},
            "page=7": {1},
            "report.final.docx": {2},
            "final.docx": {2},
            r"Users\ada": {2},
            "ada.lovelace@example.org": {2},
            "lovelace": {2},
            "10.0.0.12": {3},
            "10.0.0.12:8642": {3},
            "8642": {3},
        },
    ),
    "identifiers": (
        [
            "getUserName calls fetch_user_by_id",
            "class HTTPServerError extends List<String>",
            "--max-old-space-size=4096 and $HANDOFF_PAGE_BYTES_MAX",
            "std::vector<int> is_valid data-testid",
        ],
        {
            "getUserName": {0},
            "getusername": {0},
            "UserName": {0},
            "user_by_id": {0},
            "fetch_user_by_id": {0},
            "user": {0},
            "HTTPServerError": {1},
            "ServerError": {1},
            "List<String>": {1},
            "String": {1},
            "--max-old-space-size": {2},
            "old-space": {2},
            "HANDOFF_PAGE_BYTES_MAX": {2},
            "PAGE_BYTES": {2},
            "vector<int>": {3},
            "int": {3},
            "is_valid": {3},
            "data-testid": {3},
            "testid": {3},
        },
    ),
    "codes, versions, hashes": (
        [
            "ERR-1042 and E0425, ORA-00942: HTTP 503",
            "upgraded to v1.2.3-rc1",
            "needs 1.2.30",
            f"commit {HASH}",
            "0x80070005",
        ],
        {
            "ERR-1042": {0},
            "1042": {0},
            "E0425": {0},
            "ora-00942": {0},
            "503": {0},
            "1.2.3": {1},
            "v1.2.3": {1},
            "v1.2.3-rc1": {1},
            "1.2.30": {2},
            "54fa40c": {3},
            HASH: {3},
            "0x80070005": {4},
        },
    ),
}


@pytest.mark.parametrize("language", FINDS)
async def test_a_search_finds_what_stands_there_and_nothing_else(agent: Agent, language: str) -> None:
    contents, queries = FINDS[language]
    key = await agent.session()
    entries = [{"type": "message", "content": content} for content in contents]
    first = (await agent.ok("update_context", agent="alice", session_key=key, entries=entries))["first_sequence"]

    found: dict[str, set[int]] = {}
    for query in queries:
        answer = await agent.ok("search_context", agent="alice", query=query, session_key=key)
        found[query] = {match["sequence"] - first for match in answer["matches"]}

    assert found == queries


@pytest.mark.parametrize(
    ("content", "query", "shown"),
    [
        ("导致任务无人消费，" * 40 + "队列端口错配" + "，导致任务无人消费" * 40, "端口错配", "队列**端口错配**"),
        ("word " * 300 + "src/app/UserService.java " + "word " * 300, "service.java", "src/app/User**Service.java**"),
        ("word " * 300 + "the queues are full " + "word " * 300, "queue", "**queues** are full"),
    ],
)
async def test_a_snippet_shows_what_was_found(agent: Agent, content: str, query: str, shown: str) -> None:
    await agent.says(await agent.session(), content)

    (match,) = (await agent.ok("search_context", agent="alice", query=query))["matches"]

    assert shown in match["snippet"]
    assert len(match["snippet"]) <= 500


@pytest.mark.parametrize("query", ["the", "и", "库", "!= ->", '""', "-the"])
async def test_a_query_that_cannot_find_anything_says_why(agent: Agent, query: str) -> None:
    await agent.says(await agent.session(), "the 库 != -> и")

    answer = await agent.ok("search_context", agent="alice", query=query)

    assert answer["matches"] == []
    assert "can't find anything" in answer["hint"]
    assert "hint" not in await agent.ok("search_context", agent="alice", query="absent")


async def test_an_entry_that_pg_restore_writes_without_a_search_path_is_found(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    await db.execute("SET search_path = ''")
    await db.execute(
        """INSERT INTO public.context_entry
                  (session_id, sequence, type, content, size_bytes, content_hash, author, created_at)
           SELECT id, 2, 'message', '数据库 getUserName v1.2.3', 30, sha256(''), 'alice', now()
             FROM public.session WHERE key = $1""",
        key,
    )

    for query in ("数据", "UserName", "1.2.3"):
        assert (await agent.ok("search_context", agent="alice", query=query))["matches"], query


async def test_in_an_entry_with_more_words_than_have_positions_its_paths_are_found(agent: Agent) -> None:
    key = await agent.session()
    await agent.says(
        key, " ".join(f"src/module{number}.py" for number in range(3_000)) + " w" * 17_000 + " last/getUserName.txt"
    )

    for query in ("module2999.py", "src/module2999.py", "last/getUserName.txt", "UserName"):
        assert (await agent.ok("search_context", agent="alice", query=query))["matches"], query


@pytest.mark.parametrize(
    "content",
    [
        "".join(chr(0x4E00 + number * 7_919 % 20_000) for number in range(100_000)),
        "".join(chr(0x20000 + number * 7_919 % 40_000) for number in range(100_000)),
        " ".join(f"{chr(0x430 + n % 32)}{chr(0x430 + n // 32 % 32)}{chr(0x430 + n // 1_024)}" for n in range(32_768)),
        "aB" * 50_000,
        "\ufdfa" * 100_000,
        "a." * 50_000,
    ],
    ids=["Chinese", "rare Chinese", "short Cyrillic words", "camel case", "a letter of 18", "dots"],
)
async def test_no_text_has_more_words_than_a_search_vector_can_hold(agent: Agent, content: str) -> None:
    await agent.says(await agent.session(), content + " needle")


SPACELESS = st.characters(min_codepoint=0x4E00, max_codepoint=0x4E20) | st.sampled_from("データベ端口데이터ฐานข้อ")
WORD = st.text(string.ascii_letters + string.digits + "_.-/:äßéйёжЖ", min_size=1, max_size=12).filter(
    lambda text: not text.startswith("-")
)
ANYTHING = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(module_database_url: str) -> Generator[Ask]:
    """Ask Postgres for one value, outside of any event loop."""
    with asyncio.Runner() as runner:
        conn = runner.run(asyncpg.connect(module_database_url))

        def fetch(query: str, *arguments: object) -> object:
            return runner.run(conn.fetchval(query, *arguments))

        yield fetch
        runner.run(conn.close())


FOUND = """
    SELECT numnode(term) = 0 OR search_vector('handoff', search_texts($1)) @@ term FROM search_term($2, $3) AS term
"""
examples = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(before=ANYTHING, query=st.text(SPACELESS, min_size=2, max_size=12), after=ANYTHING)
def test_any_text_that_contains_a_run_without_spaces_is_found_by_it(ask: Ask, before: str, query: str, after: str) -> None:
    assert ask(FOUND, before + query + after, query, True)


@examples
@given(before=ANYTHING, query=WORD, after=ANYTHING)
def test_any_text_that_contains_a_token_is_found_by_it(ask: Ask, before: str, query: str, after: str) -> None:
    assert ask(FOUND, f"{before} {query} {after}", query, True)


@examples
@given(content=ANYTHING, before=ANYTHING, after=ANYTHING)
def test_any_term_is_looked_for_without_an_error(ask: Ask, content: str, before: str, after: str) -> None:
    assert ask(FOUND, f"{before} {content} {after}", content, False) is not None


async def test_what_is_indexed_of_a_text_is_what_migration_0010_indexed(db: asyncpg.Connection) -> None:
    first = (MIGRATIONS / "0010_search_in_many_languages.sql").read_text()
    (made,) = re.findall(r"CREATE FUNCTION search_texts\(.*?\n\$\$;\n", first, re.DOTALL)
    await db.execute(made.replace("search_texts(", "first_texts("))
    rng = random.Random(7)  # noqa: S311 - it must be repeatable
    # Kana, full-width, composed and decomposed letters, Hangul and its parts, compatibility forms, marks, signs, and spaces
    letters = [*"aZ9 .,-/队列её\u0439\u0438é，：！Ａ"]
    letters += [*"≠…—가\u1100\u1161\u11a8ำําßẞİ\u200b\ufe0f😀´\u2011\u3000。ーｶﾞ𠀀ა\u05d0\u05b8Åゔヷ\u0627"]
    marks = [*"\u0301\u0306\u0308\u0338\u3099\u064b"]
    texts = ["".join(rng.choices(letters + marks, k=rng.randrange(1, 30))) for _ in range(3_000)]
    texts += ["".join(f"a{chr(code)}b" for code in range(begin, begin + 64)) for begin in range(0x80, 0xD800, 64)]
    differ = "SELECT text FROM unnest($1::text[]) AS text WHERE search_texts(text) IS DISTINCT FROM first_texts(text)"
    assert await db.fetch(differ, texts) == []
    pairs = await db.fetchval("SELECT search_texts($1)", "队列端口 a 错配，错")
    assert pairs[2] == "队列 列端 端口 错配"
