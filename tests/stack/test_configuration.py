"""The shipped configuration is valid for the programs that read it, and locked down. Only their checkers are run here."""

import re
from pathlib import Path
from typing import Any

import pytest

from handoff.settings import Settings
from tests.stack.bundle import ROOT, run, shipped

ONE_SHOTS = {"check-permissions", "secrets", "volumes", "roles", "migrate", "demo-secrets"}
ROOT_ONE_SHOTS = {"secrets", "volumes", "demo-secrets"}  # they change the owner of files


@pytest.fixture(scope="module")
def services(docker: None) -> dict[str, Any]:
    return shipped("*")["services"]


def check(image: str, folder: str, inside: str, *command: str, mounts: tuple[str, ...] = (), entrypoint: str = "") -> str:
    """Run the checker in an image on a folder of the repository."""
    chosen = ["--entrypoint", entrypoint] if entrypoint else []
    volumes = [word for mount in (f"{ROOT / folder}:{inside}:ro", *mounts) for word in ("-v", mount)]
    return run("docker", "run", "--rm", "--network=none", *chosen, *volumes, image, *command)


def test_promtool_accepts_the_configuration_of_prometheus(images: dict[str, str]) -> None:
    check(images["prometheus"], "prometheus", "/etc/prometheus", "check", "config", "/etc/prometheus/prometheus.yml",
          entrypoint="promtool")  # fmt: skip


def test_amtool_accepts_the_configuration_of_alertmanager(images: dict[str, str]) -> None:
    check(images["alertmanager"], "alertmanager", "/etc/alertmanager", "check-config", "/etc/alertmanager/alertmanager.yml",
          entrypoint="amtool")  # fmt: skip


def test_the_collector_accepts_its_configuration(images: dict[str, str], tmp_path: Path) -> None:
    for name in ("database-otel", "redis"):
        (tmp_path / name).write_text("a-password")
    (tmp_path / "queue").mkdir()
    mounts = (f"{tmp_path}:/run/secrets:ro", f"{tmp_path / 'queue'}:/var/lib/otelcol")
    for folder in (tmp_path, *tmp_path.parents[:2]):  # the checker runs as another user
        folder.chmod(0o755)
    check(images["otel-collector"], "otel-collector", "/etc/otelcol-contrib", "validate",
          "--config=/etc/otelcol-contrib/config.yaml", mounts=mounts)  # fmt: skip


def test_loki_accepts_its_configuration(images: dict[str, str]) -> None:
    command = ["-config.file=/etc/loki/config.yaml", "-config.expand-env=true", "-verify-config"]
    check(images["loki"], "loki", "/etc/loki", *command)


def test_jaeger_accepts_its_configuration(images: dict[str, str]) -> None:
    check(images["jaeger"], "jaeger", "/etc/jaeger", "validate", "--config=/etc/jaeger/config.yaml")


def test_haproxy_accepts_its_configuration(images: dict[str, str]) -> None:
    inside = "/usr/local/etc/haproxy"
    check(images["proxy"], "proxy", inside, "haproxy", "-c", "-f", f"{inside}/haproxy.cfg")


def test_every_port_is_published_on_loopback_and_is_configurable(services: dict[str, Any]) -> None:
    ports = {(name, port["published"]): port for name, it in services.items() for port in it.get("ports", [])}
    assert len(ports) >= 8
    assert {port.get("host_ip") for port in ports.values()} == {"127.0.0.1"}
    assert len({published for _, published in ports}) == len(ports), "two services publish the same port"
    text = (ROOT / "compose.yaml").read_text()
    knobs = set(re.findall(r"127\.0\.0\.1:\$\{([A-Z_]+_PORT):-(\d+)\}", text))
    assert {published for _, published in ports} == {default for _, default in knobs}


def test_services_that_publish_a_port_are_on_the_edge_network_and_the_stores_are_not(services: dict[str, Any]) -> None:
    on_edge = {name for name, it in services.items() if "edge" in (it.get("networks") or {})}
    assert {name for name, it in services.items() if it.get("ports")} <= on_edge
    assert not on_edge & {"postgres", "redis", "loki", "watch"}
    assert not services["worker"].get("ports"), "the worker is on the edge network only for outgoing calls"
    assert shipped()["networks"]["internal"]["internal"] is True


@pytest.mark.parametrize("promise", ["root", "capabilities", "privileges", "user", "bounds", "logs", "init"])
def test_every_container_is_hardened(services: dict[str, Any], promise: str) -> None:
    def kept(name: str, it: dict[str, Any]) -> bool:
        if promise == "root":
            return it.get("read_only") is True
        if promise == "capabilities":
            given = {"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH"} if name in ROOT_ONE_SHOTS else set[str]()
            return it.get("cap_drop") == ["ALL"] and set(it.get("cap_add", [])) <= given and not it.get("privileged")
        if promise == "privileges":
            return it.get("security_opt") == ["no-new-privileges:true"]
        if promise == "user":
            user = re.fullmatch(r"(\d+):(\d+)", it.get("user", ""))
            return user is not None and (user[1] != "0" or (name in ROOT_ONE_SHOTS and it["network_mode"] == "none"))
        if promise == "bounds":
            return int(it.get("mem_limit", 0)) > 0 and it.get("pids_limit", 0) > 0
        if promise == "logs":
            return set(it["logging"].get("options", {})) == {"max-size", "max-file"}
        return it.get("init") is True

    assert [name for name, it in services.items() if not kept(name, it)] == []


def test_daemons_are_restarted_and_get_time_to_stop(services: dict[str, Any]) -> None:
    assert set(services) > ONE_SHOTS
    for name, it in services.items():
        if name in ONE_SHOTS:
            assert it["restart"] == "no", name
        else:
            assert it["restart"] == "unless-stopped", name
            assert it.get("stop_grace_period"), name


def test_bind_mounts_are_read_only(services: dict[str, Any]) -> None:
    mounts = [(name, it) for name, service in services.items() for it in service.get("volumes", [])]
    binds = [(name, it) for name, it in mounts if it["type"] == "bind"]
    assert binds
    assert [(name, it["source"]) for name, it in binds if not it.get("read_only")] == []


def test_every_image_and_every_setting_is_in_the_example() -> None:
    text = (ROOT / "compose.yaml").read_text()
    example = dict(re.findall(r"^#([A-Z_]+)=(\S*)", (ROOT / ".env.example").read_text(), re.MULTILINE))
    knob, filled = re.compile(r"\$\{([A-Z_]+):-([^${}]*)\}"), text
    used: dict[str, str] = {}
    while found := dict(knob.findall(filled)):  # innermost first: a default may refer to another setting
        used |= found
        filled = knob.sub(r"\2", filled)
    assert used == {name: value for name, value in example.items() if name != "COMPOSE_PROFILES"}
    pinned = [value for name, value in used.items() if name.endswith("_IMAGE")]
    assert all(re.search(r":[^:/]+$", image) and not image.endswith(":latest") for image in pinned), pinned
    assert len(re.findall(r"image: (?!\$\{[A-Z_]+_IMAGE:-)", text)) == 0


def test_the_service_and_the_worker_start_without_the_parts_that_may_be_down(services: dict[str, Any]) -> None:
    for name in ("service", "worker"):
        assert not {"otel-collector", "prometheus", "jaeger", "loki", "grafana", "watch"} & set(services[name]["depends_on"])
        assert services[name]["depends_on"]["redis"]["condition"] == "service_started"


def test_the_worker_knows_prometheus_and_webhooks_wait_for_their_file(services: dict[str, Any]) -> None:
    assert services["worker"]["environment"]["HANDOFF_PROMETHEUS_URL"] == "http://prometheus:9090"
    for name in ("service", "worker"):
        assert Settings(webhooks_file=services[name]["environment"]["HANDOFF_WEBHOOKS_FILE"]).webhooks_file is None
