// D1 as Miniflare runs it (workerd's own engine): makes the tables, then answers each statement, one JSON line each.
// stdin: {"setup": [sql, ...], "asked": [{"sql": ..., "params": [...]}, ...]}
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.argv[2] + "/package.json");
const { Miniflare } = require("miniflare");
const { setup, asked } = JSON.parse(readFileSync(0, "utf8"));

const script = `export default { async fetch(request, env) {
  const { sql, params } = await request.json();
  try {
    const done = await env.DB.prepare(sql).bind(...params).all();
    const raw = await env.DB.prepare(sql).bind(...params).raw({ columnNames: true });
    return Response.json({ results: done.results, raw, meta: done.meta });
  } catch (error) {
    return Response.json({ error: error.message });
  }
} }`;

const miniflare = new Miniflare({ modules: true, script, compatibilityDate: "2026-01-01", d1Databases: { DB: "acme" } });
const database = await miniflare.getD1Database("DB");
for (const sql of setup) await database.prepare(sql).run();
for (const body of asked) {
  const answer = await miniflare.dispatchFetch("http://d1/", { method: "POST", body: JSON.stringify(body) });
  console.log(JSON.stringify(await answer.json()));
}
await miniflare.dispose();
