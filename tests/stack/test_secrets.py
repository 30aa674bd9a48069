"""Every secret is known to the programs that need it, and to nothing else."""

import json
import re
from time import time

import httpx2
import pytest

from tests.stack.bundle import ANSWER_S, ROOT, Failed, Stack, run, shipped
from tests.stack.conftest import ADA_TOKEN

READERS = {  # volume: the services that mount it, and the user that owns its files
    "secrets": (set[str](), "0"),
    "secrets-postgres": ({"postgres"}, "postgres"),
    "secrets-roles": ({"roles"}, "postgres"),
    "secrets-redis": ({"redis"}, "999"),
    "secrets-migrate": ({"migrate"}, "10001"),
    "secrets-service": ({"service", "service-2"}, "10001"),
    "secrets-worker": ({"worker"}, "10001"),
    "secrets-otel-collector": ({"otel-collector"}, "10001"),
    "secrets-alertmanager": ({"alertmanager"}, "65534"),
    "secrets-grafana": ({"grafana"}, "472"),
    "secrets-demo": ({"demo"}, "10001"),
}
WRITERS = {"secrets", "demo-secrets"}


@pytest.fixture(scope="module")
def made(stack: Stack) -> dict[str, str]:
    """The secrets that were generated for this stack, by name."""
    names = stack.in_volume("secrets", "ls", "/volume").split()
    return {name: stack.in_volume("secrets", "cat", f"/volume/{name}") for name in names}


def test_secrets_that_were_not_given_are_generated_and_all_differ(made: dict[str, str]) -> None:
    always = {name for name in made if not name.startswith("demo-")}  # these belong to the profile `demo`
    assert always == {
        "database-superuser", "database-handoff", "database-grafana", "database-otel", "redis", "grafana-admin",
        "operator-token",
        "alertmanager-token",
    }  # fmt: skip
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", it) for it in made.values())
    assert len(set(made.values())) == len(made)


def test_no_secret_is_in_an_environment_variable_a_command_or_a_label(stack: Stack, made: dict[str, str]) -> None:
    for container in stack.containers():
        text = json.dumps(container)
        assert [name for name, it in made.items() if it in text] == [], container["Name"]
    assert not [name for name in made if made[name] in json.dumps(shipped("*"))]


def test_no_secret_is_in_a_log(stack: Stack, made: dict[str, str]) -> None:
    text = stack.compose("logs", "--no-color")
    assert "ready to accept connections" in text, "there are no logs to search"
    assert [name for name, it in made.items() if it in text] == []


def test_no_secret_is_in_the_working_tree(made: dict[str, str]) -> None:
    for name, secret in made.items():
        with pytest.raises(Failed, match="exit 1"):
            run("grep", "-rqF", "--exclude-dir=.venv", "--exclude-dir=.tools", "-e", secret, ".")
        assert name not in run("git", "ls-files", "secrets/given").split()


def test_only_its_reader_mounts_a_volume_of_secrets() -> None:
    mounted: dict[str, set[str]] = {}
    for name, service in shipped("*")["services"].items():
        for mount in service.get("volumes", []):
            if mount.get("target") == "/run/secrets" or mount["source"] in READERS:
                if name in WRITERS:
                    continue
                assert mount.get("read_only"), name
                mounted.setdefault(mount["source"], set()).add(name)
    assert mounted == {volume: readers for volume, (readers, _) in READERS.items() if readers}


def test_only_its_reader_can_read_a_secret(stack: Stack) -> None:
    for volume, (_, owner) in READERS.items():
        uid = stack.settings["POSTGRES_UID"] if owner == "postgres" else owner
        seen = stack.in_volume(volume, "sh", "-c", "stat -c '%a %u %n' /volume/* 2>/dev/null || true").splitlines()
        assert seen or volume == "secrets-demo", volume
        assert {line.split()[0] for line in seen} <= {"400", "600" if volume == "secrets" else "400"}, seen
        assert {line.split()[1] for line in seen} <= {uid}, seen


def test_the_tokens_file_holds_digests_and_the_lines_that_the_operator_wrote(stack: Stack, made: dict[str, str]) -> None:
    text = stack.in_volume("secrets-service", "cat", "/volume/tokens")
    assert (stack.given / "tokens").read_text().strip() in text
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert [(agent, scopes) for _, agent, scopes in lines] == [
        ("ada", "read,write"), ("operator", "admin"), ("alertmanager", "alerts"),
    ]  # fmt: skip
    assert made["operator-token"] not in text
    assert ADA_TOKEN not in text


async def test_the_generated_operator_token_is_accepted_and_a_call_without_a_token_is_not(stack: Stack) -> None:
    async with stack.agent(stack.secret("operator-token")) as operator:
        assert "sessions" in await operator.read("handoff://sessions")
    for headers in ({}, {"Authorization": "Bearer a guess"}):
        assert httpx2.post(stack.url("HANDOFF_PORT", "/mcp"), headers=headers, json={}, timeout=ANSWER_S).status_code == 401


def test_a_given_secret_replaces_the_generated_one(stack: Stack, made: dict[str, str]) -> None:
    given = {"database-handoff": 'a new password: $it\'s 1e5 "quoted"', "redis": "another one", "database-otel": "1e5"}
    given["deadman-url"] = "http://hooks.example/dead-man"
    given["webhook-secret-ops"] = "whsec_" + "c2VjcmV0" * 4
    given["webhooks.toml"] = """[[endpoint]]
        name = "ops"
        url = "https://hooks.example/handoff"
        secret_files = ["/run/secrets/webhook-secret-ops"]"""
    try:
        for name, value in given.items():
            (stack.given / name).write_text(f"{value}\n")
        stack.up("--force-recreate")
        assert stack.secret("database-handoff") == given["database-handoff"]
        assert stack.psql("handoff", given["database-handoff"], "SELECT 1") == "1"
        with pytest.raises(Failed, match="password authentication failed"):
            stack.psql("handoff", made["database-handoff"], "SELECT 1")
        for name in ("deadman-url", "webhook-secret-ops", "webhooks.toml"):
            assert stack.in_volume("secrets-worker", "cat", f"/volume/{name}").rstrip("\n") == given[name]
        for_service = stack.in_volume("secrets-service", "ls", "/volume").split()
        assert ("webhooks.toml" in for_service, "webhook-secret-ops" in for_service) == (True, False)
        # The collector uses the new passwords too: with wrong ones its receivers would produce no new samples.
        began = time()
        for job in ("postgres", "redis"):
            fresh = f'timestamp({{__name__=~"postgresql_backends|redis_uptime_seconds_total", job="{job}"}}) > {began}'
            stack.eventually(lambda fresh=fresh: stack.promql(fresh))
    finally:
        for name in given:
            (stack.given / name).unlink()
        stack.up("--force-recreate")
    assert stack.psql("handoff", made["database-handoff"], "SELECT 1") == "1"
    assert set(stack.in_volume("secrets-worker", "ls", "/volume").split()) == {"database-handoff", "redis"}


def test_the_role_of_grafana_can_read_the_reporting_views_and_nothing_else(stack: Stack, made: dict[str, str]) -> None:
    def sees(*statements: str) -> str:
        return stack.psql("grafana", made["database-grafana"], *statements)

    def refused(why: str, *statements: str) -> None:
        with pytest.raises(Failed, match=why):
            sees(*statements)

    views = sees("SELECT string_agg(viewname, ' ') FROM pg_views WHERE schemaname = 'reporting'").split()
    assert {"event", "handoff", "session"} <= set(views)
    for view in views:
        assert sees(f"SELECT count(*) >= 0 FROM reporting.{view}") == "t"
    in_public = "FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    tables = sees(f"SELECT string_agg(relname, ' ') {in_public}").split()
    assert {"session", "context_entry", "handoff"} <= set(tables)
    for table in tables:
        refused("permission denied", f"SELECT * FROM public.{table}")
    refused("read-only transaction", "CREATE TABLE reporting.mine ()")
    for may_write in ("CREATE TABLE reporting.mine ()", "CREATE TABLE public.mine ()", "CREATE TEMP TABLE mine ()"):
        refused("permission denied", "SET default_transaction_read_only = off", may_write)
    refused("permission denied", "SELECT pg_read_file('/etc/passwd')")


def test_a_view_from_a_later_migration_is_readable_without_another_grant(stack: Stack, made: dict[str, str]) -> None:
    stack.psql("handoff", made["database-handoff"], "CREATE VIEW reporting.later AS SELECT 1 AS one")
    try:
        assert stack.psql("grafana", made["database-grafana"], "SELECT one FROM reporting.later") == "1"
    finally:
        stack.psql("handoff", made["database-handoff"], "DROP VIEW reporting.later")


def test_the_superuser_cannot_connect_over_the_network(stack: Stack, made: dict[str, str]) -> None:
    with pytest.raises(Failed, match=r"no pg_hba.conf entry"):
        stack.psql("postgres", made["database-superuser"], "SELECT 1")


def test_redis_refuses_clients_without_a_password(stack: Stack) -> None:
    assert "NOAUTH" in stack.compose("exec", "-T", "redis", "redis-cli", "ping")


def test_an_unknown_secret_cannot_be_shown(stack: Stack) -> None:
    for name in ("../../etc/passwd", "tokens", ""):
        with pytest.raises(Failed, match="usage: show NAME, where NAME is database-superuser"):
            stack.secret(name)


def test_the_folder_for_given_secrets_is_never_committed() -> None:
    files = ["secrets/given/redis", "secrets/given/tokens"]
    assert run("git", "check-ignore", *files).split() == files
    assert (ROOT / "secrets" / "given").is_dir()
