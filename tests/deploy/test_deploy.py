"""What is shipped for operating it: valid by the tools of those who read it, and true to the program."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pilotwire.config import Settings
from proxy.declared_metrics import declared

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "pilotwire.json"
METRIC = re.compile(r"\bpilotwire_[a-z0-9_]+")
PATCHES = {"pilotwire.yaml"}
"""Parts of objects, complete only when kustomize has put them together."""
FOREIGN = {"Kustomization", "ServiceMonitor"}
"""Kinds that are not the API's own."""


def metric_names() -> set[str]:
    """Every series that /metrics may have."""
    return {name for metric in declared() for name in metric.series}


def expressions() -> Iterator[tuple[str, str]]:
    """Where a Prometheus expression stands, and what it says."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert", rule.get("record")), rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    known = metric_names()
    assert [(where, name) for where, text in expressions() for name in METRIC.findall(text) if name not in known] == []


def test_every_alert_has_its_page() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    headings = {line.removeprefix("### ").strip().lower() for line in page.splitlines() if line.startswith("### ")}
    alerts = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert len(alerts) > 10
    for alert in alerts:
        assert alert["annotations"]["runbook"] == f"docs/operating.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in headings
        assert alert["labels"]["severity"] in {"critical", "warning"}


def test_promtool() -> None:
    run(need("promtool"), "check", "rules", str(RULES))


def test_dashboard() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or all(panel["description"] and target["expr"] for target in panel["targets"])


def test_kubernetes() -> None:
    import kubernetes_validate

    seen = set()
    for file in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        for found in yaml.safe_load_all(file.read_text()):
            seen.add(found["kind"])
            if found["kind"] not in FOREIGN and file.name not in PATCHES:
                kubernetes_validate.validate(found, "1.33", strict=True)
    assert seen >= {"Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Service", "ConfigMap", "Secret"}
    assert seen >= {"NetworkPolicy", "ServiceMonitor"}


@pytest.mark.parametrize("folder", ["base", "sidecar"])
def test_kustomizations_name_their_files(folder: str) -> None:
    here = DEPLOY / "kubernetes" / folder
    found = yaml.safe_load((here / "kustomization.yaml").read_text())
    named = {*found["resources"], *(patch["path"] for patch in found.get("patches", []))}
    assert named == {file.name for file in here.glob("*.yaml")} - {"kustomization.yaml"}


def variables(value: Any) -> Iterator[str]:
    """Names of settings in environment variables, anywhere in a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from variables(key)
            yield from variables(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from variables(inner)
    elif isinstance(value, str):
        yield from re.findall(r"\bPILOTWIRE_([A-Z_]+)\b", value)


def test_settings_exist() -> None:
    """A variable that pilotwire does not know would be passed over with a warning only."""
    known = {name.upper() for name in Settings.model_fields} | {"CONFIG", "STATE_DIR", "COMPILE"}
    texts: list[Any] = [(ROOT / "Dockerfile").read_text(), *(file.read_text() for file in DEPLOY.rglob("pilotwire@*"))]
    for file in (*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")):
        texts += yaml.safe_load_all(file.read_text())
    found = set(variables(texts))
    assert len(found) > 10
    assert found <= known


def test_the_installation_that_is_documented(tmp_path: Path) -> None:
    """The page's commands in a folder that stands for the machine's root, and nothing that they do not say. Of the
    release that is installed only `check` is the program; systemd has nothing to start."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    commands = page.partition("## systemd")[2].partition("```\n")[2].partition("```")[0]
    assert "upstream.pgpass" in commands
    for folder in ("/etc/systemd/system", "/opt", "/bin"):
        (tmp_path / folder[1:]).mkdir(parents=True)
    settings = tmp_path / "pilotwire.toml"
    shipped = (DEPLOY / "systemd" / "pilotwire.toml").read_text()
    settings.write_text(shipped.replace("/var/lib/", f"{tmp_path}/var/lib/"))
    commands = commands.replace(" deploy/systemd/pilotwire.toml", f" {settings}")
    commands = re.sub(r" (/etc/|/var/lib/)", rf" {tmp_path}\1", commands)
    stand_ins = {
        "systemctl": "exit 0",
        "python-shim": f"""mkdir -p "$3/bin"
ln -s /bin/true "$3/bin/pip"
printf '%s\\n' '#!/bin/bash' '[ $1 != check ] || exec {sys.executable} -m pilotwire "$@"' >"$3/bin/pilotwire"
chmod +x "$3/bin/pilotwire\"""",
    }
    for name, text in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PILOTWIRE_", "PG"))}
    environment |= {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "bin" / "python-shim"),
        "PILOTWIRE_ROOT": str(tmp_path / "opt"),
        "PILOTWIRE_CONFIG": str(tmp_path / "etc" / "pilotwire" / "pilotwire.toml"),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.1.0 serves" in done.stdout


def test_systemd_unit(tmp_path: Path) -> None:
    """The unit as systemd reads it; that its program is not installed here is all it may complain about."""
    unit = tmp_path / "pilotwire@test.service"
    unit.write_text((DEPLOY / "systemd" / "pilotwire@.service").read_text())
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or unit.name in line]
    assert [line for line in complaints if "is not executable" not in line] == []


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/postgres/Dockerfile"])
def test_dockerfiles(file: str) -> None:
    run(tool("hadolint"), str(ROOT / file))


def test_deploy_script() -> None:
    run(tool("shellcheck"), str(DEPLOY / "deploy.sh"))
    done = subprocess.run([DEPLOY / "deploy.sh"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "usage: deploy.sh" in done.stderr


def test_the_image_gets_every_package() -> None:
    """What the Dockerfile copies, and what .dockerignore lets through, is what the distribution is made of."""
    copied = set(re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {"pilotwire", "proxy", "planner", "model_runtime", "training"}
    assert copied == packages
    assert let_through == packages | {"pyproject.toml", "setup.py", "README.md", "deploy/constraints.txt"}


def test_the_image_is_pinned_to_versions_that_the_package_allows() -> None:
    """Down to what its dependencies need: each distribution that is installed here for it is named."""
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for name in closure("pilotwire", frozenset({"train", "otel"})):
        assert name in pinned, f"{name} is not in deploy/constraints.txt"
    for text in metadata.requires("pilotwire") or []:
        wanted = Requirement(text)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("train", "otel")):
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]] | None = None) -> set[str]:
    """The canonical names of all that a distribution needs here, itself left out."""
    seen = set() if seen is None else seen
    found = set()
    for text in metadata.requires(name) or []:
        wanted = Requirement(text)
        marker, more = wanted.marker, frozenset(wanted.extras)
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        found.add(str(canonicalize_name(wanted.name)))
        if (wanted.name, more) not in seen:
            seen.add((wanted.name, more))
            found |= closure(wanted.name, more, seen)
    return found


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is missing")
        pytest.skip(f"{program} is missing")
    return found


def tool(name: str) -> str:
    """A program that a Python package brings."""
    return str(Path(sys.executable).parent / name)


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
