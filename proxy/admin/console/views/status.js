// Is it healthy, is it helping?

import { breakersPanel } from "../breakers.js";
import { call } from "../api.js";
import { spark } from "../charts.js";
import { brief, chip, count, counted, duration, empty, h, link, moment, ms, panel, state, table } from "../dom.js";

export const title = "Status";
export const every = 2;

let before = null;
let rates = null;

export async function load(_, signal) {
  const [status, history, saved, lost] = await Promise.all([
    call("/api/status", { signal }),
    call("/api/metrics/history/?hours=6", { signal }),
    optional(call("/api/memory?order=saved&limit=5", { signal })),
    optional(call("/api/memory?order=lost&limit=5", { signal })),
  ]);
  return { status, history, saved, lost };
}

const optional = (asked) => asked.catch((error) => (error.name === "AbortError" || error.status === 401 ? Promise.reject(error) : null));

export function render({ status, history, saved, lost }, where, refresh) {
  measure(status);
  const won = (saved?.queries ?? []).filter((row) => row.saved_ms > 0);
  const gone = (lost?.queries ?? []).filter((row) => row.saved_ms < 0);
  return [
    verdict(status),
    breakersPanel(status.breakers, refresh),
    figures(status),
    modelsPanel(status, history),
    h(
      "div",
      { class: "grid" },
      top("Most time saved", won, "Nothing has been saved yet", status.evidence === "none" ? "Advice is used at once here (evidence = none): nothing is compared." : "Queries appear here once steered runs have been measured against plain ones."),
      top("Most time lost", gone, "No query lost time", "What loses is withdrawn by itself; until then it would be listed here."),
    ),
    reasonsPanel(status),
  ];
}

function verdict(status) {
  const kind = { healthy: "good", degraded: "warning", unhealthy: "danger" }[status.health];
  const words = { healthy: "Healthy", degraded: "It serves, but not as it should", unhealthy: "Clients are affected" };
  const { workers, planner } = status;
  const facts = [
    `up ${duration(status.uptime_s)}`,
    `${workers.responding} of ${workers.configured} worker${workers.configured === 1 ? "" : "s"}`,
    planner.wanted ? (planner.ready ? "planner ready" : "planner away") : "no planner",
  ];
  if (workers.restarts) facts.push(counted(workers.restarts, "worker restart"));
  return h(
    "section",
    { class: `panel verdict is-${kind}`, "aria-label": "Health" },
    h(
      "div",
      {},
      h("h1", {}, words[status.health]),
      h("p", { class: "soft" }, facts.join(" · ")),
      status.trouble.length > 0 && h("ul", {}, status.trouble.map((one) => h("li", {}, one.text))),
    ),
  );
}

function figures(status) {
  const { gain, traffic } = status;
  const decided = traffic.steered + status.reasons.reduce((sum, one) => sum + one.count, 0);
  const saved = gain?.known ? gain.saved_s - gain.lost_s : null;
  return h(
    "dl",
    { class: "panel figures" },
    figure("Time saved today", saved === null ? "–" : duration(saved), saved === null ? (status.evidence === "none" ? "nothing is compared (evidence = none)" : "nothing measured yet") : `${duration(gain.saved_s)} won, ${duration(gain.lost_s)} lost, trials included`, `large ${saved > 0 ? "is-good" : saved < 0 ? "is-danger" : ""}`),
    figure("Regressions today", gain ? count(gain.regressions) : "–", "withdrawn because they lost", `large ${gain?.regressions ? "is-danger" : ""}`),
    figure("Steered", count(traffic.steered), decided ? `${((100 * traffic.steered) / decided).toFixed(1)} % of ${count(decided)} that join tables` : "no statement that joins tables yet"),
    figure("Statements", rates ? [rates.statements.toFixed(rates.statements < 10 ? 1 : 0), h("small", {}, " /s")] : "–", `${count(traffic.statements)} since the start`),
    figure("Clients", count(traffic.clients), traffic.waiting ? `${count(traffic.waiting)} wait for a connection` : "none waits", traffic.waiting ? "is-danger" : ""),
    figure("Server connections", count(traffic.servers), counted(traffic.transactions, "transaction")),
  );
}

function figure(name, value, hint, kind = "") {
  return h("div", { class: `figure ${kind}` }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "hint" }, hint));
}

function measure(status) {
  const at = Date.parse(status.at) / 1000;
  const now = { up: status.uptime_s, at, statements: status.traffic.statements };
  // By the uptime, which has fractions; after a restart there is nothing to compare with.
  if (before && now.up > before.up + 0.5) {
    const seconds = now.up - before.up;
    rates = { statements: Math.max(0, now.statements - before.statements) / seconds };
    before = now;
  } else if (!before || now.up < before.up) {
    before = now;
    rates = null;
  }
}

const GRADES = { good: "Good", warning: "Warning", danger: "Danger" };

export function modelsPanel(status, history) {
  const rows = status.models.filter((row) => row.metric !== "inference_latency");
  const inference = new Map(status.models.filter((row) => row.metric === "inference_latency").map((row) => [row.model, row]));
  const series = new Map(history.data.map((one) => [one.model, one.data_points.map((point) => [Date.parse(point.timestamp), point.p95_latency_ms])]));
  const limits = `good below ${ms(status.latency_good_ms)}, warning below ${ms(status.latency_warning_ms)} (95th percentile)`;
  if (!rows.length) {
    return panel("Models", empty("No statement has been steered or measured yet", `When one is, its latency stands here: ${limits}.`));
  }
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Models"),
    table("Models and their latencies", [
      { head: "Model", cell: (row) => h("div", { class: "named" }, row.model === "none" ? h("span", { class: "soft" }, "none: left alone") : row.model, row.grade ? chip(GRADES[row.grade], row.grade) : chip("for comparison")) },
      { head: "P50", num: true, wide: true, cell: (row) => ms(row.p50_ms) },
      { head: "P95", num: true, cell: (row) => h("b", {}, ms(row.p95_ms)) },
      { head: "P99", num: true, cell: (row) => ms(row.p99_ms) },
      { head: "Statements", num: true, wide: true, cell: (row) => count(row.count) },
      { head: "Inference P95", num: true, wide: true, cell: (row) => ms(inference.get(row.model)?.p95_ms) },
      { head: "Last 6 hours", wide: true, cell: (row) => (row.model === "none" ? "" : spark(series.get(row.model) ?? [], `P95 of ${row.model}`)) },
      { head: "At", num: true, wide: true, cell: (row) => moment(row.at) },
    ], rows),
    h("p", { class: "legend" }, `What clients waited for, of the ${duration(status.interval_s)} before the time under At: ${limits}.`),
  );
}

function top(name, rows, nothing, why) {
  if (!rows.length) return panel(name, empty(nothing, why));
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, name),
    table(name, [
      { head: "Query", cell: (row) => link(`#/queries/${row.key}`, h("span", { class: "statement mono" }, brief(row.text) || row.fingerprint)) },
      { head: "State", wide: true, cell: (row) => state(row.state) },
      { head: "Time", num: true, cell: (row) => h("span", { class: row.saved_ms > 0 ? "gain" : "loss" }, ms(Math.abs(row.saved_ms))) },
    ], rows),
  );
}

function reasonsPanel(status) {
  if (!status.reasons.length) return null;
  const most = status.reasons[0].count || 1;
  return panel(
    "Why statements that join tables were left alone",
    h(
      "div",
      { class: "bars" },
      status.reasons.slice(0, 12).map((one) => [
        h("span", {}, one.reason.replaceAll("_", " ")),
        h("meter", { min: 0, max: most, value: one.count, "aria-label": `${one.reason}: ${one.count}` }),
        h("span", { class: "num" }, count(one.count)),
      ]),
    ),
  );
}
