// Circuit breakers that are not closed, and a person's closing them before their pause is over.

import { post } from "./api.js";
import { ask, tell } from "./dialogs.js";
import { chip, h, moment, table } from "./dom.js";

const WORDS = {
  everything: ["All steering", "Statements go through as they came."],
  trials: ["trials", "Its advice is not tried; what was approved of it goes on."],
  use: ["approved advice", "Neither what was approved of it nor anything new is used."],
};

export function breakersPanel(breakers, refresh) {
  if (!breakers?.length) return null;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Switched off by circuit breakers"),
    table("Circuit breakers", [
      { head: "What is off", cell: (one) => [h("b", {}, one.covers === "everything" ? WORDS.everything[0] : `${one.source}: ${WORDS[one.covers][0]}`), h("div", { class: "small soft" }, one.position === "open" ? WORDS[one.covers][1] : "The pause is over: it is used again, and a few runs decide.")] },
      { head: "State", cell: (one) => [chip(one.position === "open" ? "open" : "on trial", one.position === "open" ? "danger" : "warning"), one.until && h("span", { class: "small" }, " until ", moment(one.until)), h("div", { class: "actions choices" }, close(one, refresh))] },
    ], breakers),
    h("p", { class: "legend" }, "Too much was lost. After the pause a few runs decide whether it is closed again by itself."),
  );
}

function close(one, refresh) {
  return h("button", { type: "button", "data-key": `close-${one.covers}-${one.source}`, onclick: async () => {
    const given = await ask({
      title: `Close the circuit breaker of ${one.source}`,
      text: "It is used again at once, and watched as before: when too much is lost again, it is switched off again.",
      fields: [{ name: "actor", label: "Who", value: "console" }, { name: "why", label: "Why (for the ledger)" }],
      confirm: "Close it",
      act: ({ actor, why }) => post("/api/breakers", { action: "close", source: one.source, covers: one.covers === "everything" ? "" : one.covers, actor: actor || "console", why }),
    });
    if (!given) return;
    tell("Closed, and in the ledger.");
    refresh();
  } }, "Close it");
}
