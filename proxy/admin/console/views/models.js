// Model files: which serves, how good it was in training, how fast it is; swap and roll back.

import { breakersPanel } from "../breakers.js";
import { call, post } from "../api.js";
import { lines, wide } from "../charts.js";
import { ask, tell } from "../dialogs.js";
import { chip, count, empty, factor, h, panel, table } from "../dom.js";
import { modelsPanel } from "./status.js";

export const title = "Models";
export const every = 5;
const KINDS = { active: "good", valid: "", kept: "", refused: "danger" };
let details = new Map();

export async function load(where, signal) {
  const [status, history, found] = await Promise.all([
    call("/api/status", { signal }),
    call("/api/metrics/history/?hours=24", { signal }),
    call("/api/models", { signal }).catch((error) => (error.status === 503 ? { models: [], off: error.message } : Promise.reject(error))),
  ]);
  return { status: { ...status, at: "", uptime_s: 0, traffic: null, reasons: [] }, history: { data: history.data }, found };
}

export function render({ status, history, found }, where, refresh) {
  return [
    h("div", { class: "title" }, h("h1", {}, "Models"), h(
      "div",
      { class: "end actions" },
      h("button", { type: "button", "data-key": "reload", onclick: async (event) => {
        event.target.disabled = true;
        try {
          await post("/api/models/reload");
          tell("The folder has been read again.");
        } catch (error) {
          tell(error.message);
        }
        refresh();
      } }, "Read the folder again"),
      h("button", { type: "button", "data-key": "rollback", onclick: () => choose("rollback", "", "Roll back", "The model that served before serves again, until a newer file comes.", refresh) }, "Roll back"),
      h("button", { type: "button", "data-key": "release", onclick: () => choose("release", "", "Newest again", "A pin or a rollback ends: what came last serves.", refresh) }, "Newest again"),
    )),
    found.off && h("p", { class: "note" }, `${found.off[0].toUpperCase()}${found.off.slice(1)}.`),
    breakersPanel(status.breakers, refresh),
    files(found.models, refresh),
    modelsPanel(status, history),
    accuracy(status.accuracy),
    h("div", { class: "grid" }, history.data.map((one) => panel(
      `P95 of ${one.model}, last 24 hours`,
      lines(one.data_points.map((point) => [new Date(point.timestamp), point.p95_latency_ms]), { label: `95th percentile of ${one.model} over 24 hours`, limits: [status.latency_good_ms, status.latency_warning_ms], width: Math.min([wide(), 560][history.data.length - 1] ?? 400, wide()) }),
      h("p", { class: "legend" }, "Broken lines: the limits of good and of warning."),
    ))),
  ];
}

function accuracy(rows) {
  if (!rows.length) return null;
  const words = { statements: "Whole statements: the rows that clients got", joins: "Joins inside statements, run again as samples" };
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Accuracy of row counts"),
    table("Accuracy of row counts", [
      { head: "Predicted rows of", cell: (row) => words[row.what] },
      { head: "Model off by", num: true, cell: (row) => h("b", { class: row.model <= row.server ? "gain" : "loss" }, factor(row.model)) },
      { head: "Server off by", num: true, cell: (row) => factor(row.server) },
      { head: "Compared", num: true, wide: true, cell: (row) => count(row.count) },
    ], rows),
    h("p", { class: "legend" }, "Medians since the start; 1× is exact. Samples are run where accuracy_samples allows it."),
  );
}

function files(models, refresh) {
  if (!models.length) return panel("Files", empty("No model file", "Drop one into the folder of models: it is checked, and takes over by itself. `pilotwire train` makes one."));
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Files"),
    table("Model files", [
      { head: "Model", cell: (row) => [h("b", {}, row.name ? `${row.name} ${row.version}` : row.file), h("div", { class: "small soft" }, row.file, row.kind && ` · ${row.kind}`)] },
      { head: "State", cell: (row) => [chip(row.state === "active" ? "serves" : row.state, KINDS[row.state]), row.detail && h("div", { class: "small" }, row.detail)] },
      { head: "Training", cell: (row) => training(row) },
      { head: "Choice", cell: (row) => ["valid", "kept"].includes(row.state) && h("button", { type: "button", "data-key": `use-${row.file}-${row.version}`, onclick: () => choose("activate", `${row.name}@${row.version}`, `Use ${row.name} ${row.version}`, "It is pinned: it serves whatever comes, until the newest is asked for again.", refresh) }, "Use") },
    ], models),
  );
}

function training(row) {
  if (row.state === "refused" || row.state === "kept") return "–";
  const id = `${row.file}@${row.version}`;
  const body = h("div", {}, details.has(id) ? report(details.get(id)) : h("p", { class: "soft" }, "Reading the file …"));
  const own = h("details", { "data-key": `training-${id}` }, h("summary", {}, "Report"), body);
  own.addEventListener("toggle", async () => {
    if (!own.open || details.has(id)) return;
    try {
      details.set(id, await call(`/api/models/${encodeURIComponent(row.file)}`));
      body.replaceChildren(report(details.get(id)));
    } catch (error) {
      body.replaceChildren(h("p", { class: "note" }, error.message));
    }
  });
  return own;
}

function report(found) {
  const { manifest } = found;
  if (!manifest) return h("p", {}, found.reason || "The file says nothing about itself.");
  const { training } = manifest;
  const rows = [
    ["Trained", new Date(manifest.trained_at).toLocaleString()],
    ["On", `${count(training.queries)} queries, ${count(training.sub_plans)} sub-plans`],
    ["Features", `${manifest.featurizer.name} ${manifest.featurizer.version}`],
  ];
  for (const [split, summary] of Object.entries(training.splits)) {
    const errors = Object.entries(summary.q_error).map(([name, pair]) => `${name} ${short(pair.before)} → ${short(pair.after)}`);
    if (summary.workload_seconds) errors.push(`workload ${short(summary.workload_seconds.before)} s → ${short(summary.workload_seconds.after)} s`);
    rows.push([`Q-error, ${split}`, errors.join(", ") || "–"]);
  }
  for (const [name, settings] of Object.entries(manifest.arms ?? {})) rows.push([`Arm ${name}`, Object.entries(settings).map(([key, value]) => `${key} = ${value}`).join(", ") || "default"]);
  return h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

const short = (value) => Number(value.toPrecision(3)).toString();

async function choose(action, model, title, text, refresh) {
  const fields = action === "activate" ? [] : [{ name: "kind", label: "Kind", kind: "radio", value: "cardinality", options: [["cardinality", "rows of joins"], ["hints", "planner settings"]] }];
  const given = await ask({ title, text, fields, confirm: title, act: ({ kind }) => post("/api/models/choice", { action, model, kind: kind || "cardinality" }) });
  if (given) {
    tell("Done.");
    refresh();
  }
}
