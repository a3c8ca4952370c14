import { getTenantId } from "../tenant.mjs";

export default {
  async fetch(request, env) {
    const tenantId = getTenantId(request);
    const db = env[`D1_${tenantId}`]; // per-tenant D1 binding

    const products = await db.prepare(
      "SELECT * FROM products WHERE active = 1 ORDER BY name LIMIT 20"
    ).all();

    return Response.json(products.results);
  },
};
