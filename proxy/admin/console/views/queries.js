// The queries that are remembered: where time was won and where it was lost.

import { call } from "../api.js";
import { brief, count, empty, factor, h, link, moment, ms, panel, state, table } from "../dom.js";

export const title = "Queries";
export const every = 3;
const PAGE = 50;
const ORDERS = [["saved", "Time saved"], ["lost", "Time lost"], ["total", "Total time"], ["updated", "Last change"]];
const STATES = ["candidate", "trial", "approved", "rejected", "expired", "preferred", "frozen"];

export function controls(where) {
  const order = h(
    "div",
    { class: "segmented", role: "group", "aria-label": "Order" },
    ORDERS.map(([name, words]) => h("button", { type: "button", "aria-pressed": String(current(where).order === name), onclick: (event) => {
      for (const one of event.target.parentElement.children) one.setAttribute("aria-pressed", String(one === event.target));
      go({ order: name, offset: "" });
    } }, words)),
  );
  let pause = 0;
  const search = h("input", { type: "search", value: where.params.get("search") ?? "", placeholder: "text, fingerprint or arm", maxlength: 200, oninput: (event) => {
    clearTimeout(pause);
    pause = setTimeout(() => go({ search: event.target.value, offset: "" }), 250);
  } });
  const states = h("select", { onchange: (event) => go({ state: event.target.value, offset: "" }) }, h("option", { value: "" }, "all"), STATES.map((name) => h("option", { value: name, selected: where.params.get("state") === name }, name)));
  return h(
    "div",
    {},
    h("div", { class: "title" }, h("h1", {}, "Queries")),
    h("div", { class: "controls" }, h("div", {}, order), h("label", {}, "Search", search), h("label", {}, "State", states)),
  );
}

function current(where) {
  return { order: where.params.get("order") ?? "saved", offset: Number(where.params.get("offset") ?? 0) };
}

function go(changes) {
  const params = new URLSearchParams(location.hash.split("?")[1] ?? "");
  for (const [name, value] of Object.entries(changes)) {
    if (value) params.set(name, value);
    else params.delete(name);
  }
  location.hash = params.size ? `#/queries?${params}` : "#/queries";
}

export async function load(where, signal) {
  const params = new URLSearchParams({ limit: PAGE, ...current(where) });
  for (const name of ["state", "search"]) if (where.params.get(name)) params.set(name, where.params.get(name));
  const found = await call(`/api/memory?${params}`, { signal });
  return found.total ? found : { ...found, evidence: (await call("/api/status", { signal })).evidence };
}

const NOTHING = {
  measured: "Statements that join tables are remembered once they take long enough to be worth it.",
  none: "A model's advice is used at once here (evidence = none): nothing is compared, so there is nothing to remember.",
};

export function render(found, where) {
  const { offset } = current(where);
  if (!found.total) {
    const filtered = where.params.get("search") || where.params.get("state");
    return panel(null, filtered ? empty("No query matches", "Another search, or another state, may find it.") : empty("Nothing is remembered yet", NOTHING[found.evidence]));
  }
  return h(
    "section",
    { class: "panel" },
    table("Queries", [
      { head: "Query", cell: (row) => [link(`#/queries/${row.key}`, h("span", { class: "statement mono" }, brief(row.text) || row.fingerprint || row.key)), h("span", { class: "small soft" }, row.database, row.arm && ` · ${row.arm}`, row.key === row.template && h("b", {}, " · whatever its values"))] },
      { head: "State", cell: (row) => state(row.state) },
      { head: "Calls", num: true, wide: true, cell: (row) => (row.key === row.template && !row.calls ? "–" : count(row.calls)) },
      { head: "Plain", num: true, wide: true, cell: (row) => ms(row.plain_ms) },
      { head: "Steered", num: true, wide: true, cell: (row) => ms(row.steered_ms) },
      { head: "Gain", num: true, wide: true, cell: (row) => (row.plain_ms && row.steered_ms ? factor(row.plain_ms / row.steered_ms) : "–") },
      { head: "Saved", num: true, cell: (row) => (row.saved_ms ? h("span", { class: row.saved_ms > 0 ? "gain" : "loss" }, row.saved_ms > 0 ? ms(row.saved_ms) : `−${ms(-row.saved_ms)}`) : "–") },
      { head: "Seen", num: true, wide: true, cell: (row) => moment(row.last_seen) },
    ], found.queries),
    found.total > PAGE && h(
      "div",
      { class: "controls pages" },
      h("button", { type: "button", disabled: offset === 0, "data-key": "back", onclick: () => go({ offset: Math.max(0, offset - PAGE) || "" }) }, "Previous"),
      h("span", { class: "soft" }, `${count(offset + 1)} to ${count(offset + found.queries.length)} of ${count(found.total)}`),
      h("button", { type: "button", disabled: offset + PAGE >= found.total, "data-key": "on", onclick: () => go({ offset: offset + PAGE }) }, "Next"),
    ),
  );
}
