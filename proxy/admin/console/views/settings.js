// Every setting in force, with what the documentation says of it; reading them again.

import { call, post } from "../api.js";
import { ask, tell } from "../dialogs.js";
import { chip, empty, h, panel, table } from "../dom.js";

export const title = "Settings";
export const every = 15;
let filter = { text: "", changed: false };

export function controls(where, refresh) {
  const apply = () => {
    document.querySelectorAll("[data-setting]").forEach((row) => {
      row.hidden = !fits(row.dataset.setting, row.dataset.changed === "yes");
    });
    document.querySelectorAll("[data-group]").forEach((group) => {
      group.hidden = ![...group.querySelectorAll("[data-setting]")].some((row) => !row.hidden);
    });
    const none = document.getElementById("no-setting");
    if (none) none.hidden = [...document.querySelectorAll("[data-setting]")].some((row) => !row.hidden);
  };
  return h(
    "div",
    {},
    h("div", { class: "title" }, h("h1", {}, "Settings"), h("div", { class: "end" }, h("button", { type: "button", onclick: () => reload(refresh) }, "Read the settings again"))),
    h(
      "div",
      { class: "controls" },
      h("label", {}, "Search", h("input", { type: "search", value: filter.text, oninput: (event) => {
        filter.text = event.target.value.toLowerCase();
        apply();
      } })),
      h("div", { class: "segmented", role: "group", "aria-label": "Which" }, [["all", false], ["not the default", true]].map(([words, changed]) => h("button", { type: "button", "aria-pressed": String(filter.changed === changed), onclick: (event) => {
        filter.changed = changed;
        for (const one of event.target.parentElement.children) one.setAttribute("aria-pressed", String(one === event.target));
        apply();
      } }, words))),
    ),
  );
}

const fits = (name, changed) => name.includes(filter.text) && (!filter.changed || changed);

export const load = (where, signal) => call("/api/settings", { signal });

export function render({ settings }) {
  const groups = Map.groupBy ? Map.groupBy(settings, (one) => one.group) : group(settings);
  return [
    h("div", { id: "no-setting", class: "panel", hidden: settings.some((one) => fits(one.name, one.changed)) }, empty("No setting matches", "Another word may find it.")),
    ...[...groups].map(([name, rows]) => {
      const own = h("section", { class: "panel", "data-group": name, hidden: !rows.some((one) => fits(one.name, one.changed)) }, h("h2", {}, name), table(name, [
        { head: "Setting", cell: (one) => [h("code", {}, one.name), h("div", { class: "small soft" }, one.description)] },
        { head: "Value", cell: (one) => [h("b", { class: "mono" }, shown(one.value)), one.changed && h("div", {}, chip("not the default", "warning"))] },
        { head: "Default", wide: true, cell: (one) => h("span", { class: "soft" }, one.default) },
        { head: "Changes", wide: true, cell: (one) => h("span", { class: "soft" }, one.reload ? "while running" : "at a restart") },
      ], rows));
      own.querySelectorAll("tbody tr").forEach((row, index) => {
        row.dataset.setting = rows[index].name;
        row.dataset.changed = rows[index].changed ? "yes" : "no";
        row.hidden = !fits(rows[index].name, rows[index].changed);
      });
      return own;
    }),
  ];
}

function shown(value) {
  if (value === null || value === "") return "not set";
  if (Array.isArray(value)) return value.length ? value.map((one) => (typeof one === "object" ? JSON.stringify(one) : one)).join(", ") : "none";
  return String(value);
}

function group(settings) {
  const found = new Map();
  for (const one of settings) found.set(one.group, [...(found.get(one.group) ?? []), one]);
  return found;
}

async function reload(refresh) {
  let outcome = null;
  const given = await ask({
    title: "Read the settings again?",
    text: "As SIGHUP does: files and environment are read, what may change while running takes effect, the models' folder is looked at. A mode that was switched stays.",
    confirm: "Read them",
    act: async () => {
      outcome = await post("/api/reload");
    },
  });
  if (!given) return;
  const parts = [outcome.changed.length ? `Changed: ${outcome.changed.join(", ")}.` : "Nothing has changed."];
  if (outcome.restart.length) parts.push(`Waits for a restart: ${outcome.restart.join(", ")}.`);
  tell(parts.join(" "));
  refresh();
}
