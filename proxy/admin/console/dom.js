// Elements from plain values: text is only ever set as text, so nothing that a client sent can become markup.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// A table: columns are {head, cell(row), num, wide, key}; rows of equal identity keep the focus over an update.
export function table(label, columns, rows) {
  const kind = (column) => [column.num && "num", column.wide && "wide"].filter(Boolean).join(" ") || null;
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: kind(column) }, column.head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column) => h("td", { class: kind(column) }, column.cell(row)))))),
    ),
  );
}

export function chip(word, kind = "") {
  return h("span", { class: `chip ${kind}` }, word);
}

export function empty(title, text) {
  return h("div", { class: "empty" }, h("strong", {}, title), text);
}

export function panel(title, ...children) {
  return h("section", { class: "panel" }, title && h("h2", {}, title), children);
}

export function loading() {
  return h(
    "div",
    { class: "panel", role: "status", "aria-label": "Loading" },
    h("div", { class: "skeleton" }),
    h("div", { class: "skeleton tall" }),
    h("div", { class: "skeleton" }),
  );
}

export const STATES = {
  approved: "good",
  preferred: "good",
  trial: "warning",
  candidate: "",
  expired: "",
  rejected: "danger",
  frozen: "warning",
};

export const state = (name) => (name ? chip(name, STATES[name] ?? "") : h("span", { class: "soft" }, "none"));

// --- numbers and moments, in the reader's own time

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return WHOLE.format(value);
}

export function counted(value, one) {
  return `${count(value)} ${one}${value === 1 ? "" : "s"}`;
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 60_000) return duration(value / 1000);
  if (size >= 1000) return `${(value / 1000).toFixed(size >= 10_000 ? 1 : 2)} s`;
  return `${value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)} ms`;
}

export function duration(seconds) {
  const sign = seconds < 0 ? "−" : "";
  let left = Math.abs(seconds);
  if (left < 1) return `${sign}${Math.round(left * 1000)} ms`;
  if (left < 60) return `${sign}${left.toFixed(left < 10 ? 1 : 0)} s`;
  const days = Math.floor(left / 86400);
  left -= days * 86400;
  const hours = Math.floor(left / 3600);
  const minutes = Math.floor((left - hours * 3600) / 60);
  if (days) return `${sign}${days} d ${hours} h`;
  if (hours) return `${sign}${hours} h ${minutes} min`;
  const rest = Math.floor(left % 60);
  return `${sign}${minutes} min${rest ? ` ${rest} s` : ""}`;
}

export function factor(value) {
  return value ? `${value.toFixed(value < 10 ? 2 : 0)}×` : "–";
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

const TODAY = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const DAY = new Intl.DateTimeFormat([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });

export function clock(value) {
  return TODAY.format(value instanceof Date ? value : new Date(value));
}

export function moment(text) {
  if (!text) return "–";
  const at = new Date(text);
  const shown = Date.now() - at < 20 * 3600 * 1000 ? TODAY.format(at) : DAY.format(at);
  return h("time", { datetime: text, title: at.toString() }, shown);
}

// A statement in one line: without comments, blanks as one.
export function brief(text) {
  return text.replace(/\/\*[\s\S]*?\*\//g, " ").replace(/\s+/g, " ").trim() || text;
}

export function link(href, ...children) {
  return h("a", { href, "data-key": href }, children);
}
