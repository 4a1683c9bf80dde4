"""The sandbox's pages in a real Chromium, and by plain HTTP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from llm_metering.sandbox import Sandbox, running_sandbox

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
)
PATIENCE_S = 30
"""How long a page may take on a machine that others share. Nothing waits longer than it must."""


@pytest.fixture(scope="session")
def _running() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(_running: Sandbox) -> Sandbox:
    _running.reset()
    return _running


@pytest.fixture
def http(sandbox: Sandbox) -> Iterator[httpx.Client]:
    """As a browser on the sandbox's own pages would send."""
    with httpx.Client(base_url=sandbox.url, headers={"Origin": sandbox.url}) as client:
        yield client


@pytest.fixture(scope="session")
def _chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        told = "needs chromium and chromedriver: make system"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield chromium
    finally:
        chromium.quit()


@dataclass
class Person:
    """Somebody who looks at the pages and clicks."""

    chromium: Any
    url: str

    def open(self, path: str = "/") -> None:
        self.chromium.get(self.url + path)

    def click(self, text: str) -> None:
        """Click a link or a button by what it says."""
        said = f"[self::a or self::button or self::summary][normalize-space()='{text}']"
        self._follow(self._find("xpath", f"//main//*{said}", displayed=True))

    def go(self, section: str) -> None:
        """Choose a page in the navigation."""
        self._follow(self._find("link text", section))

    def fill(self, **fields: str) -> None:
        """Type into fields, and choose in lists, by their names."""
        from selenium.webdriver.support.ui import Select

        for name, text in fields.items():
            field = self._find("name", name)
            if field.tag_name == "select":
                Select(field).select_by_visible_text(text)
            else:
                field.clear()
                field.send_keys(text)

    def choose(self, name: str, value: str) -> None:
        """Check a box or a radio button."""
        self._find("css selector", f"[name={name}][value='{value}']").click()

    def tick(self, text: str) -> None:
        """Check the box whose label begins so."""
        self._find("xpath", f"//label[starts-with(normalize-space(), '{text}')]").click()

    def sees(self, selector: str = "main") -> str:
        seen: list[str] = []

        def read() -> bool:
            seen[:] = [self.chromium.find_element("css selector", selector).text]
            return True

        self.wait_for(read)
        return seen[0]

    def wait_for(self, true: Callable[[], Any]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        # What is looked at may be replaced meanwhile; then it is looked for again.
        replaced = [StaleElementReferenceException]
        waiting = WebDriverWait(self.chromium, PATIENCE_S, poll_frequency=0.02, ignored_exceptions=replaced)
        waiting.until(lambda _: true())

    def complaints(self) -> list[str]:
        """The errors that the browser has logged since it was last asked, of scripts and of the policy."""
        log = self.chromium.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def _find(self, by: str, what: str, *, displayed: bool = False) -> Any:
        """The first such element, as soon as there is one."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = self.chromium.find_elements(by, what)
            found[:] = [one for one in found if not displayed or one.is_displayed()]
            return bool(found)

        self.wait_for(there)
        return found[0]

    def _follow(self, element: Any) -> None:
        leads_on = element.tag_name != "summary" and element.get_attribute("type") != "button"
        page = self.chromium.find_element("tag name", "html")
        element.click()
        if leads_on:
            from selenium.webdriver.support.expected_conditions import staleness_of

            self.wait_for(lambda: staleness_of(page)(self.chromium))


@pytest.fixture
def person(_chromium: Any, sandbox: Sandbox) -> Iterator[Person]:
    one = Person(_chromium, sandbox.url)
    one.complaints()
    yield one
    _chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert one.complaints() == []
