"""A real browser for tests: Chromium without a window, told what to do over its own protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection


class Page:
    """One page, with no memory of others, and all that its console has said."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        context = self.call("Target.createBrowserContext")["browserContextId"]
        created = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        target = created["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        self._connection.send(json.dumps(command))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self._events.append(message)

    def _receive(self) -> dict[str, Any]:
        return dict(json.loads(self._connection.recv(timeout=60)))

    def open(self, path: Path) -> None:
        """Load a file, and wait until it is there."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())
        self.settle()

    def settle(self) -> None:
        """Wait until what follows from a change has been laid out and drawn."""
        self.read("""new Promise((done) => {
            const frame = () => requestAnimationFrame(() => {
                if (typeof waiting === "undefined" || !waiting.size) done();
                else frame();
            });
            requestAnimationFrame(frame);
        })""")

    def read(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard, wherever the focus is."""
        text = {"Enter": "\r", "Space": " "}.get(key)
        named: dict[str, Any] = {"key": " " if key == "Space" else key, "code": key}
        codes = {"Enter": 13, "Space": 32, "Tab": 9, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        named |= {"windowsVirtualKeyCode": codes[key]}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)
        self.settle()

    def click(self, selector: str) -> None:
        """The left button, in the middle of an element."""
        script = f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            node.scrollIntoView({{block: "center", inline: "center"}});
            const box = node.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        x, y = self.read(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The left button, held from one place to another."""
        steps = [("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)]
        for kind, (x, y) in steps:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )
        self.settle()

    def show(self, width: int, height: int, scheme: str) -> None:
        """As a screen of this size shows it, in "light" or "dark"."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.settle()

    def screenshot(self, path: Path) -> None:
        """The whole page, as an image."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, exceptions, and whatever was asked of a network."""
        self.read("0")  # what was under way is here now
        own = [event for event in self._events if event.get("sessionId") == self._session]
        events = [(event["method"], event.get("params", {})) for event in own]
        return [
            (method, params)
            for method, params in events
            if method == "Runtime.exceptionThrown"
            or method == "Log.entryAdded"
            or (method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"))
            or (
                method == "Network.requestWillBeSent"
                and not params["request"]["url"].startswith(("file:", "data:"))
            )
        ]


@contextmanager
def browser(profile: Path) -> Iterator[Connection]:
    """Chromium with a fresh profile; skips the test where it is not installed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [program, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        with connect(_address(process), max_size=None) as connection:
            yield connection
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _address(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"DevTools listening on "):
            return line.split()[-1].decode()
    raise AssertionError(f"chromium has ended with {process.wait()} before it listened")
