"""What is published: the wheel and the sdist, their metadata, and a README whose links work on PyPI."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from handoff import __version__
from tests.processes import PATIENCE_S

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
