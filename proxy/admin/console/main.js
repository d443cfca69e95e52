// The shell: which screen is shown, when it is refreshed, what the bar says. Screens are modules with
// `title`, `every` (seconds), `load(route, signal)`, `render(data, route)` and perhaps `controls(route, refresh)`.

import { Failed, call, post, setToken } from "./api.js";
import { ask, keys, tell } from "./dialogs.js";
import { clock, h, loading } from "./dom.js";
import * as connections from "./views/connections.js";
import * as ledger from "./views/ledger.js";
import * as models from "./views/models.js";
import * as queries from "./views/queries.js";
import * as query from "./views/query.js";
import * as settings from "./views/settings.js";
import * as status from "./views/status.js";

const SCREENS = { status, queries, models, connections, ledger, settings };
const MODES = {
  on: "advice is asked for and followed",
  canary: "advice is followed for a share of the executions",
  shadow: "advice is asked for and counted, nothing is changed",
  observe: "statements are only measured",
  off: "none of it: statements go through as they are",
};
const $ = (id) => document.getElementById(id);

let shown = null; // {route, view, body, text}
let timer = 0;
let running = null;
let asking = false;
let health = "";
let beaten = 0;

function route() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { name: parts[0] || "status", rest: parts.slice(1), params: new URLSearchParams(search) };
}

function viewOf(where) {
  if (where.name === "queries" && where.rest.length) return query;
  return SCREENS[where.name] ?? status;
}

function show() {
  const where = route();
  const view = viewOf(where);
  const same = shown && shown.view === view && shown.route.rest.join("/") === where.rest.join("/");
  running?.abort();
  clearTimeout(timer);
  for (const link of $("nav").children) {
    if (link.dataset.name === where.name) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  document.title = `${view.title} · pilotwire`;
  if (same) {
    shown.route = where;
    shown.text = "";
  } else {
    const body = h("div", {}, loading());
    const controls = view.controls?.(where, () => refresh());
    $("content").replaceChildren(...[controls, body].filter(Boolean));
    shown = { route: where, view, body, text: "" };
    window.scrollTo(0, 0);
    $("announce").textContent = view.title;
  }
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  running?.abort();
  const mine = shown;
  const stop = (running = new AbortController());
  try {
    const data = await mine.view.load(mine.route, stop.signal);
    if (mine !== shown || stop.signal.aborted) return;
    if (data?.status?.health) {
      pulse(data.status);
      beaten = Date.now();
    }
    const text = JSON.stringify(data);
    if (text !== mine.text) {
      mine.text = text;
      put(mine, mine.view.render(data, mine.route, refresh));
    }
    $("stamp").textContent = `Updated ${clock(new Date())}`;
    delete mine.body.dataset.failed;
  } catch (error) {
    if (error.name === "AbortError" || mine !== shown) return;
    if (error instanceof Failed && error.status === 401) return askToken();
    failed(mine, error);
  } finally {
    if (mine === shown && running === stop) timer = setTimeout(tick, (mine.view.every ?? 3) * 1000);
  }
}

function tick() {
  // A page that nobody looks at asks for nothing; neither does one in which somebody has marked a text.
  const marked = String(getSelection() ?? "") !== "";
  if (document.hidden || marked || document.querySelector("dialog[open]")) timer = setTimeout(tick, 1000);
  else refresh();
}

// New contents in place of the old, with focus, open details and scroll positions kept.
function put(mine, contents) {
  const focus = document.activeElement?.closest?.("[data-key]")?.dataset.key;
  const open = [...mine.body.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key);
  const scrolled = [...mine.body.querySelectorAll(".scroll, .tree-scroll, pre")].map((one) => [one.scrollLeft, one.scrollTop]);
  mine.body.replaceChildren(...[contents].flat().filter(Boolean));
  for (const key of open) {
    const found = mine.body.querySelector(`details[data-key="${CSS.escape(key)}"]`);
    if (found) found.open = true;
  }
  mine.body.querySelectorAll(".scroll, .tree-scroll, pre").forEach((one, index) => {
    if (scrolled[index]) [one.scrollLeft, one.scrollTop] = scrolled[index];
  });
  if (focus && !document.querySelector("dialog[open]")) mine.body.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

function failed(mine, error) {
  const words = error instanceof Failed ? error.message : `The console failed: ${error.message}`;
  if (!(error instanceof Failed)) console.error(error);
  mine.text = "";
  mine.body.dataset.failed = "yes";
  put(
    mine,
    h(
      "div",
      { class: "failed", role: "alert" },
      h("strong", {}, error.status === 404 ? "Not there" : error.status === 503 ? "Not available now" : "This could not be read"),
      h("p", {}, words),
      h("button", { type: "button", onclick: () => refresh(), "data-key": "again" }, "Try again"),
    ),
  );
  if (error.status === 0) pulse({ health: "lost" });
}

// --- the bar

async function beat() {
  // Some screens have asked for the same just now.
  if (!document.hidden && !asking && Date.now() - beaten > 4000) {
    try {
      pulse(await call("/api/status"));
    } catch (error) {
      if (error.status === 401) askToken();
      else pulse({ health: "lost" });
    }
  }
  setTimeout(beat, 4000);
}

const WORDS = { healthy: ["Healthy", "good"], degraded: ["Degraded", "warning"], unhealthy: ["Unhealthy", "danger"], lost: ["No answer", "danger"] };

function pulse(found) {
  const [word, kind] = WORDS[found.health] ?? ["Unknown", ""];
  $("pulse").className = `pulse is-${kind}`;
  $("pulse-text").textContent = word;
  if (health && health !== found.health) $("announce").textContent = word;
  health = found.health;
  if (found.mode) {
    $("mode").hidden = false;
    $("mode").textContent = `Mode: ${found.mode}`;
    $("mode").dataset.mode = found.mode;
    $("mode").dataset.modes = found.modes.join(",");
  }
}

async function chooseMode() {
  const { mode, modes } = $("mode").dataset;
  const given = await ask({
    title: "Steering mode",
    text: "It takes effect in all workers at once, stays when the settings are read again, and ends with the process.",
    fields: [
      { name: "mode", label: "Mode", kind: "radio", value: mode, options: modes.split(",").map((name) => [name, MODES[name]]) },
      { name: "why", label: "Why (for the log)" },
    ],
    confirm: "Switch",
    act: (values) => post("/api/mode", { ...values, actor: "console" }),
  });
  if (given) {
    tell(`The mode is ${given.mode}.`);
    pulse(await call("/api/status"));
    refresh();
  }
}

async function askToken() {
  if (asking) return;
  asking = true;
  const given = await ask({
    title: "Admin token",
    text: "This instance has an admin token (the setting admin_token).",
    fields: [
      { name: "token", label: "Token", kind: "password" },
      { name: "keep", label: "Keep it until this tab is closed", kind: "check" },
    ],
    confirm: "Sign in",
    act: async ({ token, keep }) => {
      setToken(token, keep);
      try {
        await call("/api/mode");
      } catch (error) {
        setToken("", false);
        throw error.status === 401 ? new Error("That is not the token.") : error;
      }
    },
  });
  asking = false;
  if (given) refresh();
  else if (shown) failed(shown, new Failed(401, "Without the admin token there is nothing to see here."));
}

// --- keyboard and theme

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest?.("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const names = Object.keys(SCREENS);
  if (event.key >= "1" && event.key <= String(names.length)) location.hash = `#/${names[Number(event.key) - 1]}`;
  else if (event.key === "/") {
    const search = document.querySelector('input[type="search"]');
    if (!search) return;
    search.focus();
  } else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (event.key === "r") refresh();
  else if (event.key === "?") keys();
  else if (event.key === "Escape" && shown?.route.rest.length) location.hash = `#/${shown.route.name}`;
  else return;
  event.preventDefault();
}

function step(by) {
  const rows = [...document.querySelectorAll("tbody tr")].map((row) => row.querySelector("a, button")).filter(Boolean);
  const at = rows.indexOf(document.activeElement?.closest("tr")?.querySelector("a, button"));
  rows[Math.min(Math.max(at + by, 0), rows.length - 1)]?.focus();
}

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("pilotwire-theme", name);
}

function begin() {
  $("nav").append(...Object.entries(SCREENS).map(([name, view]) => h("a", { href: `#/${name}`, "data-name": name }, view.title)));
  const chosen = localStorage.getItem("pilotwire-theme") ?? "auto";
  $("theme").value = chosen;
  theme(chosen);
  $("theme").addEventListener("change", (event) => theme(event.target.value));
  $("keys").addEventListener("click", keys);
  $("mode").addEventListener("click", chooseMode);
  document.addEventListener("keydown", onKey);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("content").focus();
  });
  addEventListener("hashchange", show);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  show();
  beat();
}

begin();
