"""The label in compose.yaml that says which configuration a container runs.

Compose compares what compose.yaml says of a service, not what the files contain that it mounts. So each service carries a
digest of them: when one of them changes, so does the label, and `up` recreates that container and no other.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = ROOT / "compose.yaml"
LABEL: Final = "handoff.configuration"

# In what is mounted, the files whose change needs no new container, and why.
NEEDS_NO_RESTART: Final = {
    "grafana/dashboards": "Grafana reads them again every 30 seconds",
    "postgres/roles.sql": "only the one-shot `roles` reads it",
    "prometheus/runbook.md": "Prometheus does not read it",
    "prometheus/tests": "Prometheus does not read them",
    "service/config": "the service and the worker read it again when it changes",
}
# Files that are not mounted, but written by a script: `secrets` runs before what reads them.
WRITTEN_BY: Final = {"alertmanager": "secrets/make.sh", "redis": "secrets/make.sh"}


def files_of(name: str, service: dict[str, Any], root: Path = ROOT) -> list[str]:
    """The files that a service has to be started again for; none for a one-shot, which runs at every `up`."""
    if service.get("restart") != "unless-stopped":
        return []
    mounts = [it.split(":")[0].removeprefix("./") for it in service.get("volumes", []) if it.startswith("./")]
    found = [it for mount in mounts for it in [root / mount, *(root / mount).rglob("*")] if it.is_file()]
    names = {it.relative_to(root).as_posix() for it in found}
    kept = {it for it in names if not any(it == no or it.startswith(f"{no}/") for no in NEEDS_NO_RESTART)}
    return sorted(kept | ({WRITTEN_BY[name]} if name in WRITTEN_BY else set()))


def digest(files: list[str], root: Path = ROOT) -> str:
    """A digest of the names and contents of files."""
    whole = hashlib.sha256()
    for it in files:
        whole.update(f"{it}\0{hashlib.sha256((root / it).read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def labelled(text: str, root: Path = ROOT) -> str:
    """The text of compose.yaml with each label as it has to be. Raises LookupError where a service has no line for it."""
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        if files := files_of(name, service, root):
            line = re.compile(rf'(^  {name}:(?: #.*)?\n(?:(?!  \S).*\n)*?    labels: {{{LABEL}: ")[^"]*', re.MULTILINE)
            text, count = line.subn(lambda found, files=files: found[1] + digest(files, root), text)
            if not count:
                raise LookupError(
                    f'compose.yaml: the service {name} mounts configuration. Add `labels: {{{LABEL}: ""}}` to it, or say in '
                    f"NEEDS_NO_RESTART of docs/source/configuration.py why a change needs no restart: {', '.join(files)}"
                )
    return text
