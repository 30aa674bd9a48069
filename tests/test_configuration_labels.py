"""A changed configuration file gets a new container: the label of each service is the digest of the files that it mounts."""

import shutil
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from docs.source.configuration import COMPOSE, LABEL, NEEDS_NO_RESTART, ROOT, WRITTEN_BY, files_of, labelled

TEXT: Final = COMPOSE.read_text()
SERVICES: Final[dict[str, Any]] = yaml.safe_load(TEXT)["services"]
READS: Final = {name: files for name, it in SERVICES.items() if (files := files_of(name, it))}


def labels(text: str) -> dict[str, str]:
    """The label of each service that has one."""
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return {name: it["labels"][LABEL] for name, it in found.items() if LABEL in it.get("labels", {})}


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    """A copy of everything that compose.yaml mounts, in which files may change."""
    for name in {Path(it.split(":")[0]).parts[0] for service in SERVICES.values() for it in service.get("volumes", [])}:
        if (ROOT / name).is_dir() and not name.startswith("$"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("handoff", "given", "__pycache__"))
    return tmp_path


def test_every_label_is_current() -> None:
    assert labels(labelled(TEXT)) == labels(TEXT), "run `make docs` and commit compose.yaml"
    assert labels(TEXT).keys() == READS.keys()


def test_every_mounted_file_is_in_the_label_of_its_service_or_has_a_reason_not_to_be() -> None:
    for name, service in SERVICES.items():
        mounted = [ROOT / it.split(":")[0] for it in service.get("volumes", []) if it.startswith("./")]
        files = {file.relative_to(ROOT).as_posix() for it in mounted for file in [it, *it.rglob("*")] if file.is_file()}
        left_out = {it for it in files if it not in READS.get(name, ())}
        if service["restart"] != "no":
            assert [it for it in left_out if not it.startswith(tuple(NEEDS_NO_RESTART))] == [], name
    for it in (*NEEDS_NO_RESTART, *WRITTEN_BY.values()):
        assert (ROOT / it).exists(), it
    assert READS.keys() >= {"prometheus", "alertmanager", "otel-collector", "loki", "jaeger", "postgres", "grafana", "proxy"}


@pytest.mark.parametrize("file", sorted({file for files in READS.values() for file in files}))
def test_a_changed_file_changes_the_labels_of_those_that_read_it_and_no_other(pulled: Path, file: str) -> None:
    before = labels(labelled(TEXT, pulled))
    with (pulled / file).open("a") as changed:
        changed.write("\n# changed\n")
    after = labels(labelled(TEXT, pulled))

    assert {name for name in before if after[name] != before[name]} == {name for name, it in READS.items() if file in it}


def test_a_new_file_in_a_mounted_folder_changes_the_label(pulled: Path) -> None:
    before = labels(labelled(TEXT, pulled))
    (pulled / "prometheus" / "rules" / "more.yml").write_text("groups: []\n")
    (pulled / "prometheus" / "runbook.md").write_text("Prometheus does not read this.\n")

    assert labels(labelled(TEXT, pulled)) != before
    assert {**labels(labelled(TEXT, pulled)), "prometheus": ""} == {**before, "prometheus": ""}


def test_a_new_mount_without_a_label_is_refused_with_what_to_do() -> None:
    text = TEXT.replace('    image: ${BUSYBOX_IMAGE:-busybox:1.37}\n    user: "65534:65534"\n    mem_limit: 16m\n',
                        '    image: ${BUSYBOX_IMAGE:-busybox:1.37}\n    volumes: ["./proxy:/proxy:ro,z"]\n')  # fmt: skip
    assert text != TEXT

    with pytest.raises(LookupError, match=r"the service watch mounts configuration. Add `labels: .*proxy/haproxy.cfg"):
        labelled(text)
