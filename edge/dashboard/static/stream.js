// Server-sent events by fetch, since EventSource cannot send a token. Connects again by itself, after growing pauses.

const FIRST_MS = 500;
const LONGEST_MS = 10_000;

export class Refused extends Error {}

/** The headers of who asks. */
export function headers(token) {
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** Told until `abort` is called. `on`: {event(kind, value), up(), down(reason), refused(message)}. */
export function listen(token, tenant, on) {
  const controller = new AbortController();
  run(controller.signal, token, tenant, on);
  return { abort: () => controller.abort() };
}

async function run(signal, token, tenant, on) {
  let pause = FIRST_MS;
  while (!signal.aborted) {
    try {
      const query = tenant === null ? "" : `?tenant=${encodeURIComponent(tenant)}`;
      const response = await fetch(`events${query}`, { headers: headers(token), signal, cache: "no-store" });
      if (!response.ok) throw await whyNot(response);
      pause = FIRST_MS;
      on.up();
      await read(response.body, on);
      if (!signal.aborted) on.down("The server has ended the stream");
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) { on.refused(error.message); return; }
      on.down(error.message);
    }
    await new Promise((resolve) => { setTimeout(resolve, pause); signal.addEventListener("abort", resolve, { once: true }); });
    pause = Math.min(pause * 2, LONGEST_MS);
  }
}

async function whyNot(response) {
  let message = response.statusText || `status ${response.status}`;
  try { message = (await response.json()).errors[0].message; } catch { /* not in our envelope */ }
  return response.status >= 500 ? new Error(message) : new Refused(message);
}

async function read(body, on) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) deliver(part, on);
  }
}

function deliver(part, on) {
  let kind = "message";
  let data = "";
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data) on.event(kind, JSON.parse(data));
}
