"""The console in a real Chromium against a running proxy under load: every screen, every action, and nothing that keeps
anybody out (axe)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from planner.memory.records import State
from planner.memory.store import open_store
from tests.clients.tools import need
from tests.support.memories import remember, switch_off
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.shop import QUERY, SCHEMA, constant_model
from tests.support.waiting import wait_until

StartProxy = Callable[..., Proxy]
SERIOUS = ("serious", "critical")
SCREENS = ("status", "queries", "models", "connections", "ledger", "settings")
MARKUP = "SELECT '<img src=x onerror=document.title=1>' FROM customers"
STATEMENTS = {
    QUERY: (State.APPROVED, 30.0, 10.0),
    MARKUP: (State.TRIAL, 5.0, 9.0),
    "SELECT count(*) FROM products": (State.REJECTED, 2.0, 2.5),
}
LIGHT: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


class Load:
    """Clients that keep the proxy busy from a thread of their own; one of them holds a transaction open."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self.ended = threading.Event()
        """The idle client was ended by the server."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    async def _run(self) -> None:
        busy = await asyncpg.connect(self._dsn, server_settings={"application_name": "busy"})
        victim = await asyncpg.connect(self._dsn, server_settings={"application_name": "victim"})
        await victim.execute("BEGIN")
        while not self._stop.is_set():
            await busy.fetchval(QUERY)
            if victim.is_closed():
                self.ended.set()
            await asyncio.sleep(0.05)
        await busy.close()
        victim.terminate()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[str]:
    name = postgres.create_database()
    postgres.sql(SCHEMA, name)
    yield name
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def target(
    module_proxy: StartProxy, postgres: Postgres, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Proxy:
    folder = tmp_path_factory.mktemp("console")
    constant_model(folder)
    remember(folder / "store.db", STATEMENTS, database)
    started = module_proxy(
        upstream=postgres.dsn(database), workers=1, models=str(folder), store=str(folder / "store.db"),
        store_literals=True, history_interval=2, admin_token="s3cret",
    )  # fmt: skip
    wait_until(lambda: "planner_connected" in started.log_text(), 30)
    return started


@pytest.fixture(scope="module")
def load(target: Proxy, database: str) -> Iterator[Load]:
    running = Load(target.dsn(database))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # A third less processor time than the whole browser needs.
    program = need("chromium-headless-shell", "chromium-headless-shell")
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, target: Proxy, **options: Any) -> Iterator[Page]:
    """A page of a person who has signed in. Errors of the page, and requests to elsewhere, fail the test."""
    context = browser.new_context(**options)
    context.set_default_timeout(15_000)
    context.add_init_script("sessionStorage.setItem('pilotwire-token', 's3cret')")
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: complaints.append(request.url) if target.admin_url not in request.url else None)
    yield page
    context.close()
    assert complaints == []


def show(page: Page, target: Proxy, screen: str) -> Locator:
    page.goto(f"{target.admin_url}/console/#/{screen}")
    content = page.locator("#content")
    expect(content.locator(".skeleton")).to_have_count(0)
    expect(content.locator(".failed")).to_have_count(0)
    return content


def serious(page: Page, *rules: str) -> list[str]:
    """What axe finds that keeps people out; ``rules``: only by these."""
    if not page.evaluate("'axe' in window"):
        package = find_spec("axe_playwright_python")
        assert package is not None
        assert package.origin is not None
        page.evaluate(Path(package.origin).with_name("axe.min.js").read_text())
    options: dict[str, Any] = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = page.evaluate("options => axe.run(options).then(found => found.violations)", options)
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in SERIOUS]


def test_every_screen_is_there_and_keeps_nobody_out(browser: Browser, target: Proxy, load: Load) -> None:
    with opened(browser, target, **LIGHT) as page:
        for screen in SCREENS:
            content = show(page, target, screen)
            expect(content.locator("h1")).to_be_visible()
            assert serious(page) == [], screen
        page.emulate_media(color_scheme="dark")
        for screen in ("status", "queries", "connections"):
            show(page, target, screen)
            assert serious(page, "color-contrast") == [], f"{screen} in the dark"


def test_status_says_whether_it_is_healthy_and_is_live(browser: Browser, target: Proxy, load: Load) -> None:
    with opened(browser, target) as page:
        content = show(page, target, "status")
        expect(page.locator("#pulse-text")).to_have_text("Healthy")
        expect(content.locator("h1")).to_have_text("Healthy")
        expect(content.get_by_role("link", name="SELECT count(*) FROM customers")).to_be_visible()
        expect(content.locator(".chip", has_text="Good").first).to_be_visible()
        figure = content.locator(".figure", has_text="Statements").locator("dd").last
        before = figure.inner_text()
        link = content.get_by_role("link", name="SELECT count(*) FROM customers")
        link.focus()
        expect(figure).not_to_have_text(before)
        # A refresh leaves the focus where it was.
        expect(link).to_be_focused()


def test_a_query_by_keyboard_with_both_plans_and_a_decision(browser: Browser, target: Proxy, load: Load) -> None:
    with opened(browser, target) as page:
        show(page, target, "status")
        page.keyboard.press("2")
        expect(page.locator("h1")).to_have_text("Queries")
        page.keyboard.press("/")
        page.keyboard.type("customers c")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page.get_by_role("img", name="3 steered and 3 plain runs")).to_be_visible()
        page.get_by_role("button", name="Run both for actual rows").click()
        plans = page.locator(".plan")
        expect(plans).to_have_count(2)
        expect(plans.first.locator(".step").first).to_contain_text("expected, 1 came")
        expect(plans.last.locator(".step.differs").first).to_be_visible()
        assert serious(page) == []
        page.get_by_role("button", name="Freeze").click()
        dialog = page.get_by_role("dialog")
        assert serious(page) == []
        dialog.get_by_label("Why (for the ledger)").fill("an audit")
        dialog.get_by_role("button", name="Freeze").click()
        expect(page.locator(".title .chip").first).to_have_text("frozen")
        expect(page.locator("section", has_text="What became of it").last).to_contain_text("an audit")
        page.get_by_role("button", name="Let go").click()
        page.keyboard.press("Escape")
        expect(page.locator(".title .chip").first).to_have_text("frozen")
        page.get_by_role("button", name="Let go").click()
        dialog.get_by_role("button", name="Let go").click()
        expect(page.locator(".title .chip").first).to_have_text("approved")


def test_a_circuit_breaker_is_closed_by_a_button(browser: Browser, target: Proxy) -> None:
    with open_store(target.settings["store"]) as store:
        switch_off(store, "cardinality-3")
    with opened(browser, target) as page:
        content = show(page, target, "status")
        panel = content.locator("section", has_text="Switched off by circuit breakers")
        expect(panel.locator("tbody tr")).to_contain_text("cardinality-3")
        assert serious(page) == []
        panel.get_by_role("button", name="Close it").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Who").fill("anna")
        dialog.get_by_label("Why (for the ledger)").fill("the file was wrong")
        dialog.get_by_role("button", name="Close it").click()
        expect(panel).to_have_count(0)
        content = show(page, target, "ledger?kind=breaker")
        expect(content.locator("tbody tr")).to_contain_text("trials: the file was wrong")


def test_what_a_client_sent_is_text_and_nothing_else(browser: Browser, target: Proxy) -> None:
    with opened(browser, target) as page:
        content = show(page, target, "queries?order=lost")
        expect(content.get_by_text("<img src=x").first).to_be_visible()
        assert content.locator("img").count() == 0
        assert page.title() == "Queries · pilotwire"


def test_a_client_is_ended_after_a_question(browser: Browser, target: Proxy, load: Load) -> None:
    with opened(browser, target) as page:
        content = show(page, target, "connections")
        row = content.locator("tr", has_text="victim")
        expect(row).to_contain_text("in transaction")
        row.get_by_role("button").click()
        page.get_by_role("button", name="End it").click()
        expect(content.locator("tr", has_text="victim")).to_have_count(0)
    assert load.ended.wait(5)


def test_mode_and_settings_are_switched_and_read_again(browser: Browser, target: Proxy) -> None:
    with opened(browser, target) as page:
        content = show(page, target, "settings")
        page.get_by_label("Search").fill("mode")
        row = content.locator('tr[data-setting="mode"]')
        expect(row).to_contain_text("on")
        expect(content.locator('tr[data-setting="workers"]')).to_be_hidden()
        page.get_by_role("button", name="Mode: on").click()
        page.get_by_role("radio", name="shadow").check()
        page.get_by_role("button", name="Switch").click()
        expect(page.get_by_role("button", name="Mode: shadow")).to_be_visible()
        expect(row).to_contain_text("not the default")
        page.get_by_role("button", name="Read the settings again").click()
        page.get_by_role("button", name="Read them").click()
        expect(page.locator(".toast")).to_contain_text("Nothing has changed")
        page.get_by_role("button", name="Mode: shadow").click()
        page.locator("input[value=on]").check()
        page.get_by_role("button", name="Switch").click()
        expect(row.locator(".chip")).to_have_count(0)


def test_models_tell_how_they_were_trained(browser: Browser, target: Proxy) -> None:
    with opened(browser, target) as page:
        content = show(page, target, "models")
        expect(content.get_by_text("serves").first).to_be_visible()
        content.get_by_text("Report", exact=True).click()
        expect(content.locator(".facts")).to_contain_text("sub-plans")
        expect(content.get_by_role("img", name="95th percentile of cardinality-3")).to_be_visible()


def test_on_a_phone_nothing_hangs_over_the_edge(browser: Browser, target: Proxy) -> None:
    with opened(browser, target, **PHONE) as page:
        for screen in SCREENS:
            show(page, target, screen)
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, screen


def test_the_token_is_asked_for_and_kept_only_when_wanted(browser: Browser, target: Proxy) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{target.admin_url}/")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Token", exact=True).fill("guess")
    dialog.get_by_role("button", name="Sign in").click()
    expect(dialog.get_by_role("alert")).to_have_text("That is not the token.")
    dialog.get_by_label("Token", exact=True).fill("s3cret")
    dialog.get_by_role("button", name="Sign in").click()
    expect(page.locator("#content h1")).to_have_text("Healthy")
    assert page.evaluate("JSON.stringify([sessionStorage, localStorage, document.cookie])").count("s3cret") == 0
    page.reload()
    dialog.get_by_label("Token", exact=True).fill("s3cret")
    dialog.get_by_label("Keep it").check()
    dialog.get_by_role("button", name="Sign in").click()
    expect(page.locator("#content h1")).to_have_text("Healthy")
    page.reload()
    expect(page.locator("#content h1")).to_have_text("Healthy")
    context.close()


def test_an_instance_that_goes_away_is_shown_and_found_again(browser: Browser, target: Proxy) -> None:
    context = browser.new_context()
    context.add_init_script("sessionStorage.setItem('pilotwire-token', 's3cret')")
    page = context.new_page()
    show(page, target, "ledger")
    page.route("**/api/**", lambda route: route.abort())
    page.keyboard.press("r")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(page.locator("#pulse-text")).to_have_text("No answer")
    page.unroute("**/api/**")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#content table")).to_be_visible()
    page.route("**/api/ledger*", lambda route: route.fulfill(json={"entries": [], "next": None}))
    page.keyboard.press("r")
    expect(page.get_by_text("No lines")).to_be_visible()
    context.close()
