// Both plans of a query side by side, as trees: what each step was thought to give, and what it gave.

import { count, h, ms } from "./dom.js";

const FAR = 8; // estimated and actual rows this many times apart are worth a word

export function pair(found) {
  const note = found.note && h("p", { class: "note" }, found.note[0].toUpperCase(), found.note.slice(1), ".");
  return h(
    "div",
    {},
    note,
    h("div", { class: "plans" }, plan("Plain", found.plain), found.steered && plan(`Steered by ${found.arm}`, found.steered)),
  );
}

function plan(title, found) {
  const facts = [`cost ${count(found.cost)}`];
  if (found.time_ms !== null) facts.push(`ran ${ms(found.time_ms)}`);
  if (found.planning_ms !== null) facts.push(`planned in ${ms(found.planning_ms)}`);
  return h(
    "section",
    { class: "plan", "aria-label": `${title}: the plan` },
    h("h3", {}, title),
    h("p", { class: "small soft" }, facts.join(" · ")),
    h("div", { class: "tree-scroll", tabindex: "0", role: "region", "aria-label": `${title}: steps` }, h("ul", { class: "tree" }, step(found.root))),
    found.advice && h("details", { "data-key": `advice-${title}` }, h("summary", {}, "What is added to the statement"), h("pre", {}, found.advice)),
  );
}

function step(node) {
  return h(
    "li",
    {},
    h(
      "div",
      { class: node.differs ? "step differs" : "step" },
      h("b", {}, node.name),
      node.differs && h("span", { class: "visually-hidden" }, " (the other plan does this differently)"),
      h("div", { class: "rows" }, rows(node), node.time_ms !== null && ` · ${ms(node.time_ms)}`),
      node.detail && h("span", { class: "detail", title: node.detail }, node.detail),
    ),
    node.children.length > 0 && h("ul", {}, node.children.map(step)),
  );
}

function rows(node) {
  if (node.actual === null) return `${count(node.estimated)} rows expected`;
  const apart = Math.max(node.actual, 1) / Math.max(node.estimated, 1);
  const far = apart >= FAR || apart <= 1 / FAR;
  return [
    `${count(node.estimated)} expected, ${count(node.actual)} came`,
    far && h("span", { class: "off" }, ` ${count(Math.max(apart, 1 / apart))}× ${apart > 1 ? "more" : "fewer"}`),
  ];
}
