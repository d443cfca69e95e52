// Small charts as SVG. Colour is never the only difference: lines and dots have shapes and words of their own.

import { clock, ms, s } from "./dom.js";

// On a phone fewer units across, so that the words stay as large as they are.
export const wide = () => (innerWidth < 700 ? 400 : 900);

// One line over time with limits. points: [[Date, value]], limits: [value].
export function lines(points, { label, limits = [], width = wide(), height = 200 }) {
  const box = { left: 52, right: 8, top: 8, bottom: 22 };
  const [x, y, ticks] = scales(points, limits, width, height, box);
  const path = points.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const floor = height - box.bottom;
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ticks.map((value) => [
      s("line", { class: "axis", x1: box.left, x2: width - box.right, y1: y(value), y2: y(value) }),
      s("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, value ? ms(value) : "0"),
    ]),
    limits.filter((value) => y(value) > box.top).map((value) => s("line", { class: "limit", x1: box.left, x2: width - box.right, y1: y(value), y2: y(value) })),
    points.length > 1 && s("path", { class: "area", d: `${path}L${x(points.at(-1)[0])} ${floor}L${x(points[0][0])} ${floor}Z` }),
    s("path", { class: "line", d: path }),
    points.length < 30 && points.map(([at, value]) => s("circle", { class: "steered", cx: x(at), cy: y(value), r: 2.4 })),
    times(points, x, height),
  );
}

function scales(points, limits, width, height, box) {
  const first = Number(points[0]?.[0] ?? 0);
  const last = Math.max(Number(points.at(-1)?.[0] ?? 1), first + 1);
  const step = round(Math.max(...points.map((point) => point[1]), ...limits.map((limit) => limit * 0.6), 1e-3) / 2);
  const top = 2 * step;
  const x = (at) => box.left + ((Number(at) - first) / (last - first)) * (width - box.left - box.right);
  const y = (value) => height - box.bottom - (value / top) * (height - box.top - box.bottom);
  return [x, y, [0, step, top]];
}

// The next number above that reads well on an axis.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((digit) => digit * power).find((found) => found >= value * 1.001);
}

function times(points, x, height) {
  return [points[0], points.at(-1)].slice(0, points.length).map(([at], index) =>
    s("text", { x: x(at), y: height - 5, "text-anchor": index ? "end" : "start" }, clock(at)),
  );
}

// A line in a table's cell.
export function spark(points, label) {
  const width = 136;
  const height = 30;
  if (points.length < 2) return s("svg", { class: "spark chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: not enough points yet` });
  const top = Math.max(...points.map((point) => point[1])) || 1;
  const first = Number(points[0][0]);
  const last = Number(points.at(-1)[0]);
  const path = points
    .map(([at, value], index) => `${index ? "L" : "M"}${(((at - first) / (last - first || 1)) * (width - 4) + 2).toFixed(1)} ${(height - 3 - (value / top) * (height - 6)).toFixed(1)}`)
    .join("");
  return s("svg", { class: "spark chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: from ${ms(points[0][1])} to ${ms(points.at(-1)[1])}` }, s("path", { class: "line", d: path }));
}

// Runs plain (rings) against steered (diamonds), logarithmic in time taken. runs: [{x, took, steered}].
export function runs(found, { label, byTime, width = wide(), height = 240 }) {
  const box = { left: 60, right: 12, top: 12, bottom: 24 };
  const low = Math.max(Math.min(...found.map((run) => run.took)), 0.01) / 1.3;
  const high = Math.max(...found.map((run) => run.took), low * 2) * 1.3;
  const first = Math.min(...found.map((run) => run.x));
  const last = Math.max(...found.map((run) => run.x), first + 1);
  const x = (at) => box.left + 8 + ((at - first) / (last - first)) * (width - box.left - box.right - 16);
  const y = (took) => box.top + (1 - Math.log(Math.max(took, low) / low) / Math.log(high / low)) * (height - box.top - box.bottom);
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    decades(low, high).map((value) => [
      s("line", { class: "axis", x1: box.left, x2: width - box.right, y1: y(value), y2: y(value) }),
      s("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, ms(value)),
    ]),
    found.map((run) => mark(run.steered, x(run.x), y(run.took), `${run.steered ? "steered" : "plain"}: ${ms(run.took)}`)),
    byTime
      ? [first, last].map((at, index) => s("text", { x: x(at), y: height - 6, "text-anchor": index ? "end" : "start" }, clock(new Date(at))))
      : [s("text", { x: box.left + 8, y: height - 6 }, "older"), s("text", { x: width - box.right, y: height - 6, "text-anchor": "end" }, "newest")],
  );
}

export function mark(steered, cx, cy, title) {
  const shape = steered
    ? s("path", { class: "steered", d: `M${cx} ${cy - 4.4}l4.4 4.4l-4.4 4.4l-4.4 -4.4z` })
    : s("circle", { class: "plain", cx, cy, r: 3.4 });
  if (title) shape.append(s("title", {}, title));
  return shape;
}

function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const step of high / low < 30 ? [1, 2, 5] : [1]) {
      const value = step * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}
