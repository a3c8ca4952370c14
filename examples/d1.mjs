// A Worker's D1 binding over HTTP: one tenant's database on `headrace edge`. Needs `fetch` and nothing else, so it runs in Node 20,
// in a Worker, in Deno, Bun or a browser.
//
//     const db = database("http://127.0.0.1:8787", token, "tenant-001");
//     const { results } = await db.prepare("select * from products where id = ?").bind(40).all();
//
// What is here has the names and the results of the Workers Binding API (prepare, bind, all, run, first, raw, batch, withSession), and
// what D1 throws is thrown here. On the wire it is the binding's own protocol: docs/d1-compatibility.md.

const SESSION = "x-cf-d1-session-commit-token";

/** The database of one tenant. `url`: where `headrace edge` listens; `token`: of `headrace token create`. */
export function database(url, token, tenant) {
  return new Database(`${url}/binding/${encodeURIComponent(tenant)}`, token);
}

class Database {
  constructor(base, token, bookmark, inSession = false) {
    this.base = base;
    this.token = token;
    this.bookmark = bookmark;
    this.inSession = inSession;
  }

  prepare(sql) {
    return new Statement(this, sql, []);
  }

  /** Results of several statements, all as of one commit. */
  async batch(statements) {
    const asked = statements.map(({ sql, params }) => ({ sql, params }));
    return this.ask(asked, "ARRAY_OF_OBJECTS");
  }

  /** The same database, never older than what it has answered before, nor than the bookmark or LSN given. */
  withSession(bookmark) {
    return new Database(this.base, this.token, bookmark, true);
  }

  getBookmark() {
    return this.bookmark ?? null;
  }

  async ask(asked, format) {
    const headers = { "content-type": "application/json" };
    if (this.token) headers.authorization = `Bearer ${this.token}`;
    if (this.bookmark) headers[SESSION] = this.bookmark;
    const response = await fetch(`${this.base}/query?resultsFormat=${format}`, {
      method: "POST",
      headers,
      body: JSON.stringify(asked),
    });
    const answer = await response.json();
    if (answer.error !== undefined) throw new Error(`D1_ERROR: ${answer.error}`);
    if (this.inSession) this.bookmark = response.headers.get(SESSION) ?? this.bookmark;
    return answer;
  }
}

class Statement {
  constructor(database, sql, params) {
    this.database = database;
    this.sql = sql;
    this.params = params;
  }

  bind(...values) {
    return new Statement(this.database, this.sql, values.map(bound));
  }

  async all() {
    return this.ask("ARRAY_OF_OBJECTS");
  }

  async run() {
    return this.all();
  }

  /** The first row, or one column of it; null when there is none. */
  async first(column) {
    const [row] = (await this.all()).results;
    if (row === undefined) return null;
    if (column === undefined) return row;
    if (!(column in row)) throw new Error(`D1_COLUMN_NOTFOUND: Column not found (${column})`);
    return row[column];
  }

  /** Rows as arrays, in which columns of one name are all kept. */
  async raw(options = {}) {
    const { columns, rows } = (await this.ask("ROWS_AND_COLUMNS")).results;
    return options.columnNames ? [columns, ...rows] : rows;
  }

  ask(format) {
    return this.database.ask({ sql: this.sql, params: this.params }, format);
  }
}

function bound(value) {
  if (value instanceof ArrayBuffer) return Array.from(new Uint8Array(value));
  if (ArrayBuffer.isView(value)) return Array.from(new Uint8Array(value.buffer, value.byteOffset, value.byteLength));
  if (value === null || Array.isArray(value) || ["number", "string", "boolean"].includes(typeof value)) return value;
  throw new Error(`D1_TYPE_ERROR: Type '${typeof value}' not supported for value '${value}'`);
}
