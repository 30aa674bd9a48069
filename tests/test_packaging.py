"""What is published: the wheel and the sdist, their metadata, and a README whose links work on PyPI."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

from handoff import __version__
from handoff.settings import Settings, default_data_dir
from tests.processes import PATIENCE_S, environment, free_port, passable_folder

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "service" / "handoff"
REPOSITORY = "https://github.com/handoff-observatory/handoff-observatory"
RAW = "https://raw.githubusercontent.com/handoff-observatory/handoff-observatory"
BLOB_OF_VERSION = f"{REPOSITORY}/blob/v{__version__}"
RAW_OF_VERSION = f"{RAW}/v{__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, as `uv build` makes them, by the locked build backend and without a network."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "sdist", "wheel")
    return folder


def build(source: Path, to: Path, *targets: str) -> None:
    wanted = [argument for target in targets for argument in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(to), *wanted]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def wheel_in(folder: Path) -> zipfile.ZipFile:
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    (name,) = (it for it in wheel.namelist() if it.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    with wheel_in(built) as wheel:
        return metadata_of(wheel)


def test_the_wheel_has_the_whole_package_its_migrations_and_its_type_marker(built: Path) -> None:
    with wheel_in(built) as wheel:
        names = {it for it in wheel.namelist() if ".dist-info/" not in it}

    assert names == {
        f"handoff/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "handoff/py.typed" in names
    assert any(re.fullmatch(r"handoff/store/migrations/0001_\w+\.sql", name) for name in names)


def test_the_sdist_has_what_the_wheel_is_built_from_and_nothing_else(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()

    assert {it.name for it in source.iterdir()} == {
        ".gitignore",  # hatchling always takes it along
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "service",
    }
    build(source, tmp_path / "again", "wheel")
    with wheel_in(built) as first, wheel_in(tmp_path / "again") as second:
        assert {it: first.read(it) for it in first.namelist()} == {it: second.read(it) for it in second.namelist()}


def test_the_version_is_the_same_everywhere(built: Path, metadata: Message) -> None:
    assert metadata["Version"] == __version__
    assert f"\nARG VERSION={__version__}\n" in (ROOT / "service" / "Dockerfile").read_text()
    assert f"\n## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text()

    (path,) = built.glob("*.whl")
    shown = "import handoff, runpy; print(handoff.__file__, flush=True); runpy.run_module('handoff', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", shown, "--version"],
        env={**os.environ, "PYTHONPATH": str(path)},  # Python imports from a wheel as it is
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout.splitlines() == [str(path / "handoff" / "__init__.py"), __version__]


def test_the_metadata_say_what_it_is_under_which_license_and_where_it_lives(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = metadata.get_all("Classifier", [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == set(urls)
    assert all(url.startswith(REPOSITORY) for url in urls.values())


def targets_in(markdown: str) -> list[str]:
    """Every address that a page links to or shows a picture from."""
    found: list[str] = []
    for block in MarkdownIt().parse(markdown):
        for token in (block, *(block.children or ())):
            found += [str(token.attrs[it]) for it in ("href", "src") if it in token.attrs]
            if token.type in ("html_block", "html_inline"):
                found += re.findall(r'(?:href|src|srcset)="([^"\s]+)', token.content)
    return found


def test_every_link_of_the_readme_works_on_pypi(metadata: Message) -> None:
    targets = targets_in(str(metadata.get_payload()))
    relative = [it for it in targets_in((ROOT / "README.md").read_text()) if not re.match(r"[a-z]+:|#", it)]
    ours = [it for it in targets if it.startswith((f"{REPOSITORY}/blob/", f"{RAW}/"))]

    assert [it for it in targets if not re.match(r"https?://|#", it)] == []
    assert len(ours) == len(relative) > 0
    for target in ours:
        tag, _, path = target.removeprefix(f"{REPOSITORY}/blob/").removeprefix(f"{RAW}/").partition("/")
        assert tag == f"v{__version__}", target
        assert (ROOT / path.partition("#")[0]).exists(), target
    assert [it for it in ours if it.endswith((".svg", ".png")) and not it.startswith(f"{RAW}/")] == []


LINKS = (  # as they are written, and as PyPI shows them
    ("![a](docs/a.svg)", f"![a]({RAW_OF_VERSION}/docs/a.svg)"),
    ("[![a](docs/a.svg)](docs/a.md)", f"[![a]({RAW_OF_VERSION}/docs/a.svg)]({BLOB_OF_VERSION}/docs/a.md)"),
    ("[a](docs/a.md#b 'c')", f"[a]({BLOB_OF_VERSION}/docs/a.md#b 'c')"),
    ("[a]: docs/a.md", f"[a]: {BLOB_OF_VERSION}/docs/a.md"),
    ('<a href="docs/a.md">', f'<a href="{BLOB_OF_VERSION}/docs/a.md">'),
    ('<img src="docs/a.svg">', f'<img src="{RAW_OF_VERSION}/docs/a.svg">'),
    ('<source srcset="docs/a.svg">', f'<source srcset="{RAW_OF_VERSION}/docs/a.svg">'),
    ("[a](#b) [c](https://example.org/d) <e@example.org>", "[a](#b) [c](https://example.org/d) <e@example.org>"),
    ('<a href="mailto:e@example.org">', '<a href="mailto:e@example.org">'),
)


def test_each_way_to_write_a_link_is_made_absolute(tmp_path: Path) -> None:
    for path in (ROOT / "pyproject.toml", ROOT / "LICENSE", PACKAGE / "__init__.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text("\n".join(written for written, _ in LINKS))

    build(tmp_path, tmp_path / "built", "wheel")

    with wheel_in(tmp_path / "built") as wheel:
        assert str(metadata_of(wheel).get_payload()).splitlines() == [published for _, published in LINKS]


def required(requirements: list[str], extra: str, seen: set[str]) -> Iterator[str]:
    """The names of the packages that these requirements install, each once, with those that they need themselves."""
    for text in requirements:
        it = Requirement(text)
        if it.name in seen or (it.marker is not None and not it.marker.evaluate({"extra": extra})):
            continue
        try:
            found = distribution(it.name)
        except PackageNotFoundError:
            continue  # for another platform, or by an extra of one of ours that is not installed here
        seen.add(it.name)
        yield it.name
        for wanted in it.extras or {""}:
            yield from required(found.requires or [], wanted, seen)


def install(built: Path, to: Path, extra: str) -> Path:
    """Install the wheel with what it declares, and nothing else, without a network; returns its `handoff`.

    What it declares is linked file by file from the environment of the tests, which has the locked versions.
    """
    if not to.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", to], check=True, timeout=PATIENCE_S)
    (packages,) = to.glob("lib/python3*/site-packages")
    with wheel_in(built) as wheel:
        wheel.extractall(packages)  # noqa: S202 - the wheel that this test has built
        requires = metadata_of(wheel).get_all("Requires-Dist", [])
    for name in required(requires, extra, {"handoff-observatory"}):
        for file in distribution(name).files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                link = packages / file
                link.parent.mkdir(parents=True, exist_ok=True)
                source = Path(str(file.locate())).resolve()
                for there, here in ((source, link), (source.parent / "__pycache__", link.parent / "__pycache__")):
                    if there.exists() and not here.exists():  # with its compiled modules, which would take most of the time
                        here.symlink_to(there)
    program = to / "bin" / "handoff"
    program.write_text(f"#!{to}/bin/python\nfrom handoff.__main__ import main\nmain()\n")
    program.chmod(0o755)
    return program


def test_the_wheel_runs_with_the_extra_embedded_and_names_it_where_it_is_missing(built: Path) -> None:
    with passable_folder() as folder:
        program = install(built, folder / "installed", "")
        settings = environment(data_dir=folder / "data", port=free_port())
        settings.pop("PYTHONPATH", None)
        done = subprocess.run(
            [program, "run"], env=settings, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "handoff-observatory[embedded]" in done.stderr

        program = install(built, folder / "installed", "embedded")
        run = subprocess.Popen(
            [program, "run"],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=folder,
        )
        assert run.stdout is not None
        printed = ""
        try:
            while "Ctrl-C" not in printed:
                line = run.stdout.readline()
                assert line, printed
                printed += line
        finally:
            os.killpg(run.pid, signal.SIGINT)
            printed += run.communicate(timeout=PATIENCE_S)[0]
        assert run.returncode == 0, printed
        assert str(folder / "data") in printed.splitlines()[-1]


def test_the_program_is_also_found_under_the_name_of_the_package_which_uvx_runs(built: Path) -> None:
    with wheel_in(built) as wheel:
        (name,) = (it for it in wheel.namelist() if it.endswith(".dist-info/entry_points.txt"))
        scripts = wheel.read(name).decode()
    assert "handoff = handoff.__main__:main" in scripts
    assert "handoff-observatory = handoff.__main__:main" in scripts


def test_data_are_kept_in_the_platforms_folder_for_a_user_and_for_root_where_postgres_can_reach_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HANDOFF_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir().name == "handoff"
    assert default_data_dir().is_relative_to(tmp_path)
    assert Settings().data_dir == default_data_dir()

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Settings().data_dir == Path("/var/lib/handoff")

    monkeypatch.setenv("HANDOFF_DATA_DIR", str(tmp_path / "elsewhere"))
    assert Settings().data_dir == tmp_path / "elsewhere"


# What the schema that server.json names demands of the parts that it has:
# https://github.com/modelcontextprotocol/registry/blob/main/docs/reference/server-json/server.schema.json
_INPUT = {
    "description": {"type": "string"},
    "isRequired": {"type": "boolean"},
    "isSecret": {"type": "boolean"},
    "value": {"type": "string"},
    "placeholder": {"type": "string"},
    "name": {"type": "string"},
}
_ARGUMENT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type"],
    "properties": {**_INPUT, "type": {"enum": ["positional", "named"]}},
    "if": {"properties": {"type": {"const": "named"}}},
    "then": {"required": ["name"]},
    "else": {"required": ["value"]},
}
_VARIABLE = {"type": "object", "additionalProperties": False, "required": ["name"], "properties": _INPUT}
_PACKAGE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["registryType", "identifier", "version", "transport"],
    "properties": {
        "registryType": {"enum": ["npm", "pypi", "oci", "nuget", "mcpb"]},
        "registryBaseUrl": {"type": "string", "pattern": "^https://"},
        "identifier": {"type": "string"},
        "version": {"type": "string", "minLength": 1, "not": {"const": "latest"}},
        "runtimeHint": {"type": "string"},
        "transport": {"type": "object", "required": ["type"], "properties": {"type": {"const": "stdio"}}},
        "packageArguments": {"type": "array", "items": _ARGUMENT},
        "environmentVariables": {"type": "array", "items": _VARIABLE},
    },
}
_SERVER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["$schema", "name", "description", "version"],
    "properties": {
        "$schema": {"pattern": r"^https://static\.modelcontextprotocol\.io/schemas/[-\d]+/server\.schema\.json$"},
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$", "minLength": 3, "maxLength": 200},
        "description": {"type": "string", "minLength": 1, "maxLength": 100},
        "version": {"type": "string", "maxLength": 255},
        "repository": {
            "type": "object",
            "required": ["url", "source"],
            "properties": {"url": {"type": "string"}, "source": {"type": "string"}},
        },
        "packages": {"type": "array", "items": _PACKAGE},
    },
}


def test_server_json_is_what_the_mcp_registry_takes_and_names_this_package_and_version(metadata: Message) -> None:
    server = json.loads((ROOT / "server.json").read_text())

    assert [it.message for it in Draft7Validator(_SERVER).iter_errors(server)] == []
    (package,) = server["packages"]
    assert (package["identifier"], package["version"], server["version"]) == (metadata["Name"], __version__, __version__)
    assert server["name"].startswith("io.github.handoff-observatory/")  # the namespace that GitHub's sign-in proves
    # The registry reads this line on PyPI to see that the package and the entry have the same owner.
    assert f"mcp-name: {server['name']}" in str(metadata.get_payload())
