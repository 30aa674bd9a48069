"""What stops a start before anything runs: files that containers can't read, and secrets that their readers would change.

And the scheduled run with newer images, which tells early what else would.
"""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[1]
SERVICES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
CHECK: Final = SERVICES["check-permissions"]


def shell(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the stack outside of its container."""
    return subprocess.run(["bash", "-c", script, *arguments], capture_output=True, text=True, check=False)


def binds(service: dict[str, Any]) -> dict[str, str]:
    """The folders that a service mounts from this one, and where."""
    mounts = [it.split(":") for it in service.get("volumes", []) if it.startswith("./")]
    return {it[0]: it[1] for it in mounts}


@pytest.fixture
def cloned(tmp_path: Path) -> Path:
    """A copy of what the check looks at, as readable as a clone with the usual umask."""
    for target in binds(CHECK).values():
        place = tmp_path / target.removeprefix("/config/")
        file = place if place.suffix else place / "config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    for it in tmp_path.rglob("*"):
        it.chmod(0o755 if it.is_dir() else 0o644)
    tmp_path.chmod(0o755)
    return tmp_path


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    return shell(CHECK["command"][2].replace("$$", "$").replace("/config", str(folder)))


def test_a_clone_that_every_container_can_read_passes(cloned: Path) -> None:
    assert checked(cloned).returncode == 0


@pytest.mark.parametrize(
    ("path", "mode"), [("otel-collector/config.yaml", 0o600), ("otel-collector", 0o700), ("postgres", 0o754)]
)
def test_a_clone_with_umask_077_is_refused_at_once_with_what_to_do(cloned: Path, path: str, mode: int) -> None:
    (cloned / path).chmod(mode)
    found = checked(cloned)
    assert found.returncode == 1
    assert f"can't read {path}" in found.stderr
    folders = found.stderr.partition("chmod -R go+rX ")[2].partition("\n")[0].split()
    assert set(folders) == {it.split("/")[1] for it in binds(CHECK)}


def test_everything_that_containers_mount_from_the_folder_is_checked_first() -> None:
    mounted = {it for service in SERVICES.values() if service.get("user") != "0:0" for it in binds(service)}
    assert mounted == set(binds(CHECK))
    for name in ("secrets", "volumes"):  # every other service waits for one of these
        assert SERVICES[name]["depends_on"] == {"check-permissions": {"condition": "service_completed_successfully"}}


def test_every_folder_is_mounted_so_that_selinux_lets_the_container_read_it() -> None:
    for name, service in SERVICES.items():
        for it in service.get("volumes", []):
            assert it.endswith(":ro,z") or not it.startswith(("./", "${SECRETS_DIR")), f"{name}: {it}"


@pytest.mark.parametrize("name", ["database-otel", "redis", "database-grafana", "grafana-admin"])
def test_a_given_secret_with_a_dollar_is_refused_where_its_reader_would_expand_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("pa$word\n")
    script = (ROOT / "secrets" / "make.sh").read_text().replace("/given", str(tmp_path))
    found = shell(
        script.replace("/made", str(tmp_path / "none")).replace("/readers", str(tmp_path / "none")), "make.sh", "make"
    )
    assert found.returncode == 1
    assert found.stderr == (
        f"secrets: {name}: must not contain $, which the collector and Grafana replace with the value of a variable. "
        "Give it another value, without $.\n"
    )


def test_the_scheduled_run_moves_every_pinned_image_on_and_gates_nothing() -> None:
    workflow: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())
    newest = workflow["jobs"]["newest-images"]
    pinned = set(re.findall(r"\$\{([A-Z_]+_IMAGE):-", (ROOT / "compose.yaml").read_text())) - {"HANDOFF_IMAGE"}

    assert {name for name in newest["env"] if name.endswith("_IMAGE")} == pinned
    assert newest["continue-on-error"] is True
    assert "schedule" in workflow[True]  # YAML reads the word `on` as true
    only_pushed = {name for name, job in workflow["jobs"].items() if job.get("if") == "github.event_name != 'schedule'"}
    assert only_pushed == workflow["jobs"].keys() - {"newest-images"}
