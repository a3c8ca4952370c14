// The page: who looks, what is told, light or dark. Everything that is shown comes by one stream.

import { Charts } from "./charts.js";
import { put } from "./format.js";
import { showFlow, showPartitions, showProblems, showState, showTiles } from "./pipeline.js";
import { listen } from "./stream.js";
import { Search, Tenant } from "./tenant.js";

const TOKEN = "headrace-token";
const THEME = "headrace-theme";
const $ = (id) => document.getElementById(id);

let token = null;
let tenantName = null;
let stream = null;
let charts = null;
let learned = false;

const tenant = new Tenant($("tenant"), $("answers"), () => token);
new Search($("search"), $("found"), () => token, choose);

// --- who looks ---

function begin() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("token")) sessionStorage.setItem(TOKEN, given.get("token"));
  token = sessionStorage.getItem(TOKEN);
  tenantName = given.get("tenant");
  $("search").value = tenantName ?? "";
  remember();
  connect();
}

/** The address names the tenant, and never holds a token. */
function remember() {
  const hash = tenantName === null ? "" : `#tenant=${encodeURIComponent(tenantName)}`;
  history.replaceState(null, "", `${location.pathname}${hash}`);
}

function connect() {
  stream?.abort();
  if (tenantName !== null) tenant.wait(tenantName);
  stream = listen(token, tenantName, {
    event: (kind, value) => told[kind]?.(value),
    up: () => live(true, "live"),
    down: (reason) => live(false, `not connected: ${reason}`),
    refused,
  });
}

function refused(message) {
  if (tenantName !== null && token !== null && learned) { tenant.missing({ tenant: tenantName }); tenantName = null; remember(); stream = null; connect(); return; }
  $("refused").hidden = token === null;
  put($("refused"), token === null ? "" : `The server refuses this token: ${message}.`);
  sessionStorage.removeItem(TOKEN);
  token = null;
  show(false);
  $("token").value = "";
  $("token").focus();
}

function show(inside) {
  $("login").hidden = inside;
  for (const id of ["board", "leave", "live"]) $(id).hidden = !inside;
  if (!inside) $("state").hidden = true;
}

function live(on, text) {
  $("live").className = on ? "live" : "live off";
  put($("live"), text);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem(TOKEN, token);
  connect();
});

$("leave").addEventListener("click", () => {
  stream?.abort();
  sessionStorage.removeItem(TOKEN);
  location.replace(location.pathname);
});

// --- what is told ---

const told = {
  access({ all, tenants }) {
    show(true);
    $("overall").hidden = !all;
    $("partitions-card").hidden = !all;
    $("tenant").closest(".halves").classList.toggle("alone", !all);
    charts ??= all ? new Charts($("charts")) : null;
    if (!learned) { learned = true; tenant.learn(); }
    if (!all && tenantName === null && tenants.length === 1) choose(tenants[0]);
  },
  history: (points) => charts.history(points),
  frame(frame) {
    showState($("state"), frame.status.problems);
    showProblems($("problems"), frame.status.problems);
    showFlow($("flow"), frame);
    showTiles($("tiles"), frame);
    showPartitions($("partitions").tBodies[0], frame);
    charts.add(frame.point);
    document.title = frame.status.problems.length ? `(${frame.status.problems.length}) Headrace` : "Headrace";
  },
  failure({ message, hint }) {
    const problems = [{ problem: message, fix: hint }];
    showState($("state"), problems);
    showProblems($("problems"), problems);
  },
  tenant: (now) => tenant.show(now),
  missing: (what) => tenant.missing(what),
};

function choose(name) {
  tenantName = name;
  $("search").value = name;
  remember();
  connect();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input") && !$("board").hidden) {
    event.preventDefault();
    $("search").select();
    $("search").focus();
  }
});

// --- light or dark ---

const dark = matchMedia("(prefers-color-scheme: dark)");

function paint() {
  const chosen = localStorage.getItem(THEME);
  if (chosen) document.documentElement.dataset.theme = chosen;
  const isDark = (chosen ?? (dark.matches ? "dark" : "light")) === "dark";
  put($("theme"), isDark ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", `Use the ${isDark ? "light" : "dark"} theme`);
  charts?.repaint();
}

$("theme").addEventListener("click", () => {
  const isDark = (localStorage.getItem(THEME) ?? (dark.matches ? "dark" : "light")) === "dark";
  localStorage.setItem(THEME, isDark ? "light" : "dark");
  paint();
});
dark.addEventListener("change", paint);

addEventListener("hashchange", begin); // an address with another token, or tenant
paint();
begin();
