"""Grafana's configuration has only keys that its documentation allows; a live one is tested where its image is at hand."""

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.stack.bundle import ANSWER_S, ROOT, Stack
from tests.stack.conftest import GRAFANA_LEFT_OUT

PROVISIONING = ROOT / "grafana" / "provisioning"
SOURCE_KEYS = {"name", "uid", "type", "access", "url", "user", "isDefault", "editable", "jsonData", "secureJsonData"}
JSON_KEYS = {
    "prometheus": {"httpMethod", "prometheusType", "prometheusVersion", "timeInterval", "exemplarTraceIdDestinations"},
    "jaeger": {"nodeGraph", "tracesToLogsV2", "tracesToMetrics"},
    "loki": {"maxLines", "derivedFields"},
    "grafana-postgresql-datasource": {
        "database", "sslmode", "postgresVersion", "timescaledb", "maxOpenConns", "maxIdleConns", "connMaxLifetime",
    },
}  # fmt: skip
LINK_KEYS = {
    "exemplarTraceIdDestinations": {"name", "datasourceUid", "urlDisplayLabel"},
    "derivedFields": {"name", "matcherType", "matcherRegex", "datasourceUid", "url", "urlDisplayLabel"},
    "tracesToLogsV2": {
        "datasourceUid", "spanStartTimeShift", "spanEndTimeShift", "tags", "filterByTraceID", "filterBySpanID",
        "customQuery", "query",
    },
    "tracesToMetrics": {"datasourceUid", "spanStartTimeShift", "spanEndTimeShift", "tags", "queries"},
}  # fmt: skip
PROVIDER_KEYS = {
    "name", "folder", "folderUid", "type", "disableDeletion", "allowUiUpdates", "updateIntervalSeconds", "options",
}  # fmt: skip


def provisioned(kind: str) -> dict[str, Any]:
    files = list((PROVISIONING / kind).glob("*.yaml"))
    assert len(files) == 1
    return yaml.safe_load(files[0].read_text())


def sources() -> dict[str, dict[str, Any]]:
    return {it["uid"]: it for it in provisioned("datasources")["datasources"]}


def links(source: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The links from a data source to others, as (kind, link)."""
    found = [(name, source["jsonData"][name]) for name in LINK_KEYS if name in source["jsonData"]]
    return [(name, one) for name, it in found for one in (it if isinstance(it, list) else [it])]


def test_every_file_has_its_api_version() -> None:
    files = list(PROVISIONING.rglob("*.yaml"))
    assert files
    assert [file for file in files if yaml.safe_load(file.read_text())["apiVersion"] != 1] == []


def test_the_data_sources_have_fixed_uids_and_only_keys_that_grafana_knows() -> None:
    assert set(sources()) == {"prometheus", "jaeger", "loki", "postgres"}
    assert [uid for uid, it in sources().items() if it.get("isDefault")] == ["prometheus"]
    for it in sources().values():
        assert set(it) <= SOURCE_KEYS
        assert set(it["jsonData"]) <= JSON_KEYS[it["type"]]
        for name, link in links(it):
            assert set(link) <= LINK_KEYS[name]
            assert link["datasourceUid"] in sources()


def test_metrics_traces_and_logs_link_to_one_another() -> None:
    ways = {(uid, link["datasourceUid"]) for uid, it in sources().items() for _, link in links(it)}
    assert ways == {("prometheus", "jaeger"), ("jaeger", "loki"), ("jaeger", "prometheus"), ("loki", "jaeger")}


def test_only_variables_that_grafana_expands_later_are_escaped() -> None:
    # When Grafana reads the file, `$x` and `${x}` expand to environment variables, and `$$` becomes `$`.
    text = (PROVISIONING / "datasources" / "handoff.yaml").read_text()
    values = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert re.findall(r"(?<!\$)\$(?!\$)(\w+|\{)", values.replace("$$", "$$ ").replace("$$ ", "\0\0")) == ["__file"]
    assert {"{__tags}", "{__trace.traceId}", "{__value.raw}", "__tags"} <= set(re.findall(r"\$\$(\{[\w.]+\}|\w+)", values))


def test_the_database_is_read_by_the_role_that_cannot_see_content() -> None:
    postgres = sources()["postgres"]
    assert postgres["user"] == "grafana"
    assert postgres["secureJsonData"] == {"password": "$__file{/run/secrets/database-grafana}"}


def test_dashboards_come_from_the_mounted_folder() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    assert set(provider) <= PROVIDER_KEYS
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in (ROOT / "compose.yaml").read_text()
    assert provider["allowUiUpdates"] is False
    assert provider["disableDeletion"] is False, "a page whose file is gone would stay"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("auth.anonymous", "enabled", "false"),
        ("users", "allow_sign_up", "false"),
        ("security", "admin_password", "$__file{/run/secrets/grafana-admin}"),
        ("plugins", "preinstall_disabled", "true"),
        ("analytics", "reporting_enabled", "false"),
        ("analytics", "check_for_updates", "false"),
        ("analytics", "check_for_plugin_updates", "false"),
        ("news", "news_feed_enabled", "false"),
        ("snapshots", "external_enabled", "false"),
    ],
)
def test_a_password_is_required_and_nothing_is_fetched_or_reported(section: str, key: str, value: str) -> None:
    settings = ConfigParser(interpolation=None)
    settings.read(Path(ROOT / "grafana" / "grafana.ini"))
    assert settings.get(section, key) == value


def test_a_live_grafana_reaches_every_data_source(stack: Stack, left_out: set[str]) -> None:
    if "grafana" in left_out:
        pytest.skip(GRAFANA_LEFT_OUT)
    assert httpx2.get(stack.url("GRAFANA_PORT", "/api/datasources"), timeout=ANSWER_S).status_code == 401
    signed_in = ("admin", stack.secret("grafana-admin"))
    for uid in sources():
        answer = httpx2.get(
            stack.url("GRAFANA_PORT", f"/api/datasources/uid/{uid}/health"), auth=signed_in, timeout=ANSWER_S
        )
        assert answer.json()["status"] == "OK", answer.text
