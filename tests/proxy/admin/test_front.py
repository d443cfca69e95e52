"""What is answered before the application is loaded, and what loads it."""

from __future__ import annotations

from typing import cast

import httpx
import pytest

from proxy.admin.front import Front
from proxy.admin.source import AdminSource
from tests.proxy.admin.instance import Instance, client

LOCAL = "http://127.0.0.1:9432"


def front(instance: Instance, token: str = "", base_url: str = LOCAL) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Front(cast(AdminSource, instance), token))
    return httpx.AsyncClient(transport=transport, base_url=base_url)


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/healthz", {}),
        ("/readyz", {}),
        ("/metrics", {}),
        ("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"}),
    ],
)
async def test_its_answers_are_the_applications(path: str, headers: dict[str, str], reachable: bool) -> None:
    instance = Instance()
    instance.reachable = reachable
    instance.responding = int(reachable)
    async with front(instance) as http, client(instance, base_url=LOCAL) as application:
        here, there = await http.get(path, headers=headers), await application.get(path, headers=headers)
    assert (here.status_code, here.text) == (there.status_code, there.text)
    assert dict(here.headers) == dict(there.headers)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [("Bearer s3cret", 200), ("bearer s3cret", 200), ("Bearer s3cre", 401), ("s3cret", 401)],
)
async def test_a_scrape_wants_the_token(authorization: str, status: int) -> None:
    async with front(Instance(), "s3cret", "http://proxy.example:9432") as http:
        assert (await http.get("/metrics", headers={"Authorization": authorization})).status_code == status
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/readyz")).status_code in (200, 503)


async def test_everything_else_is_the_applications() -> None:
    async with front(Instance()) as http:
        assert (await http.get("/console/")).status_code == 200
        assert (await http.get("/api/status")).status_code == 200
        assert (await http.get("/api/nothing")).status_code == 404
        assert (await http.head("/healthz")).status_code == 405
        assert (await http.get("/metrics", headers={"Host": "evil.example"})).status_code == 403
