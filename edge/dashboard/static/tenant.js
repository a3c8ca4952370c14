// One tenant: found by its name, shown with its position, lag, size, last transactions, quarantine and answers.

import { bytes, clock, duration, facts, h, hint, number } from "./format.js";
import { headers } from "./stream.js";

const SHOWN_ROWS = 8;
const MOMENT = /^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+.*$/;

/** A combobox: letters, arrows, Enter, Escape. `chosen`: called with a tenant. */
export class Search {
  constructor(input, list, token, chosen) {
    Object.assign(this, { input, list, token, chosen, at: -1, found: [], entered: false });
    input.addEventListener("input", () => { this.found = []; this.entered = false; this.ask(); });
    input.addEventListener("focus", () => this.ask());
    input.addEventListener("keydown", (event) => this.key(event));
    input.addEventListener("blur", () => this.close());
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const at = [...list.children].indexOf(event.target.closest("li"));
      if (this.found[at]) this.choose(this.found[at]);
    });
  }

  async ask() {
    const text = this.input.value.trim();
    const response = await fetch(`tenants?search=${encodeURIComponent(text)}`, { headers: headers(this.token()) });
    if (!response.ok || text !== this.input.value.trim() || document.activeElement !== this.input) return;
    const { result, result_info: info } = await response.json();
    this.found = result;
    this.at = result.length ? 0 : -1;
    if (this.entered && result.length) { this.choose(result[0]); return; }
    const rest = info.total_count - result.length;
    this.list.replaceChildren(
      ...result.map(({ tenant }, at) => h("li", { role: "option", id: `found-${at}` }, tenant)),
      ...(result.length === 0 ? [h("li", { class: "none" }, "No such tenant here")] : []),
      ...(rest > 0 ? [h("li", { class: "none" }, `and ${number(rest)} more`)] : []));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.mark();
  }

  mark() {
    this.found.forEach((_, at) => this.list.children[at].setAttribute("aria-selected", String(at === this.at)));
    if (this.at < 0) { this.input.removeAttribute("aria-activedescendant"); return; }
    this.input.setAttribute("aria-activedescendant", `found-${this.at}`);
    this.list.children[this.at].scrollIntoView({ block: "nearest" });
  }

  key(event) {
    if (event.key === "Escape") this.close();
    else if (event.key === "Enter") {
      // letters that nobody has answered yet: what they find is meant, not what stands there
      if (this.found[this.at]) this.choose(this.found[this.at]);
      else this.entered = true;
    }
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (this.list.hidden) { this.ask(); event.preventDefault(); return; }
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (this.found.length) this.at = (this.at + step + this.found.length) % this.found.length;
      this.mark();
    } else return;
    event.preventDefault();
  }

  choose(found) {
    this.input.value = found.tenant;
    this.entered = false;
    this.close();
    this.chosen(found.tenant);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }
}

/** What is told of the tenant, and questions to its replica, asked again when the tenant has changed. */
export class Tenant {
  constructor(place, answers, token) {
    Object.assign(this, { place, answers, token, questions: [], account: "-", question: 0, rows: new Set(), name: null });
  }

  async learn() {
    const response = await fetch("questions", { headers: headers(this.token()) });
    if (!response.ok) return;
    const { result } = await response.json();
    this.questions = result.questions;
    this.account = result.account;
    if (this.shown) this.ask();
  }

  wait(name) {
    this.name = name;
    this.rows = new Set();
    this.answers.hidden = true;
    this.shown = false;
    this.place.replaceChildren(h("p", { class: "muted" }, "Asking for ", h("b", {}, name), " …"));
  }

  missing({ tenant, why }) {
    this.place.replaceChildren(h("p", { class: "notice" }, why ?? `${tenant} has no replica here, or your token does not see it.`));
  }

  show(now) {
    const { detail } = now;
    if (detail.tenant !== this.name) return;
    const { place, quarantine, failure } = detail;
    const state = { ready: "good", copying: "warn", stale: "warn", quarantined: "bad", unreadable: "bad" }[detail.state];
    this.place.replaceChildren(
      h("p", { class: "name" }, detail.tenant, h("span", { class: `pill ${state}` }, detail.state)),
      ...(quarantine ? [notice(`Stopped at ${quarantine.position}, since ${new Date(quarantine.since_ms).toLocaleString("en-GB")}: ${quarantine.error}: ${quarantine.reason}`, quarantine.hint)] : []),
      ...(failure ? [notice(failure.message, failure.hint)] : []),
      facts({
        position: place ? h("span", {}, h("span", { class: "mono" }, `${place.generation}:${place.lsn}`), place.commit_time_us ? `, committed ${clock(place.commit_time_us / 1000)}` : "") : "–",
        complete: now.reached_lsn ? h("span", {}, "up to ", h("span", { class: "mono" }, now.reached_lsn)) : null,
        lag: detail.state === "quarantined" ? "stands still" : now.lag_ms === null ? null : `at most ${duration(now.lag_ms)} behind Postgres`,
        size: `${bytes(detail.bytes)}, and ${bytes(detail.wal_bytes)} of SQLite WAL`,
        partition: String(detail.partition),
        rows: detail.tables.length ? `${number(detail.tables.reduce((sum, t) => sum + t.rows, 0))} in ${detail.tables.length} tables` : null,
        "time travel": travel(now.time_travel),
      }),
      h("h3", {}, "Last transactions"), transactions(now.transactions));
    this.shown = true;
    this.ask();
  }

  async ask() {
    const asked = this.questions[this.question];
    if (!asked) return;
    const tenant = this.name;
    const begun = performance.now();
    const response = await fetch(`../client/v4/accounts/${this.account}/d1/database/${encodeURIComponent(tenant)}/query`, {
      method: "POST", headers: { ...headers(this.token()), "content-type": "application/json" },
      body: JSON.stringify({ sql: asked.sql, params: asked.params ?? [] }) });
    const answer = await response.json();
    if (tenant !== this.name || asked !== this.questions[this.question]) return;
    const took = performance.now() - begun;
    const focused = document.activeElement?.dataset?.question;
    this.answers.hidden = false;
    this.answers.replaceChildren(h("h2", {}, `What the replica of ${tenant} answers`), this.tabs(),
      ...(answer.success ? this.answered(asked, answer.result[0], took) : [h("p", { class: "notice" }, answer.errors[0].message)]));
    if (focused !== undefined) this.answers.querySelector(`[data-question="${focused}"]`)?.focus();
  }

  tabs() {
    return h("div", { class: "tabs" }, ...this.questions.map(({ title }, at) => h("button", {
      type: "button", class: "small", "data-question": at, "aria-pressed": String(at === this.question),
      onclick: () => { this.question = at; this.rows = new Set(); this.ask(); } }, title)));
  }

  answered(asked, { results: rows, meta }, took) {
    const columns = asked.shown?.length ? asked.shown : Object.keys(rows[0] ?? {});
    const known = this.rows;
    const shown = rows.slice(0, SHOWN_ROWS).map((row) => columns.map((name) => cell(row[name])));
    this.rows = new Set(shown.map(String));
    return [
      h("p", { class: "muted" }, `${number(rows.length)} rows: ${duration(meta.duration)} in the replica, ${duration(took)} until they were here`),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": asked.title }, h("table", { class: "left" },
        h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, ...shown.map((cells) => h("tr", { class: known.size && !known.has(String(cells)) ? "fresh" : false },
          ...cells.map((text) => h("td", {}, text))))))),
    ];
  }
}

function cell(value) {
  const text = value === null || value === undefined ? "" : String(value).replace(MOMENT, "$1");
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}

function notice(what, fix) {
  return h("div", { class: "notice" }, h("p", {}, h("b", {}, what)), h("p", {}, ...hint(fix)));
}

function travel(found) {
  if (found === null) return "off: no snapshots are kept";
  if (found.error) return found.message;
  const served = found.served === null ? "" : `; pinned to ${found.served}`;
  return `back to ${found.since ? new Date(found.since).toLocaleString("en-GB") : "what the log has"}, ${found.snapshots} snapshots${served}`;
}

function transactions(found) {
  if (!Array.isArray(found)) return notice(found.message, found.hint);
  if (!found.length) return h("p", { class: "muted" }, "None among the newest records of the log.");
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Last transactions" }, h("table", { class: "left" },
    h("thead", {}, h("tr", {}, ...["Committed", "LSN", "xid", "Rows"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...found.toReversed().map((one) => h("tr", {},
      h("td", {}, clock(one.commit_time ?? one.time)), h("td", { class: "mono" }, one.lsn), h("td", {}, one.xid ? String(one.xid) : "–"),
      h("td", {}, changed(one)))))));
}

function changed(one) {
  if (one.kind === "truncate") return `truncate ${one.tables.join(", ")}`;
  const tables = Object.entries(one.rows ?? {}).map(([table, ops]) => `${table}: ${Object.entries(ops).map(([op, count]) => `${count} ${op}`).join(", ")}`);
  return `${one.kind === "changes" ? "" : `${one.kind} `}${tables.join("; ")}`;
}
