// One query: its evidence, its history plain against steered, both plans, and what a person decides.

import { call, post } from "../api.js";
import { mark, runs as drawRuns } from "../charts.js";
import { ask, tell } from "../dialogs.js";
import { chip, count, empty, factor, h, link, moment, ms, panel, s, state, table } from "../dom.js";
import { pair } from "../plans.js";

export const title = "Query";
export const every = 4;

let plans = { key: "", found: null, error: "", busy: false };

export function load(where, signal) {
  const key = where.rest[0];
  if (plans.key !== key) plans = { key, found: null, error: "", busy: false };
  return call(`/api/memory/${encodeURIComponent(key)}`, { signal });
}

export function render(found, where, refresh) {
  const { query } = found;
  return [
    h("p", { class: "small" }, link("#/queries", "← Queries")),
    h("div", { class: "title" }, h("h1", {}, query.key === query.template ? "Query, whatever its values" : "Query"), state(query.state), query.opted_out && chip("left alone by a person", "warning"), h("div", { class: "end" }, actions(found, refresh))),
    h("section", { class: "panel", "aria-label": "Statement" }, statement(query), facts(query)),
    history(found),
    arms(found, refresh),
    planPanel(found, refresh),
    ledger(found),
  ];
}

function statement(query) {
  return query.text ? h("pre", { tabindex: "0", "aria-label": "The statement" }, query.text) : h("p", { class: "soft" }, "The text of this statement is not kept.");
}

function facts(query) {
  const rows = [
    ["Database", query.database],
    ["search_path", query.search_path || "the database's own"],
    ["Fingerprint", h("code", {}, query.fingerprint)],
    ["Key", h("code", {}, query.key)],
    query.key !== query.template && ["Calls", `${count(query.calls)}, ${ms(query.total_ms)} in all`],
    query.key !== query.template && ["Its kind", link(`#/queries/${query.template}`, "what is known whatever the values")],
    ["Seen", h("span", {}, moment(query.first_seen), " to ", moment(query.last_seen))],
  ].filter(Boolean);
  return h("details", { "data-key": "facts" }, h("summary", {}, "Where it runs"), h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

const DECISIONS = {
  approve: ["Approve", "The arm is used for this query from now on, until evidence or a person says otherwise."],
  prefer: ["Prefer", "The arm is used whatever the evidence, and only a person withdraws it."],
  release: ["Release", "What people decided about this query is taken back: evidence decides again."],
  reject: ["Reject", "The arm is not used for this query again by itself."],
  freeze: ["Freeze", "This query is left alone, whatever is known about it, until a person lets go."],
  unfreeze: ["Let go", "The query may be steered again."],
  opt_out: ["Opt out", "All statements of this kind, whatever their values, are left alone."],
  opt_in: ["Opt in", "Statements of this kind may be steered again."],
  forget: ["Forget", "All evidence for this query is removed; the ledger keeps its lines."],
};

function actions(found, refresh) {
  const { query } = found;
  const template = query.key === query.template;
  const names = query.opted_out ? [template ? "opt_in" : "unfreeze"] : template ? ["opt_out"] : ["freeze", "opt_out"];
  if (found.arms.some((arm) => arm.actor !== "system")) names.push("release");
  return h("div", { class: "actions" }, [...names, "forget"].map((name) => decide(name, query, "", refresh)));
}

function decide(name, query, arm, refresh) {
  const [word, meaning] = DECISIONS[name];
  return h("button", { type: "button", class: [name === "forget" || name === "reject" ? "danger" : "", arm && "quiet"].filter(Boolean).join(" ") || null, "data-key": `${name}-${arm}`, onclick: async () => {
    const given = await ask({
      title: arm ? `${word} ${arm}` : `${word} this query`,
      text: meaning,
      fields: [{ name: "actor", label: "Who", value: "console" }, { name: "why", label: "Why (for the ledger)" }],
      confirm: word,
      danger: name === "forget" || name === "reject",
      act: (values) => post(`/api/memory/${query.key}`, { action: name, arm, actor: values.actor || "console", why: values.why }),
    });
    if (!given) return;
    tell(`${word}: done, and in the ledger.`);
    if (name === "forget") location.hash = "#/queries";
    else refresh();
  } }, word);
}

function history(found) {
  const seen = found.runs.filter((run) => !run.failed).map((run) => ({ x: Date.parse(run.at), took: run.took_ms, steered: run.decision === "steered" || run.decision === "" && Boolean(run.arm) }));
  const best = found.arms[0];
  const byTime = seen.length > 1;
  const kept = [
    ...(best?.baseline ?? []).map((took, index, all) => ({ x: index - all.length, took, steered: false })),
    ...(best?.latencies ?? []).map((took, index, all) => ({ x: index - all.length + 0.5, took, steered: true })),
  ];
  const points = byTime ? seen : kept;
  if (!points.length) return panel("Plain against steered", empty("No runs are recorded yet", "Each execution that is measured becomes a point here."));
  return panel(
    "Plain against steered",
    drawRuns(points, { byTime, label: `${points.filter((one) => one.steered).length} steered and ${points.filter((one) => !one.steered).length} plain runs: medians ${ms(found.query.steered_ms)} and ${ms(found.query.plain_ms)}` }),
    h(
      "p",
      { class: "legend" },
      h("span", {}, s("svg", { viewBox: "0 0 12 12", class: "chart", "aria-hidden": "true" }, mark(false, 6, 6)), `plain, median ${ms(found.query.plain_ms)}`),
      h("span", {}, s("svg", { viewBox: "0 0 12 12", class: "chart", "aria-hidden": "true" }, mark(true, 6, 6)), `steered, median ${ms(found.query.steered_ms)}`),
      !byTime && h("span", {}, "the runs kept as evidence, in their order"),
    ),
  );
}

function arms(found, refresh) {
  if (!found.arms.length) return panel("Arms", empty("No other way of planning it is known", "The explorer or a model may bring one."));
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Arms"),
    table("Arms", [
      { head: "Arm", cell: (arm) => [h("b", {}, arm.arm), h("span", { class: "small soft" }, arm.model && ` ${arm.model}`), arm.why && h("div", { class: "small soft" }, arm.why)] },
      { head: "State", cell: (arm) => [state(arm.state), arm.actor !== "system" && h("span", { class: "small soft" }, ` by ${arm.actor}`), h("div", { class: "actions choices" }, choices(arm).map((name) => decide(name, found.query, arm.arm, refresh)))] },
      { head: "Plain", num: true, wide: true, cell: (arm) => ms(arm.plain_ms) },
      { head: "Steered", num: true, wide: true, cell: (arm) => ms(arm.steered_ms) },
      { head: "Measured", num: true, cell: (arm) => factor(arm.measured_gain) },
      { head: "Expected", num: true, wide: true, cell: (arm) => factor(arm.expected_gain) },
      { head: "Runs", num: true, wide: true, cell: (arm) => `${count(arm.runs)}${arm.losses ? `, ${count(arm.losses)} lost` : ""}` },
    ], found.arms),
  );
}

function choices(arm) {
  return [
    !["approved", "preferred"].includes(arm.state) && "approve",
    arm.state === "approved" && "prefer",
    arm.state !== "rejected" && "reject",
  ].filter(Boolean);
}

function planPanel(found, refresh) {
  const { query } = found;
  const redraw = () => {
    const old = document.getElementById("plans");
    old?.replaceWith(planPanel(found, refresh));
  };
  const draw = async (analyze, text = "") => {
    plans = { ...plans, busy: true, error: "" };
    redraw();
    try {
      plans = { key: query.key, found: await post(`/api/memory/${query.key}/plans`, { analyze, text, arm: "" }), error: "", busy: false };
    } catch (error) {
      plans = { ...plans, busy: false, error: error.message };
      if (error.status === 409 && error.message.includes("store_literals")) plans.needsText = analyze;
    }
    redraw();
  };
  const withText = async () => {
    const given = await ask({
      title: "The statement with its values",
      text: "The store keeps no literals. Paste the very statement, to the letter; it is used for these plans only and kept nowhere.",
      fields: [{ name: "text", label: "Statement", kind: "textarea" }, { name: "analyze", label: "Run it, once with each plan, for actual rows (read only, at most a minute)", kind: "check" }],
      confirm: "Draw the plans",
    });
    if (given) draw(given.analyze, given.text);
  };
  return h(
    "section",
    { class: "panel", id: "plans", "aria-busy": String(plans.busy) },
    h("div", { class: "title" }, h("h2", {}, "Plans"), h(
      "div",
      { class: "end" },
      h("button", { type: "button", "data-key": "explain", disabled: plans.busy, onclick: () => draw(false) }, "Draw both plans"),
      h("button", { type: "button", "data-key": "analyze", disabled: plans.busy, onclick: () => draw(true) }, "Run both for actual rows"),
    )),
    plans.busy && h("div", { role: "status" }, h("p", { class: "soft" }, "Asking the server …"), h("div", { class: "skeleton tall" })),
    plans.error && h("p", { class: "note", role: "alert" }, plans.error),
    plans.error.includes("store_literals") && h("button", { type: "button", "data-key": "paste", onclick: withText }, "Give the statement"),
    !plans.busy && plans.found && pair(plans.found),
    !plans.busy && !plans.found && !plans.error && h("p", { class: "soft" }, "EXPLAIN costs a few milliseconds. Running it shows the actual rows: read only, with a limit of a minute."),
  );
}

function ledger(found) {
  if (!found.ledger.length) return null;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "What became of it"),
    table("Ledger of this query", [
      { head: "When", cell: (line) => moment(line.at) },
      { head: "What", cell: (line) => [line.before || line.after ? h("span", {}, line.before || "–", " → ", h("b", {}, line.after || "–")) : line.kind, line.arm && h("span", { class: "small soft" }, ` ${line.arm}`)] },
      { head: "Why", wide: true, cell: (line) => line.why },
      { head: "By", cell: (line) => line.actor },
    ], found.ledger),
  );
}
