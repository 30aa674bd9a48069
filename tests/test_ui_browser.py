"""The pages at /ui in Chromium, driven over its DevTools protocol: keyboard alone, narrow screen, dark, hostile content.

It needs a Chromium or Chrome on the PATH, and is skipped without one.
"""

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp import Client

from tests.agents import Agent
from tests.processes import PATIENCE_S, Service

pytestmark = [pytest.mark.external]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "</pre><script>owned=1</script><img src=http://evil.example/x onerror=owned=2><style>*{display:none}</style>"
KEYS = {"Tab": {"windowsVirtualKeyCode": 9}, "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"}}
# The contrast of the page's text with its background, as WCAG has it, and the background's luminance.
CONTRAST = """(() => {
  const light = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const style = getComputedStyle(document.body);
  const [text, back] = [style.color, style.backgroundColor].map(light);
  return [(Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05), back];
})()"""


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a Chromium's DevTools."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on the PATH (Debian: apt-get install chromium)")
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [program, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r"listening on ws://([\d.:]+)/", line) for line in process.stderr)), None)
            assert found is not None, "Chromium ended"
            yield f"http://{found[1]}"
        finally:
            process.kill()


class Page:
    """A page in the browser, and what it asked for and did meanwhile."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.requested: list[str] = []
        self.dialogs: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if (answer := self._answers.pop(said.get("id", 0), None)) is not None:
                answer.set_result(said)
            match said.get("method"):
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Page.javascriptDialogOpening":
                    self.dialogs.append(said["params"]["message"])
                case "Network.requestWillBeSent":
                    self.requested.append(said["params"]["request"]["url"])
                case _:
                    pass

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE_S):
            said = await answer
        assert "error" not in said, (method, said)
        return said["result"]

    async def evaluate(self, expression: str) -> Any:
        return (await self.do("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.do("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loaded.wait()

    async def press(self, key: str) -> None:
        self._loaded.clear()
        for kind in ("keyDown", "keyUp"):
            await self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, **KEYS[key])

    async def tab_to(self, condition: str) -> None:
        """Press Tab until the focused element `it` meets the condition; every stop on the way can be seen."""
        for _ in range(60):
            await self.press("Tab")
            seen = "(it => it === document.body || getComputedStyle(it).outlineStyle !== 'none')(document.activeElement)"
            assert await self.evaluate(seen), "the focus can't be seen"
            if await self.evaluate(f"(it => {condition})(document.activeElement)"):
                return
        raise AssertionError(f"Tab never leads to {condition}")


@asynccontextmanager
async def opened(devtools: str) -> AsyncGenerator[Page]:
    async with aiohttp.ClientSession() as http:
        async with http.put(f"{devtools}/json/new?about:blank") as answer:
            about = await answer.json()
        async with http.ws_connect(about["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            for domain in ("Page", "Network"):
                await page.do(f"{domain}.enable")
            await page.do("Emulation.setFocusEmulationEnabled", enabled=True)
            yield page
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def test_a_keyboard_is_enough_to_cancel_an_offer(devtools: str, service: Service) -> None:
    base = service.url.removesuffix("/mcp")
    async with Client(service.url) as client, opened(devtools) as page:
        agent = Agent(client)
        number = await agent.offer(await agent.session())
        await page.open(f"{base}/ui/inbox")
        await page.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await page.tab_to(f"it.getAttribute('href') === '/ui/handoffs/{number}'")
        await page.press("Enter")
        await page.loaded()
        await page.tab_to("it.value === 'cancel'")
        await page.press("Enter")
        await page.loaded()
        assert "cancelled" in await page.evaluate("document.querySelector('.state').textContent")
        assert (await agent.read(f"handoff://handoffs/{number}"))["state"] == "cancelled"


async def test_pages_fit_a_narrow_screen_are_dark_on_request_and_run_and_load_nothing_that_agents_wrote(
    devtools: str, service: Service, tmp_path: Path
) -> None:
    base = service.url.removesuffix("/mcp")
    async with Client(service.url) as client, opened(devtools) as page:
        agent = Agent(client)
        key = await agent.session(metadata={"of": HOSTILE})
        entry = {"type": "decision", "content": f"{HOSTILE} {'long' * 200}", "metadata": {"pinned": True}}
        await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])
        number = await agent.offer(key, instructions=HOSTILE)
        await agent.accept(number)
        await page.do("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
        paths = ["inbox?state=held", "sessions", f"sessions/{key}", f"sessions/{key}/brief", f"handoffs/{number}"]
        for path in [*paths, f"handoffs/{number}/brief", "health"]:
            for scheme in ("dark", "light"):
                await page.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                await page.open(f"{base}/ui/{path}")
                assert await page.evaluate("typeof owned") == "undefined", path
                assert await page.evaluate("document.documentElement.scrollWidth") <= 360, path
                contrast, luminance = await page.evaluate(CONTRAST)
                assert contrast >= 4.5, (path, scheme)
                assert (luminance < 0.1) is (scheme == "dark"), (path, scheme)
            assert await page.evaluate("document.querySelector('main').checkVisibility()"), path
        assert page.dialogs == []
        assert {url for url in page.requested if not url.startswith(f"{base}/ui")} <= {f"{base}/favicon.ico"}
