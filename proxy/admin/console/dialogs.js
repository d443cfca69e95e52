// Questions to the person: one dialog at a time, ended by Escape, the focus back where it was.

import { h } from "./dom.js";

// `fields` are {name, label, kind: text|password|textarea|check|radio, value, options, hint}. Resolves to their values,
// or null when the person leaves. `act(values)` may fail: its message is shown and the dialog stays.
export function ask({ title, text, fields = [], confirm = "OK", danger = false, act }) {
  return new Promise((resolve) => {
    const problem = h("p", { class: "error", role: "alert", hidden: true });
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, confirm);
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "dialog-title" }, title),
      text && h("p", {}, text),
      fields.map(field),
      problem,
      h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), go),
    );
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    let values = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const given = read(form, fields);
      go.disabled = true;
      try {
        if (act) await act(given);
        values = given;
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
      } finally {
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(values);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

function field({ name, label, kind = "text", value = "", options = [], hint }) {
  if (kind === "check") {
    return h("label", { class: "row" }, h("input", { type: "checkbox", name, checked: Boolean(value) }), label);
  }
  if (kind === "radio") {
    return h(
      "fieldset",
      {},
      h("legend", {}, label),
      options.map(([option, words]) =>
        h("label", { class: "row" }, h("input", { type: "radio", name, value: option, checked: option === value }), h("span", {}, h("b", {}, option), words && ` – ${words}`)),
      ),
    );
  }
  const own = kind === "textarea" ? h("textarea", { name, spellcheck: "false", value }) : h("input", { type: kind, name, value, autocomplete: "off" });
  return h("label", {}, label, own, hint && h("span", { class: "small soft" }, hint));
}

function read(form, fields) {
  const data = new FormData(form);
  return Object.fromEntries(fields.map(({ name, kind }) => [name, kind === "check" ? data.has(name) : (data.get(name) ?? "")]));
}

export function tell(text) {
  document.querySelector(".toast")?.remove();
  const toast = h("p", { class: "toast", role: "status" }, text);
  document.body.append(toast);
  setTimeout(() => toast.remove(), 5000);
}

export function keys() {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "keys-title" },
    h("h2", { id: "keys-title" }, "Keyboard"),
    h(
      "dl",
      { class: "keys" },
      [
        ["1 … 6", "the screens, from left to right"],
        ["/", "search"],
        ["j, k", "next and previous row"],
        ["Enter", "open the row"],
        ["r", "refresh now"],
        ["Esc", "close, or back to the list"],
        ["?", "this help"],
      ].map(([key, words]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, words)]),
    ),
    h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
