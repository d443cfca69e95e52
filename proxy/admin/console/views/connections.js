// Pools and clients: who is connected, who waits, who holds what.

import { call, post } from "../api.js";
import { ask, tell } from "../dialogs.js";
import { chip, count, duration, empty, h, ms, panel, table } from "../dom.js";

export const title = "Connections";
export const every = 2;
const PAGE = 200;
const STATES = { active: "good", waiting: "danger", "in transaction": "warning", idle: "", "logging in": "" };

export async function load(where, signal) {
  const after = where.params.get("after") ?? "";
  const [pools, clients] = await Promise.all([
    call("/api/pools", { signal }),
    call(`/api/clients?limit=${PAGE}&after=${encodeURIComponent(after)}`, { signal }),
  ]);
  return { pools: pools.pools, ...clients, after };
}

export function render(found, where, refresh) {
  return [h("div", { class: "title" }, h("h1", {}, "Connections")), pools(found.pools), clients(found, refresh)];
}

function pools(rows) {
  if (!rows.length) return panel("Pools", empty("No pool is in use", "A pool appears with the first client of a user and database."));
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Pools"),
    table("Pools", [
      { head: "Pool", cell: (row) => [h("b", {}, row.database), h("span", { class: "soft" }, ` as ${row.user}`)] },
      { head: "Mode", wide: true, cell: (row) => row.mode },
      { head: "Clients", num: true, cell: (row) => count(row.clients) },
      { head: "Active", num: true, cell: (row) => count(row.active) },
      { head: "Waiting", num: true, cell: (row) => (row.waiting ? chip(`${count(row.waiting)}, ${ms(row.longest_wait_ms)}`, "danger") : "0") },
      { head: "Server connections", num: true, wide: true, cell: (row) => `${count(row.servers)}${row.limit ? ` of ${count(row.limit)}` : ""}` },
      { head: "Free", num: true, wide: true, cell: (row) => count(row.idle_servers) },
    ], rows),
  );
}

function clients(found, refresh) {
  if (!found.clients.length) {
    return panel("Clients", found.after ? empty("No further clients", "Those before may have left meanwhile.") : empty("Nobody is connected", "Clients appear here as soon as they have logged in."));
  }
  const next = found.next && h("a", { href: `#/connections?after=${found.next}`, "data-key": "next" }, "Next page");
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Clients"),
    table("Clients", [
      { head: "Client", cell: (row) => [h("b", {}, row.user), h("span", { class: "soft" }, ` ${row.database}`), h("div", { class: "small soft" }, row.application || "no application_name", " · ", row.peer || "local", row.tls && " · TLS", row.read_only && " · read only")] },
      { head: "State", cell: (row) => chip(row.state, STATES[row.state] ?? "") },
      { head: "Runs for", num: true, cell: (row) => (row.running_ms ? ms(row.running_ms) : "–") },
      { head: "Connected", num: true, wide: true, cell: (row) => duration((Date.now() - Date.parse(row.connected)) / 1000) },
      { head: "Server process", num: true, wide: true, cell: (row) => row.server_pid || "–" },
      { head: "Action", cell: (row) => h("button", { type: "button", class: "quiet danger", "data-key": `kill-${row.id}`, "aria-label": `End client ${row.id} of ${row.user}`, onclick: () => end(row, refresh) }, "End") },
    ], found.clients),
    (next || found.after) && h("div", { class: "controls pages" }, found.after && h("a", { href: "#/connections", "data-key": "first" }, "First page"), next),
  );
}

async function end(row, refresh) {
  const given = await ask({
    title: `End this client of ${row.user}?`,
    text: `${row.application || row.peer}: what it runs is cancelled, an open transaction is rolled back, and it gets the error 57P01.`,
    confirm: "End it",
    danger: true,
    act: () => post(`/api/clients/${row.id}/kill`),
  });
  if (given) {
    tell("The client has been ended.");
    refresh();
  }
}
