// The whole pipeline: what needs a person, five stages, four figures, all partitions.

import { between, bytes, commandIn, duration, facts, h, hint, number, put, rate } from "./format.js";

const LATE_MS = 5000;
const SOON_S = 1800;
const SHORT_S = 86_400;

/** Problems. One that only says another number stays where it is, with whatever has the focus in it. */
export function showProblems(place, problems) {
  place.hidden = problems.length === 0;
  const kinds = problems.map(({ problem, fix }) => problem.replace(/[0-9.,]+/g, "#") + fix).join("\n");
  if (place.dataset.kinds === kinds) {
    problems.forEach(({ problem }, at) => put(place.children[at].querySelector(".what"), ended(problem)));
    return;
  }
  place.dataset.kinds = kinds;
  place.replaceChildren(...problems.map(({ problem, fix }) => {
    const command = commandIn(fix);
    return h("div", { class: "problem" },
      h("span", { class: "mark", "aria-hidden": "true" }, "!"),
      h("p", { class: "what" }, ended(problem)),
      h("p", { class: "fix" }, ...hint(fix)),
      command && h("div", { class: "do" }, copier(command)));
  }));
}

function copier(command) {
  const button = h("button", { type: "button", class: "small", "aria-label": `Copy: ${command}`,
    onclick: async () => { await navigator.clipboard?.writeText(command); button.textContent = "Copied"; } }, "Copy command");
  return button;
}

function ended(text) {
  return /[.?!]$/.test(text) ? text : `${text}.`;
}

export function showState(pill, problems) {
  pill.hidden = false;
  pill.className = `pill ${problems.length ? "bad" : "good"}`;
  put(pill, problems.length === 0 ? "Nothing needs you" : problems.length === 1 ? "1 problem" : `${problems.length} problems`);
}

export function showFlow(place, frame) {
  const stages = [source(frame), relay(frame), log(frame), appliers(frame), replicas(frame)];
  place.replaceChildren(...stages.map(({ name, state, now, pairs }) =>
    h("li", { class: `card stage ${state}` },
      h("div", { class: "name" }, h("span", {}, name), h("span", { class: "now" }, now)), facts(pairs))));
}

function source({ status: { source }, point }) {
  const lost = ["invalidated", "missing", "foreign"].includes(source.state);
  const state = source.failure || lost ? "bad" : source.state === "active" && source.wal_status !== "unreserved" ? "good" : "warn";
  const now = source.failure ? "no answer" : { active: "slot is read", inactive: "slot is not read",
    invalidated: "slot is lost", missing: "no slot", foreign: "foreign slot" }[source.state] ?? "–";
  return { name: "Postgres", state, now, pairs: {
    WAL: mono(source.wal_lsn), written: point.wal_bytes_s === null ? "–" : `${bytes(Math.round(point.wal_bytes_s))}/s`,
    confirmed: mono(source.confirmed_flush_lsn), "not confirmed": bytes(source.lag_bytes), "WAL kept": bytes(source.retained_bytes) } };
}

function relay({ status }) {
  const process = status.processes.find((p) => p.stage === "relay");
  const told = process?.status;
  return { name: "Relay", ...stateOf(process), pairs: {
    received: mono(told?.received_lsn), "not received": bytes(between(told?.received_lsn, status.source.wal_lsn)),
    transactions: number(told?.transactions), rows: number(told?.rows), "rows copied": told?.copied_rows ? number(told.copied_rows) : null } };
}

function log({ status: { log, processes }, at_ms: at }) {
  const told = processes.find((p) => p.stage === "relay")?.status;
  const since = told?.progress_time_us ? Math.max(0, at - told.progress_time_us / 1000) : null;
  return { name: "Log", state: log.failure ? "bad" : "good", now: log.failure ? "no answer" : log.kind, pairs: {
    durable: mono(told?.durable_lsn), "not durable": bytes(between(told?.durable_lsn, told?.received_lsn)), "time behind": duration(since),
    records: number(log.records), size: log.size_bytes === null ? null : bytes(log.size_bytes) } };
}

function appliers({ status, lag, point }) {
  const all = status.processes.filter((p) => p.stage === "applier");
  const running = all.filter((p) => p.state === "running");
  const troubled = all.find((p) => stateOf(p).state !== "good");
  const late = point.behind > 0 && point.lag_ms > LATE_MS;
  const { state, now } = stateOf(troubled ?? all[0]);
  return { name: all.length > 1 ? "Appliers" : "Applier", state: late && state === "good" ? "warn" : state,
    now: late && state === "good" ? "behind" : all.length > 1 ? `${running.length} of ${all.length} run` : now, pairs: {
      "records behind": number(lag.behind), "WAL behind": bytes(point.behind_bytes), "time behind": duration(point.lag_ms),
      applied: mono(lowest(lag.partitions)), rows: number(running.reduce((sum, p) => sum + (p.status?.rows ?? 0), 0)) } };
}

/** The lowest applied LSN of all partitions. */
function lowest(partitions) {
  const known = partitions.map((p) => p.applied_lsn).filter(Boolean);
  return known.reduce((low, lsn) => (low === null || between(lsn, low) > 0 ? lsn : low), null);
}

function replicas({ status: { replicas, processes }, time_travel_days: days }) {
  const stopped = replicas.quarantined.length;
  const edge = processes.find((p) => p.stage === "edge" && p.state === "running");
  const state = replicas.failure ? "bad" : stopped || replicas.stale ? "warn" : "good";
  const now = replicas.failure ? "no answer" : stopped ? `${number(stopped)} quarantined` : replicas.stale ? "stale" : "served";
  return { name: "Replicas", state, now, pairs: {
    tenants: number(replicas.count), size: bytes(replicas.bytes), "time travel": days === null ? "off" : `${days} days back`,
    edge: edge?.status ? `${edge.status.workers} worker${edge.status.workers === 1 ? "" : "s"}` : "–" } };
}

function stateOf(process) {
  if (!process) return { state: "warn", now: "has not run here" };
  if (process.state === "running") return process.failure ? { state: "warn", now: "is waiting" } : { state: "good", now: process.status?.phase ?? "running" };
  return { state: "bad", now: { stopped: "stopped", failed: "has ended", dead: "is dead" }[process.state] };
}

function mono(text) {
  return text ? h("span", { class: "mono" }, text) : "–";
}

export function showTiles(place, { point, status: { source }, wal_budget_s: left }) {
  const late = point.behind > 0 && point.lag_ms > LATE_MS;
  place.replaceChildren(
    tile("Commit to visible, p50", duration(point.visible_p50_ms), `p99 ${duration(point.visible_p99_ms)}, in the last second with changes`),
    tile("Not applied", late ? duration(point.lag_ms) : `${number(point.behind)} records`,
      late ? `${number(point.behind)} records, ${bytes(point.behind_bytes)} of WAL` : `at most, and ${bytes(point.behind_bytes)} of WAL: told once a second`, late ? "bad" : ""),
    budget(source, left),
    tile("Rows applied", rate(point.applied_rows_s), `${rate(point.relayed_rows_s)} relayed; requests: ${rate(point.requests_s)}`));
}

function budget(source, left) {
  const label = "WAL budget of the slot";
  if (source.state === "invalidated") return tile(label, "lost", "Postgres has given the slot up", "bad");
  if (source.failure || source.state === "missing") return tile(label, "–", source.failure ? "Postgres does not answer" : "there is no slot", "bad");
  if (source.safe_wal_size === null) return tile(label, "no limit", "max_slot_wal_keep_size is not set", "");
  const soon = left !== null && left < SOON_S;
  const note = left === null ? "does not shrink" : `used up in ${duration(left * 1000)} as things go`;
  return tile(label, `${bytes(Math.max(0, source.safe_wal_size))}`, note, soon || source.safe_wal_size <= 0 ? "bad" : left !== null && left < SHORT_S ? "warn" : "");
}

function tile(label, figure, note, state = "") {
  return h("div", { class: `card tile ${state}` }, h("p", { class: "label" }, label), h("p", { class: "figure" }, figure), h("p", { class: "note" }, note));
}

/** A row each, made once; only cells that changed are touched. */
export function showPartitions(body, { lag, at_ms: at }) {
  while (body.rows.length > lag.partitions.length) body.deleteRow(-1);
  lag.partitions.forEach((p, number_) => {
    const row = body.rows[number_] ?? body.appendChild(h("tr", {}, ...Array.from({ length: 5 }, (_, c) => h("td", { class: c === 4 ? "mono wide" : false }))));
    const behindMs = p.applied_time_us === null ? null : Math.max(0, at - p.applied_time_us / 1000);
    row.className = p.behind > 0 && behindMs > LATE_MS ? "late" : "";
    [p.partition, number(p.behind), bytes(p.behind_bytes), duration(behindMs), p.applied_lsn ?? "not applied here"]
      .forEach((text, c) => put(row.cells[c], String(text)));
  });
}
