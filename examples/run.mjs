// Runs one of these Workers in plain Node, for one request, and prints what it answers.
//
//     node examples/run.mjs product-catalog tenant-001
//     node examples/run.mjs tenant-configuration tenant-001 '?role=editor'
//
// EDGE_URL: where `headrace edge` listens; EDGE_TOKEN: of `headrace token create`; EDGE_BOOKMARK: a bookmark or LSN to wait for.
import { database } from "./d1.mjs";

const [example, tenant, query = ""] = process.argv.slice(2);
const { EDGE_URL = "http://127.0.0.1:8787", EDGE_TOKEN = "", EDGE_BOOKMARK } = process.env;

// A binding for each tenant there is, though none was declared: D1_<tenant> is that tenant's database.
const bindings = {
  get(settings, name) {
    if (!name.startsWith("D1_")) return settings[name];
    const db = database(EDGE_URL, EDGE_TOKEN, name.slice("D1_".length));
    return EDGE_BOOKMARK ? db.withSession(EDGE_BOOKMARK) : db;
  },
};
const env = new Proxy({ EDGE_URL, EDGE_TOKEN }, bindings);

const { default: worker } = await import(`./${example}/worker.mjs`);
const response = await worker.fetch(new Request(`https://${tenant}.example.com/${query}`), env);
console.log(JSON.stringify(await response.json(), null, 2));
