// The JSON API. The token stays in memory, or in this tab's sessionStorage when the person asks for that.

const KEPT = "pilotwire-token";
let token = sessionStorage.getItem(KEPT) ?? "";

export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setToken(value, keep) {
  token = value;
  if (keep) sessionStorage.setItem(KEPT, value);
  else sessionStorage.removeItem(KEPT);
}

export async function call(path, { method = "GET", body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The proxy does not answer on its admin port.");
  }
  const text = await answer.text();
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    found = null;
  }
  if (!answer.ok) throw new Failed(answer.status, sentence(found) ?? `The proxy answered ${answer.status}.`);
  return found;
}

function sentence(found) {
  if (typeof found?.detail === "string") return found.detail;
  if (Array.isArray(found?.detail)) return found.detail.map((one) => `${one.loc?.at(-1) ?? ""}: ${one.msg}`).join("; ");
  return found?.error ?? null;
}

export const post = (path, body = {}) => call(path, { method: "POST", body });
