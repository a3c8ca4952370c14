import { getTenantId } from "../tenant.mjs";

export default {
  async fetch(request, env) {
    const db = env[`D1_${getTenantId(request)}`];

    const flags = await db.prepare(
      "SELECT key, value FROM feature_flags"
    ).all();

    const flagMap = Object.fromEntries(
      flags.results.map(f => [f.key, JSON.parse(f.value)])
    );

    return Response.json(flagMap);
  },
};
