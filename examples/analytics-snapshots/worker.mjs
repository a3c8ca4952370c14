import { getTenantId } from "../tenant.mjs";

export default {
  async fetch(request, env) {
    const db = env[`D1_${getTenantId(request)}`];
    const query = new URL(request.url).searchParams;
    const [startDate, endDate] = [query.get("from"), query.get("to")];

    const snapshot = await db.prepare(`
  SELECT date, revenue, transactions, avg_ticket
  FROM daily_snapshots
  WHERE date >= ? AND date <= ?
  ORDER BY date
`).bind(startDate, endDate).all();

    return Response.json(snapshot.results);
  },
};
