import { getTenantId } from "../tenant.mjs";

export default {
  async fetch(request, env) {
    const db = env[`D1_${getTenantId(request)}`];

    const menuItems = await db.prepare(
      "SELECT * FROM menu_items WHERE active = 1 ORDER BY sort_order"
    ).all();

    return Response.json(menuItems.results);
  },
};
