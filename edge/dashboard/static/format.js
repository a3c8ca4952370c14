// Numbers and elements for people. The words are those of `headrace status` and `headrace lag`.

const UNITS = ["bytes", "kB", "MB", "GB", "TB", "PB"];

/** 1.3 kB; a dash for null. Powers of 1000, as the command line shows them. */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let unit = 0;
  let value = count;
  while (Math.abs(value) >= 1000 && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(value < 100 ? 1 : 0) : value} ${UNITS[unit]}`;
}

export function number(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

/** 1,200/s; a dash for null. */
export function rate(value) {
  return value === null || value === undefined ? "–" : `${number(value)}/s`;
}

/** A time that passed, in milliseconds: 4.2 ms, 1.8 s, 3 min. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
  if (ms < 120_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  return ms < 172_800_000 ? `${Math.round(ms / 3_600_000)} h` : `${Math.round(ms / 86_400_000)} days`;
}

/** Bytes of WAL from one LSN to a later one; null when one is not known. */
export function between(from, to) {
  if (!from || !to) return null;
  return Math.max(0, Number(lsn(to) - lsn(from)));
}

function lsn(text) {
  const [high, low] = text.split("/");
  return (BigInt(`0x${high}`) << 32n) + BigInt(`0x${low}`);
}

/** 12:03:07 of an ISO 8601 time, or of Unix milliseconds, in the browser's zone. */
export function clock(text) {
  return text ? new Date(text).toLocaleTimeString("en-GB") : "–";
}

/** An element: h("p", {class: "note"}, "text", child). No markup is ever parsed. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A hint as it is written: what is between backticks is a command. */
export function hint(text) {
  return text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part)).filter((part) => part !== "");
}

/** The first whole command of a hint, or null. */
export function commandIn(text) {
  return text.split("`").filter((_, at) => at % 2).find((part) => part.startsWith("headrace ") && !/[A-Z]{3}|\.\.\./.test(part)) ?? null;
}

/** Puts text there, and touches nothing when it is there already. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** <dt>, <dd> pairs; what is null is left out. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, ...Object.entries(pairs).filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
