"""After the commands that docs/stack.md shows for an upgrade, every program runs the configuration that was pulled."""

import json
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from docs.source.configuration import labelled
from tests.stack.bundle import ROOT, Failed, Stack, run

PAGE: Final = (ROOT / "docs" / "stack.md").read_text()
FOLDERS: Final = (
    "alertmanager",
    "grafana",
    "jaeger",
    "loki",
    "otel-collector",
    "postgres",
    "prometheus",
    "proxy",
    "secrets",
)
# What reads configuration, and `watch`, from which the others are asked.
STARTED: Final = ("alertmanager", "jaeger", "loki", "otel-collector", "postgres", "prometheus", "proxy", "redis", "watch")
# Without the service, so that nothing has to be built; the proxy alone would wait for it.
ALONE: Final = "services: {proxy: {depends_on: !reset null, healthcheck: !override {disable: true}}}\n"

CHANGES: Final = (
    ("alertmanager/alertmanager.yml", "group_wait: 30s", "group_wait: 31s"),
    ("jaeger/config.yaml", "{service.name: jaeger}", '{service.name: jaeger, pulled: "yes"}'),
    ("loki/config.yaml", "ingestion_rate_mb: 16", "ingestion_rate_mb: 17"),
    ("otel-collector/config.yaml", "{service.name: otel-collector}", '{service.name: otel-collector, pulled: "yes"}'),
    ("postgres/roles.sql", "\n", "\n-- read by the one-shot only\n"),
    ("prometheus/prometheus.yml", "scrape_interval: 15s", "scrape_interval: 16s"),
    ("prometheus/rules/thresholds.yml", "vector(3600)", "vector(3601)"),
    ("prometheus/runbook.md", "\n", "\n\n"),
    ("proxy/haproxy.cfg", "\nbackend services\n", "\nbackend pulled\n\nbackend services\n"),
    ("secrets/make.sh", "~* &* +@all", "~* &pulled +@all"),
)


def release(upstream: Path, *changes: tuple[str, str, str]) -> None:
    """Commit changes to files, each with the labels that `make docs` writes."""
    for file, before, after in changes:
        text = (upstream / file).read_text()
        assert before in text, file
        (upstream / file).write_text(text.replace(before, after, 1))
    compose = upstream / "compose.yaml"
    compose.write_text(labelled(compose.read_text(), upstream))
    run("git", "add", "--all", cwd=upstream)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=A release", cwd=upstream)


@pytest.fixture
def upstream() -> Generator[Path]:
    """A repository with what the stack mounts."""
    with TemporaryDirectory(prefix="handoff-stack-") as folder:
        made = Path(folder) / "upstream"
        for name in FOLDERS:
            shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("given", "__pycache__"))
        (made / "service").mkdir()
        shutil.copytree(ROOT / "service" / "config", made / "service" / "config")
        shutil.copy(ROOT / "compose.yaml", made)
        run("git", "init", "--quiet", "--initial-branch=main", cwd=made)
        release(made)
        yield made


@pytest.fixture
def cloned(upstream: Path, left_out: set[str], postgres_uid: str, pytestconfig: pytest.Config) -> Generator[Stack]:
    """A stack that runs from a clone of it, with nothing started."""
    folder = upstream.parent
    run("git", "clone", "--quiet", str(upstream), "clone", cwd=folder)
    (folder / "alone.yaml").write_text(ALONE)
    overlays = [str(folder / "alone.yaml"), *(f"without-{name}.yaml" for name in left_out)]
    project = f"{pytestconfig.getoption('project')}-pulled"
    it = Stack(folder, project, overlays, {"POSTGRES_UID": postgres_uid}, root=folder / "clone")
    it.down("--volumes")
    try:
        yield it
    finally:
        it.down("--volumes")


def upgrade(stack: Stack) -> None:
    """Run the commands of the page, on what was started."""
    commands = re.findall(r"^    (.+)$", PAGE.split("\n## Upgrade\n", 1)[1].split("\n\n", 1)[0], re.MULTILINE)
    assert commands == ["git pull", "docker compose up -d --wait --build"]
    run(*commands[0].split(), cwd=stack.root)
    stack.compose("--profile", "scale", *commands[1].split()[2:], *STARTED)


def started(stack: Stack) -> dict[str, str]:
    """When each container that runs was started, by its service."""
    running = [it for it in stack.containers() if it["State"]["Running"]]
    return {it["Config"]["Labels"]["com.docker.compose.service"]: it["State"]["StartedAt"] for it in running}


def test_after_the_upgrade_every_program_runs_the_configuration_that_was_pulled(cloned: Stack, upstream: Path) -> None:
    def read(url: str) -> str:
        return cloned.compose("exec", "-T", "watch", "wget", "-q", "-O", "-", url)

    cloned.compose("--profile", "scale", "up", "--detach", "--wait", *STARTED)
    cloned.compose("run", "--rm", "--no-deps", "-T", "roles")
    before = started(cloned)

    release(upstream, *CHANGES)
    upgrade(cloned)

    after = started(cloned)
    assert {name for name in before if after[name] == before[name]} == {"postgres"}, "nothing that it reads has changed"
    assert "vector(3601)" in json.dumps(cloned.get("PROMETHEUS_PORT", "/api/v1/rules"))
    assert "scrape_interval: 16s" in cloned.get("PROMETHEUS_PORT", "/api/v1/status/config")["data"]["yaml"]
    assert "group_wait: 31s" in cloned.get("ALERTMANAGER_PORT", "/api/v2/status")["config"]["original"]
    assert "ingestion_rate_mb: 17" in read("http://loki:3100/config")
    assert 'pulled="yes"' in read("http://otel-collector:8888/metrics")
    assert 'pulled="yes"' in read("http://jaeger:8888/metrics")
    assert 'proxy="pulled"' in read("http://proxy:8404/metrics")
    acl = 'REDISCLI_AUTH="$(cat /run/secrets/redis)" redis-cli ACL LIST'
    assert "&pulled" in cloned.compose("exec", "-T", "redis", "sh", "-c", acl)

    release(upstream, ("postgres/pg_hba.conf", "handoff,grafana,otel", "handoff,otel"))
    upgrade(cloned)

    assert {name for name in after if started(cloned)[name] != after[name]} == {"postgres"}
    with pytest.raises(Failed, match=r"no pg_hba.conf entry for host"):
        cloned.psql("grafana", cloned.secret("database-grafana"), "SELECT 1")
