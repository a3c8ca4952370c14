import { getTenantId } from "../tenant.mjs";

async function getTenantDB(accountId, databaseId, apiToken, base) {
  // Use D1 HTTP API for dynamic access
  const res = await fetch(
    `${base}/client/v4/accounts/${accountId}/d1/database/${databaseId}/query`,
    {
      method: "POST",
      headers: { Authorization: `Bearer ${apiToken}` },
      body: JSON.stringify({ sql: "SELECT * FROM products LIMIT 20" }),
    }
  );
  return res.json();
}

export default {
  async fetch(request, env) {
    return Response.json(await getTenantDB("any", getTenantId(request), env.EDGE_TOKEN, env.EDGE_URL));
  },
};
