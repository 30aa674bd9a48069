"""Faults as they happen in production, injected into a running stack. Each is a context manager: the fault lasts for the
block and is repaired after it.
"""

import json
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any, Final

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.stack.bundle import ANSWER_S, Stack, run
from tests.stack.drills.agents import Caller, again_and_again, hands_to_and_fro

BUSYBOX: Final = "busybox:1.37"


@contextmanager
def both(*contexts: AbstractContextManager[Any]) -> Generator[None]:
    """All contexts together, as one fault."""
    with ExitStack() as entered:
        for it in contexts:
            entered.enter_context(it)
        yield


@contextmanager
def stopped(stack: Stack, *services: str) -> Generator[None]:
    """Services are stopped."""
    stack.compose("stop", "--timeout=2", *services)
    try:
        yield
    finally:
        stack.compose("start", *services)


@contextmanager
def killed(stack: Stack, service: str) -> Generator[None]:
    """A service has crashed, and nobody starts it again."""
    stack.compose("kill", "--signal=SIGKILL", service)
    yield


@contextmanager
def paused(stack: Stack, *services: str) -> Generator[None]:
    """Services hang."""
    stack.compose("pause", *services)
    try:
        yield
    finally:
        stack.compose("unpause", *services)


@contextmanager
def stuttering(stack: Stack, service: str) -> Generator[None]:
    """A service gets no CPU for most of every second."""
    container = stack.container(service)["Id"]

    def stutter() -> None:
        run("docker", "pause", container)
        try:
            Event().wait(0.7)
        finally:
            run("docker", "unpause", container)

    with again_and_again(lambda: stutter, every_s=0.3):
        yield


@contextmanager
def cut_off(stack: Stack, service: str) -> Generator[None]:
    """A service can't be reached over the internal network."""
    container, network = stack.container(service)["Id"], f"{stack.project}_internal"
    run("docker", "network", "disconnect", network, container)
    try:
        yield
    finally:
        run("docker", "network", "connect", "--alias", service, network, container)


@contextmanager
def hanging_proxy(stack: Stack) -> Generator[None]:
    """The proxy of the profile `scale` runs but does not answer."""
    scale = ("--profile", "scale")
    stack.compose(*scale, "up", "--detach", "--no-deps", "proxy")
    try:
        stack.eventually(lambda: stack.promql('up{job="proxy"} == 1'))
        with paused(stack, "proxy"):
            yield
    finally:
        stack.compose(*scale, "rm", "--stop", "--force", "proxy")


@contextmanager
def trigger(stack: Stack, event: str, table: str, does: str, each: str = "STATEMENT") -> Generator[None]:
    """Statements on a table also execute some PL/pgSQL. `each` may be `ROW` with a condition."""
    name = f"by_hand_{table}"
    stack.sql(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does}; RETURN NEW; END $$",
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH {each} EXECUTE FUNCTION {name}()",
    )
    try:
        yield
    finally:
        stack.sql(f"DROP FUNCTION {name} CASCADE")


def slow(stack: Stack, table: str, seconds: float) -> AbstractContextManager[None]:
    """Every insert into a table takes this many seconds longer."""
    return trigger(stack, "INSERT", table, f"PERFORM pg_sleep({seconds})")


def failing(stack: Stack, table: str, each: str = "STATEMENT") -> AbstractContextManager[None]:
    """Inserts into a table fail: all of them, or those that `each` selects."""
    return trigger(stack, "INSERT", table, "RAISE EXCEPTION 'done by hand'", each)


def failing_heartbeat(stack: Stack) -> AbstractContextManager[None]:
    """The worker can't record that its jobs are done."""
    changed = "ROW WHEN (new.jobs_at IS DISTINCT FROM old.jobs_at)"
    return trigger(stack, "UPDATE", "instance", "RAISE EXCEPTION 'done by hand'", changed)


@contextmanager
def locked(stack: Stack, table: str) -> Generator[None]:
    """A table is locked exclusively, as by a manual migration or a forgotten transaction."""
    keep = f"BEGIN; SET application_name = 'by-hand'; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(86400)"
    psql = ("psql", "-h", "/var/run/postgresql", "-U", "postgres", "-d", "handoff")
    stack.compose("exec", "-T", "--detach", "postgres", *psql, "-c", keep)
    stack.eventually(lambda: stack.sql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"))
    try:
        yield
    finally:
        _end_by_hand(stack)


@contextmanager
def audit_changed(stack: Stack) -> Generator[None]:
    """A superuser has changed a row of the audit, with triggers turned off."""
    row, off = "WHERE target = 'by hand'", "SET session_replication_role = replica"
    stack.sql("INSERT INTO audit (at, actor, action, target, details) VALUES (now(), 'ada', 'by.hand', 'by hand', '{}')")
    stack.sql(off, f"UPDATE audit SET actor = 'eve' {row}")
    try:
        yield
    finally:
        stack.sql(off, f"UPDATE audit SET actor = 'ada' {row}")


@contextmanager
def entry_changed(stack: Stack) -> Generator[None]:
    """Somebody has changed the hash of an entry by hand."""
    first = "WHERE sequence = 1 AND session_id = (SELECT min(session_id) FROM context_entry)"
    stack.sql(f"UPDATE context_entry SET content_hash = sha256('eve') {first}")
    try:
        yield
    finally:
        stack.sql(f"UPDATE context_entry SET content_hash = sha256(convert_to(content, 'UTF8')) {first}")
        stack.sql("DELETE FROM quarantine")


@contextmanager
def job_paused(stack: Stack, name: str) -> Generator[None]:
    """An operator has paused a job and forgotten it."""
    stack.sql(f"UPDATE job SET paused_at = now(), paused_by = 'ada', next_run_at = NULL WHERE name = '{name}'")
    try:
        yield
    finally:
        stack.sql(f"UPDATE job SET paused_at = NULL, paused_by = NULL WHERE name = '{name}'")


@contextmanager
def connections_taken(stack: Stack, all_in_all: int) -> Generator[None]:
    """Connections to Postgres are opened and held until there are `all_in_all`."""
    count = all_in_all - int(stack.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
    keep = f"""
import asyncio, asyncpg, pathlib
async def keep():
    password = pathlib.Path("/run/secrets/database-handoff").read_text()
    settings = {{"application_name": "by-hand"}}
    url = "postgresql://handoff@postgres:5432/handoff"
    kept = [await asyncpg.connect(url, password=password, server_settings=settings) for _ in range({count})]
    await kept[0].execute("SELECT pg_sleep(86400)")
asyncio.run(keep())
"""
    stack.compose("exec", "-T", "--detach", "service", "python", "-c", keep)
    try:
        yield
    finally:
        _end_by_hand(stack)


def _end_by_hand(stack: Stack) -> None:
    stack.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'by-hand'")


@contextmanager
def memory_short(stack: Stack, service: str, share: float) -> Generator[None]:
    """The memory limit of a service is lowered until it uses this share of it."""
    container = stack.container(service)
    (used,) = stack.promql(f'max(process_memory_usage_bytes{{service_name="{_name_in_telemetry(container)}"}})')
    limit, was = int(float(used["value"][1]) / share), container["HostConfig"]["Memory"]
    run("docker", "update", f"--memory={limit}", f"--memory-swap={limit * 4}", container["Id"])
    try:
        yield
    finally:
        run("docker", "update", f"--memory={was}", f"--memory-swap={was * 2}", container["Id"])


def _name_in_telemetry(container: dict[str, Any]) -> str:
    (named,) = [it.partition("=")[2] for it in container["Config"]["Env"] if it.startswith("OTEL_SERVICE_NAME=")]
    return named


@contextmanager
def tokens_malformed(stack: Stack) -> Generator[None]:
    """A line of the service's tokens file is malformed."""
    mounted = ("--rm", "--network=none", "-v", f"{stack.project}_secrets-service:/it", BUSYBOX)
    run("docker", "run", *mounted, "sh", "-c", "cp -p /it/tokens /it/tokens-before && echo 'by hand' >>/it/tokens")
    try:
        yield
    finally:
        run("docker", "run", *mounted, "sh", "-c", "cat /it/tokens-before >/it/tokens && rm /it/tokens-before")


@contextmanager
def disk_filling(stack: Stack, volume: str, of_bytes: int, takes_s: float) -> Generator[None]:
    """A file system that is more than half full is filled completely, step by step."""
    begin, little = int(of_bytes * 0.55), of_bytes // 80
    grow = f"for _ in $(seq 33); do sleep {takes_s / 33:.1f}; head -c {little} /dev/zero; done >>/it/filling"
    write = f"head -c {begin} /dev/zero >/it/filling; {grow}"
    mount = ("--network=none", "--init", "-v", f"{stack.project}_{volume}:/it", BUSYBOX)
    container = run("docker", "run", "--detach", *mount, "sh", "-c", f"{write}; sleep 1d").strip()
    try:
        yield
    finally:
        run("docker", "rm", "--force", container)
        run("docker", "run", "--rm", *mount, "rm", "-f", "/it/filling")


@contextmanager
def not_measured(stack: Stack) -> Generator[None]:
    """The collector's role may not log in to Postgres."""
    stack.sql("ALTER ROLE otel NOLOGIN", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'otel'")
    try:
        yield
    finally:
        stack.sql("ALTER ROLE otel LOGIN")


@contextmanager
def no_cache_access(stack: Stack) -> Generator[None]:
    """Redis answers, but denies the service its commands."""
    redis_cli(stack, "acl setuser default -get -set")
    try:
        yield
    finally:
        redis_cli(stack, "acl load")


@contextmanager
def crowded_cache(stack: Stack) -> Generator[None]:
    """Redis has far too little memory, so that entries are evicted before they are read."""
    crowd = "redis.call('flushall') for i = 1, 500 do redis.call('set', 'crowd' .. i, string.rep('x', 10000)) end"
    redis_cli(stack, "config set maxmemory 3mb")
    more = f'{_LOG_IN}; exec redis-cli -r -1 -i 0.002 eval "{crowd}" 0 >/dev/null'
    stack.compose("exec", "-T", "--detach", "redis", "sh", "-c", more)
    try:
        yield
    finally:
        redis_cli(stack, "client kill skipme yes")
        redis_cli(stack, "flushall")
        redis_cli(stack, "config set maxmemory 128mb")


_LOG_IN: Final = 'export REDISCLI_AUTH="$(cat /run/secrets/redis)"'


def redis_cli(stack: Stack, command: str) -> str:
    """Run a Redis command and return the reply."""
    return stack.compose("exec", "-T", "redis", "sh", "-c", f"{_LOG_IN}; redis-cli {command}")


@contextmanager
def offer_left_lying(stack: Stack, hours: float) -> Generator[None]:
    """A handoff has been on offer for hours and nobody accepts it."""
    session = "SELECT min(id) FROM session"
    stack.sql(
        "INSERT INTO handoff (session_id, request_type, sender, target_agent, instructions, priority, state, token, lapses,"
        " as_of_sequence, context_digest, created_at, updated_at)"
        f" SELECT ({session}), 'context_transfer', 'ada', 'archivist', 'by hand', 5, 'offered', 0, 0, 0, sha256(''), now(),"
        f" now() - interval '{hours} hours'"
    )
    try:
        yield
    finally:
        stack.sql("DELETE FROM handoff WHERE instructions = 'by hand'")


@contextmanager
def threshold_set(operator: Caller, name: str, value: float) -> Generator[None]:
    """An operator sets a threshold by the admin tool, and takes that back afterwards."""
    version = operator("configuration")["version"]
    changes = json.dumps({"monitoring": {"thresholds": {name: value}}})
    operator("configuration", action="set", changes=changes, expected_version=version, reason="a drill")
    try:
        yield
    finally:
        operator("configuration", action="rollback", version=version, expected_version=version + 1, reason="it is over")


@contextmanager
def handed_to_and_fro(stack: Stack, ada: Caller, operator: Caller) -> Generator[None]:
    """Two agents keep handing sessions to each other. Afterwards the handoffs are dated back, so that the alert resolves."""
    with again_and_again(lambda: lambda: hands_to_and_fro(ada, operator)):
        yield
    stack.sql("UPDATE handoff SET accepted_at = accepted_at - interval '2 hours' WHERE request_type = 'full_handoff'")


@contextmanager
def file_added(stack: Stack, file: Path, text: str, reader: str) -> Generator[None]:
    """A configuration file gets extra text and is reloaded."""
    before = file.read_text() if file.exists() else None
    file.write_text((before or "") + text)
    stack.compose("kill", "--signal=HUP", reader)
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before)
        stack.compose("kill", "--signal=HUP", reader)


def show_certificate(stack: Stack, days: float) -> None:
    """Let the catcher serve a certificate that is valid for this many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "catcher")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=days)
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    httpx2.put(stack.url("CATCHER_PORT", "/certificate"), content=private + shown, timeout=ANSWER_S).raise_for_status()


@contextmanager
def certificate_of(stack: Stack, days: float) -> Generator[None]:
    """A certificate was not renewed in time and has this many days left."""
    show_certificate(stack, days)
    try:
        yield
    finally:
        show_certificate(stack, 365)


@contextmanager
def pager_refuses(stack: Stack) -> Generator[None]:
    """The receiver of pages refuses them."""
    httpx2.put(stack.url("CATCHER_PORT", "/refuse"), timeout=ANSWER_S).raise_for_status()
    try:
        yield
    finally:
        httpx2.delete(stack.url("CATCHER_PORT", "/refuse"), timeout=ANSWER_S).raise_for_status()
