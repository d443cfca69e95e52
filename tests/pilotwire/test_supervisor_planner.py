"""The supervisor with a planner process: started with the models' folder, shown, reloaded, restarted, ended."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.pilotwire.test_supervisor import assert_none_fell, counters
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.shop import constant_model
from tests.support.waiting import wait_until

StartProxy = Callable[..., Proxy]


def planners(target: Proxy) -> list[int]:
    found = []
    for pid in target.pids()[1:]:
        try:
            if "planner.service" in psutil.Process(pid).cmdline():
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def socket_folders(pid: int) -> set[Path]:
    return {Path(str(entry.laddr)).parent for entry in psutil.Process(pid).net_connections("unix") if entry.laddr}


def ready(target: Proxy) -> bool:
    return target.metrics()["pilotwire_planner_ready"] == 1


def post(target: Proxy, path: str, token: str = "") -> tuple[int, dict[str, list[dict[str, str]]]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(target.admin_url + path, method="POST", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_models_are_listed_and_reloaded(proxy: StartProxy, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    constant_model(models)
    target = proxy(models=str(models))
    wait_until(lambda: ready(target), 20)
    metrics = target.metrics()
    assert metrics['pilotwire_model_info{model="times-e2-1.0.0"}'] == 1
    assert metrics['pilotwire_process_resident_memory_bytes{process="planner"}'] > 10_000_000
    status, text = target.http("/api/models")
    assert (status, [model["state"] for model in json.loads(text)["models"]]) == (200, ["active"])
    constant_model(models, version="1.1.0")
    (models / "broken.onnx").write_bytes(b"nonsense")
    status, found = post(target, "/api/models/reload")
    assert status == 200
    states = {(model["file"], model["version"]): model["state"] for model in found["models"]}
    assert states["times-e2.onnx", "1.1.0"] == "active"
    assert states["broken.onnx", ""] == "refused"
    target.wait_log("model_refused")
    constant_model(models, version="1.2.0")
    target.signal(signal.SIGHUP)
    wait_until(lambda: target.metrics().get('pilotwire_model_info{model="times-e2-1.2.0"}') == 1)
    metrics = target.metrics()
    # Three models took over, one after the other; the broken file was looked at again each time.
    assert metrics['pilotwire_model_swaps_total{kind="cardinality"}'] == 3
    assert metrics["pilotwire_model_load_seconds_count"] == 3
    assert metrics["pilotwire_model_check_seconds_count"] >= 4
    assert 0 < metrics["pilotwire_model_load_seconds_sum"] < 30


def test_a_killed_planner_is_started_again_and_nobody_is_refused(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(models=str(tmp_path), workers=2)
    wait_until(lambda: ready(target), 20)
    before = counters(target)
    (victim,) = planners(target)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: planners(target) not in ([], [victim]), 20)
    wait_until(lambda: ready(target), 20)
    after = counters(target)
    assert_none_fell(before, after)
    assert after["pilotwire_planner_restarts_total"] == 1
    assert target.http_status("/readyz") == 200
    target.wait_log("planner_died")


def test_it_ends_with_its_supervisor(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(models=str(tmp_path))
    wait_until(lambda: ready(target), 20)
    (pid,) = planners(target)
    folders = socket_folders(pid)
    assert len(folders) == 1
    assert target.stop() == 0
    assert not psutil.pid_exists(pid)
    assert not folders.pop().exists()


def test_a_killed_supervisor_takes_it_along(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(models=str(tmp_path), drain_timeout=0.5)
    wait_until(lambda: ready(target), 20)
    (pid,) = planners(target)
    process = psutil.Process(pid)
    folders = socket_folders(pid)
    os.kill(target.process.pid, signal.SIGKILL)
    target.process.wait()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not any(folder.exists() for folder in folders))


def test_it_is_switched_by_sighup(proxy: StartProxy, tmp_path: Path) -> None:
    target = proxy(models=str(tmp_path), mode="off")
    assert planners(target) == []
    assert target.http_status("/api/models") == 503
    assert post(target, "/api/models/reload")[0] == 503
    target.write_config(mode="shadow")
    target.signal(signal.SIGHUP)
    wait_until(lambda: ready(target), 20)
    target.write_config(mode="off")
    target.signal(signal.SIGHUP)
    wait_until(lambda: planners(target) == [])


def test_without_a_folder_of_models_there_is_none(proxy: StartProxy) -> None:
    target = proxy()
    assert planners(target) == []
    assert target.metrics()["pilotwire_planner_ready"] == 0


def test_a_missing_folder_is_one_line(postgres: Postgres, proxy: StartProxy, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not a folder: create it"):
        proxy(models=str(tmp_path / "nowhere"))


def test_it_is_replaced_when_it_is_to_log_in_otherwise(proxy: StartProxy, postgres: Postgres, tmp_path: Path) -> None:
    """Else a password that is rotated leaves it without a catalog, and a moved server with that of the old one."""
    target = proxy(models=str(tmp_path), workers=1)
    wait_until(lambda: ready(target), 20)
    (first,) = planners(target)
    target.write_config(pool_size=7)
    target.signal(signal.SIGHUP)
    target.wait_log("changed=pool_size")
    assert planners(target) == [first]
    target.write_config(upstream=postgres.dsn().replace("postgres@", "postgres:rotated@"))
    target.signal(signal.SIGHUP)
    target.wait_log("changed=upstream_password")
    wait_until(lambda: planners(target) not in ([], [first]), 20)
    wait_until(lambda: ready(target), 20)
    assert target.metrics()["pilotwire_planner_restarts_total"] == 0
    assert "planner_died" not in target.log_text()
