// Throughput, latency and lag over the last minutes, drawn by uPlot.

import { bytes, clock, duration, h, number, put } from "./format.js";

const KEPT_MS = 15 * 60_000;
const GAP_MS = 10_000;
const LEAST_S = 60;
const MOST_MS = 5000;
const CHARTS = [
  { title: "Throughput", unit: "rows a second", show: (v) => `${number(v)}/s`, tick: number,
    series: [["relayed", "relayed_rows_s"], ["applied", "applied_rows_s"]] },
  { title: "Commit to visible", unit: "milliseconds", show: duration, tick: duration,
    series: [["p50", "visible_p50_ms"], ["p99", "visible_p99_ms"]] },
  { title: "Lag", unit: "bytes of WAL, most in 5 s", most: true, show: bytes, tick: bytes,
    series: [["not confirmed", "unconfirmed_bytes"], ["not applied", "behind_bytes"]] },
];

export class Charts {
  constructor(place) {
    this.points = [];
    this.charts = CHARTS.map((chart) => make(place, chart));
    new ResizeObserver(() => this.charts.forEach(fit)).observe(place);
  }

  history(points) {
    this.points = points;
    this.draw();
  }

  add(point) {
    const last = this.points.at(-1);
    if (last && point.at_ms <= last.at_ms) return;
    this.points.push(point);
    while (point.at_ms - this.points[0].at_ms > KEPT_MS) this.points.shift();
    this.draw();
  }

  draw() {
    const points = withGaps(this.points);
    const times = points.map((p) => p.at_ms / 1000);
    for (const chart of this.charts) {
      const data = [times, ...chart.series.map(([, name]) => points.map((p, at) => value(points, at, name, chart.most)))];
      if (!chart.plot) chart.plot = plot(chart, data);
      else chart.plot.setData(data);
      label(chart, this.points.at(-1) ?? {});
    }
  }

  /** With the colours of the theme that is on now. */
  repaint() {
    for (const chart of this.charts) {
      chart.plot?.destroy();
      chart.plot = null;
    }
    if (this.points.length) this.draw();
  }
}

function make(place, chart) {
  const values = chart.series.map(() => h("b", {}, "–"));
  const keys = chart.series.map(([name], at) => h("li", {}, `${name} `, values[at]));
  const canvas = h("div", { class: "plot", role: "img" });
  const title = h("h2", {}, chart.title, " ", h("span", { class: "unit" }, chart.unit));
  place.append(h("div", { class: "card chart" }, title, h("ul", { class: "keys" }, ...keys), canvas));
  return { ...chart, values, canvas, plot: null };
}

/** Where nobody looked there is nothing to draw. */
function withGaps(points) {
  const found = [];
  for (const point of points) {
    const last = found.at(-1);
    if (last && point.at_ms - last.at_ms > GAP_MS) found.push({ at_ms: last.at_ms + 1000 });
    found.push(point);
  }
  return found;
}

/** A lag is a saw, since the relay tells once a second where it is: the most of some seconds shows how high it is. */
function value(points, at, name, most) {
  let found = points[at][name] ?? null;
  for (let back = at; most && found !== null && back >= 0 && points[at].at_ms - points[back].at_ms < MOST_MS; back -= 1) {
    found = Math.max(found, points[back][name] ?? 0);
  }
  return found;
}

function label(chart, point) {
  chart.series.forEach(([, name], at) => put(chart.values[at], chart.show(point[name])));
  const said = chart.series.map(([key, name]) => `${key} ${chart.show(point[name])}`).join(", ");
  chart.canvas.setAttribute("aria-label", `${chart.title} over the last minutes, ${chart.unit}. Now: ${said}.`);
}

function plot(chart, data) {
  const [accent, second, muted, grid] = ["--accent", "--second", "--muted", "--grid"].map(colour);
  const axis = { stroke: muted, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
  const options = {
    ...size(chart), legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: true, range: (_, low, high) => around(low, high ?? Date.now() / 1000) },
      y: { range: (_, low, high) => [0, high > 0 ? high * 1.15 : 1] } },
    axes: [{ ...axis, space: 80, size: 28, values: (_, ticks) => ticks.map((at) => clock(at * 1000)) }, { ...axis, size: 62, space: 34, values: (_, ticks) => ticks.map(chart.tick) }],
    series: [{}, { stroke: accent, width: 2, points: { show: false } },
      { stroke: second, width: 2, dash: [6, 4], points: { show: false } }],
    hooks: { setCursor: [(u) => {
      const at = u.cursor.idx;
      if (at === null || at === undefined) return;
      chart.series.forEach((_, s) => put(chart.values[s], chart.show(u.data[s + 1][at])));
    }] },
  };
  return new window.uPlot(options, data, chart.canvas);
}

function around(low, high) {
  return [Math.min(low ?? high, high - LEAST_S), high];
}

function size(chart) {
  return { width: chart.canvas.clientWidth || 300, height: chart.canvas.clientHeight || 170 };
}

function fit(chart) {
  chart.plot?.setSize(size(chart));
}

/** A colour of the theme as a canvas takes it. */
function colour(name) {
  const probe = h("span", {});
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
