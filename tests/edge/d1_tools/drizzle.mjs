// A tour with drizzle: the same queries by its driver for D1 over HTTP (sqlite-proxy), and by its driver for D1 bindings.
// argv: tools' directory, examples' d1.mjs, the edge's URL, token, database. Prints {driver: {step: what came of it}}.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [tools, client, url, token, name] = process.argv.slice(2);
const require = createRequire(tools + "/package.json");
const load = (module) => import(pathToFileURL(require.resolve(module)));
const { and, asc, avg, count, desc, eq, gt, inArray, like, max, not, or, relations, sql, sum } = await load("drizzle-orm");
const { alias, integer, sqliteTable, text } = await load("drizzle-orm/sqlite-core");
const { drizzle: overHttp } = await load("drizzle-orm/sqlite-proxy");
const { drizzle: overBinding } = await load("drizzle-orm/d1");
const { database } = await import(pathToFileURL(client));

const items = sqliteTable("items", { id: integer("id").primaryKey(), a: text("a"), b: text("b") });
const plans = sqliteTable("plans", { id: integer("id").primaryKey(), a: text("a"), b: text("b") });
const itemsToPlans = relations(items, ({ one }) => ({ plan: one(plans, { fields: [items.id], references: [plans.id] }) }));
const schema = { items, plans, itemsToPlans };

// As drizzle's own pages have it for D1's HTTP API.
const base = `${url}/client/v4/accounts/any/d1/database/${name}/raw`;
async function ask(body) {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const res = await fetch(base, { method: "POST", headers, body: JSON.stringify(body) });
  const data = await res.json();
  if (data.errors.length > 0 || !data.success) throw new Error(JSON.stringify(data.errors));
  return data.result;
}
const one = async (query, params, method) => {
  const [{ results }] = await ask({ sql: query, params });
  return { rows: method === "get" ? results.rows[0] : results.rows };
};
const several = async (queries) => {
  const results = await ask({ batch: queries.map((query) => ({ sql: query.sql, params: query.params })) });
  return results.map(({ results: { rows } }, number) => ({ rows: queries[number].method === "get" ? rows[0] : rows }));
};

const drivers = {
  "sqlite-proxy": overHttp(one, several, { schema }),
  d1: overBinding(database(url, token, name), { schema }),
};

// What drizzle says is the statement; why it failed is in the cause.
const refused = (call) => call.then(() => "nothing", (error) => (error.cause ?? error).message);
const other = alias(items, "other");

async function tour(db) {
  const prepared = db.select().from(items).where(eq(items.id, sql.placeholder("id"))).prepare();
  return {
    all: await db.select().from(items).orderBy(desc(items.id)),
    columns: await db.select({ id: items.id, upper: sql`upper(${items.a})` }).from(items).where(eq(items.id, 2)),
    where: await db.select({ id: items.id }).from(items)
      .where(and(or(like(items.a, "a%"), eq(items.b, "x")), not(inArray(items.id, [1, 99])), gt(items.id, 0))).orderBy(asc(items.id)),
    page: await db.select({ id: items.id }).from(items).orderBy(items.id).limit(1).offset(1),
    get: await db.select().from(items).where(eq(items.id, 3)).get(),
    none: (await db.select().from(items).where(eq(items.id, 99)).get()) ?? null,
    values: await db.select({ id: items.id, a: items.a }).from(items).where(gt(items.id, 2)).values(),
    inner: await db.select().from(items).innerJoin(plans, eq(items.id, plans.id)),
    left: await db.select({ id: items.id, plan: plans.a }).from(items).leftJoin(plans, eq(items.id, plans.id)).orderBy(items.id),
    self: await db.select({ one: items.id, two: other.id }).from(items).innerJoin(other, gt(items.id, other.id)).orderBy(items.id, other.id),
    aggregates: await db.select({ n: count(), most: max(items.id), all: sum(items.id), mean: avg(items.id) }).from(items).get(),
    grouped: await db.select({ a: items.a, n: count() }).from(items).groupBy(items.a).having(gt(count(), 1)),
    counted: await db.$count(items, gt(items.id, 1)),
    exists: await db.select({ id: items.id }).from(items)
      .where(sql`exists ${db.select({ id: plans.id }).from(plans).where(eq(plans.id, items.id))}`),
    relation: await db.query.items.findMany({ columns: { id: true }, with: { plan: { columns: { a: true } } }, orderBy: items.id }),
    prepared: [await prepared.get({ id: 1 }), await prepared.all({ id: 2 })],
    batch: await db.batch([
      db.select({ id: items.id }).from(items).where(eq(items.id, 1)),
      db.select({ n: count() }).from(items),
      db.query.plans.findFirst(),
    ]),
    raw: await db.all(sql`select ${"é"} as t, ${1.5} as r, ${null} as n`),
    insert: await refused(db.insert(items).values({ id: 9, a: "x" })),
    update: await refused(db.update(items).set({ a: "x" }).where(eq(items.id, 1)).returning()),
    remove: await refused(db.delete(items)),
    transaction: await refused(db.transaction(async (tx) => tx.select().from(items))),
    unknown: await refused(db.select({ x: sql`nope` }).from(items)),
  };
}

const told = {};
for (const [driver, db] of Object.entries(drivers)) told[driver] = await tour(db);
console.log(JSON.stringify(told));
