// What was decided, by whom and why.

import { call } from "../api.js";
import { chip, empty, factor, h, link, moment, panel, table } from "../dom.js";

export const title = "Ledger";
export const every = 5;
const KINDS = [["", "everything"], ["state", "states"], ["person", "people"], ["breaker", "circuit breakers"], ["mode", "switches of the mode"], ["model", "models"], ["execution", "executions"]];

export function controls(where) {
  return h(
    "div",
    {},
    h("div", { class: "title" }, h("h1", {}, "Ledger")),
    h("div", { class: "controls" }, h("label", {}, "Kind", h("select", { onchange: (event) => {
      location.hash = event.target.value ? `#/ledger?kind=${event.target.value}` : "#/ledger";
    } }, KINDS.map(([value, words]) => h("option", { value, selected: where.params.get("kind") === value }, words))))),
  );
}

export function load(where, signal) {
  const params = new URLSearchParams({ limit: 100 });
  for (const name of ["kind", "before"]) if (where.params.get(name)) params.set(name, where.params.get(name));
  return call(`/api/ledger?${params}`, { signal });
}

const query = (line) => [link(`#/queries/${line.key}`, h("code", {}, (line.fingerprint || line.key).slice(0, 12))), h("div", { class: "small soft" }, [line.scope, line.database].filter(Boolean).join(" · "))];

const AFTER = { approved: "good", preferred: "good", rejected: "danger", trial: "warning", frozen: "warning", open: "danger", half_open: "warning", closed: "good" };

export function render(found, where) {
  if (!found.entries.length) return panel(null, empty("No lines", where.params.size ? "Nothing of this kind, or nothing before." : "Each change of a state, each decision of a person and each switch gets a line here."));
  const more = new URLSearchParams(where.params);
  if (found.next) more.set("before", found.next);
  return h(
    "section",
    { class: "panel" },
    table("Ledger", [
      { head: "When", cell: (line) => moment(line.at) },
      { head: "Kind", wide: true, cell: (line) => line.kind },
      { head: "What", cell: (line) => [line.after ? chip(line.before ? `${line.before} → ${line.after}` : line.after, AFTER[line.after] ?? "") : line.kind, line.arm && h("span", { class: "small" }, ` ${line.arm}`), line.model && h("span", { class: "small soft" }, ` ${line.model}`), line.why && h("div", { class: "small" }, line.why), line.key && h("div", { class: "small narrow" }, query(line))] },
      { head: "Query", wide: true, cell: (line) => (line.key ? query(line) : "–") },
      { head: "Gain", num: true, wide: true, cell: (line) => factor(line.measured_gain || line.expected_gain) },
      { head: "By", cell: (line) => line.actor },
    ], found.entries),
    h("div", { class: "controls pages" }, where.params.get("before") && h("a", { href: "#/ledger", "data-key": "first" }, "Newest"), found.next && h("a", { href: `#/ledger?${more}`, "data-key": "older" }, "Older")),
  );
}
