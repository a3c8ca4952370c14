import { getTenantId } from "../tenant.mjs";

export default {
  async fetch(request, env) {
    const db = env[`D1_${getTenantId(request)}`];
    const roleId = new URL(request.url).searchParams.get("role") ?? "viewer";

    // Site config in D1
    const config = await db.prepare(
      "SELECT * FROM site_config WHERE key = ?"
    ).bind("theme").first();

    // Permission sets in D1
    const permissions = await db.prepare(
      "SELECT permission FROM role_permissions WHERE role_id = ?"
    ).bind(roleId).all();

    return Response.json({ config, permissions: permissions.results });
  },
};
