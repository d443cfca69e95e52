'use strict'
// One check by name: connects where the environment says, prints its findings as one line of JSON. The test reads and judges them.

const fs = require('fs')
const { pipeline } = require('stream/promises')
const { Readable, Writable } = require('stream')
const { Client, Pool } = require('pg')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')
const copy = require('pg-copy-streams')

const options = process.env.PGSSLROOTCERT
  ? { ssl: { ca: fs.readFileSync(process.env.PGSSLROOTCERT), servername: 'localhost' }, enableChannelBinding: true }
  : {}

async function connected(work, more = {}) {
  const client = new Client({ ...options, ...more })
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

const code = (promise) => promise.then(() => null, (error) => error.code)

const checks = {
  values: () =>
    connected(async (client) => {
      const { rows, fields } = await client.query(
        "select $1::int as a, $2::text as b, $3::timestamptz as c, $4::jsonb as d, $5::bytea as e, $6::int[] as f, null as g",
        [42, 'ä世', new Date(Date.UTC(2024, 1, 29)), { x: [1, null] }, Buffer.from([0, 255]), [1, 2]]
      )
      return { row: { ...rows[0], e: rows[0].e.toString('hex') }, types: fields.map((field) => field.dataTypeID) }
    }),

  several: () =>
    connected(async (client) => {
      const results = await client.query("create temp table t (a int); insert into t values (1), (2); select sum(a)::int as s from t")
      const empty = await client.query('')
      return { commands: results.map((result) => result.command), sum: results[2].rows[0].s, empty: empty.command }
    }),

  named: () =>
    connected(async (client) => {
      const found = []
      for (let n = 0; n < 20; n++) {
        const query = { name: `named-${n % 4}`, text: `select $1::int * ${(n % 4) + 1} as v`, values: [n] }
        found.push((await client.query(query)).rows[0].v)
      }
      return found
    }),

  // Statements of the same name in several clients, interleaved: each means its own text.
  interleaved: async () => {
    const clients = Array.from({ length: 5 }, () => new Client(options))
    await Promise.all(clients.map((client) => client.connect()))
    const found = []
    for (let step = 0; step < 10; step++) {
      const texts = clients.map((client, n) => client.query({ name: 'same', text: `select ${n} * 100 + $1::int as v`, values: [step] }))
      found.push((await Promise.all(texts)).map((result) => result.rows[0].v))
    }
    await Promise.all(clients.map((client) => client.end()))
    return found
  },

  transaction: () =>
    connected(async (client) => {
      await client.query('create table node_t (a int primary key)')
      await client.query('begin')
      await client.query('insert into node_t values (1)')
      const duplicate = await code(client.query('insert into node_t values ($1)', [1]))
      const aborted = await code(client.query('select 1'))
      await client.query('rollback')
      await client.query('begin')
      await client.query('insert into node_t values ($1)', [2])
      await client.query('commit')
      return { duplicate, aborted, rows: (await client.query('select a from node_t')).rows }
    }),

  error: () =>
    connected(async (client) => {
      const error = await client.query('select $1::text, nonsense', ['x']).catch((caught) => caught)
      const again = await client.query('select 1 as a')
      return { code: error.code, position: error.position, message: error.message, alive: again.rows[0].a }
    }),

  pool: async () => {
    const pool = new Pool({ ...options, max: 4 })
    const results = await Promise.all(Array.from({ length: 100 }, (_, n) => pool.query('select $1::int as n', [n])))
    const client = await pool.connect()
    const error = await code(client.query('select 1/0'))
    client.release()
    const after = await pool.query("select 'alive' as a")
    const state = { total: pool.totalCount, waiting: pool.waitingCount }
    await pool.end()
    return { numbers: results.map((result) => result.rows[0].n), error, after: after.rows[0].a, state }
  },

  cursor: () =>
    connected(async (client) => {
      const cursor = client.query(new Cursor('select n from generate_series(1, $1::int) n', [250]))
      const sizes = []
      for (;;) {
        const rows = await cursor.read(100)
        sizes.push(rows.length)
        if (rows.length === 0) break
      }
      const second = client.query(new Cursor('select n from generate_series(1, 100000) n'))
      const first = await second.read(3)
      await second.close()
      return { sizes, first: first.map((row) => row.n), alive: (await client.query('select 1 as a')).rows[0].a }
    }),

  stream: () =>
    connected(async (client) => {
      const stream = client.query(new QueryStream('select n from generate_series(1, 5000) n', [], { batchSize: 77 }))
      let total = 0
      for await (const row of stream) total += row.n
      return total
    }),

  copy: () =>
    connected(async (client) => {
      await client.query('create table node_copied (a int, b text)')
      const lines = Array.from({ length: 20000 }, (_, n) => `${n}\tzeile ${n} ä\n`)
      await pipeline(Readable.from(lines), client.query(copy.from('copy node_copied from stdin')))
      let text = ''
      const sink = new Writable({ write(chunk, _, done) { text += chunk.toString('latin1'); done() } })
      await pipeline(client.query(copy.to('copy (select * from node_copied order by a) to stdout')), sink)
      const refused = await code(pipeline(Readable.from(['x\ty\n']), client.query(copy.from('copy node_copied from stdin'))))
      const { rows } = await client.query('select count(*)::int as n from node_copied')
      return { same: Buffer.from(text, 'latin1').toString() === lines.join(''), refused, count: rows[0].n }
    }),

  notify: () =>
    connected(async (listener) => {
      const received = []
      const all = new Promise((resolve) => {
        listener.on('notification', (message) => received.push(message.payload) === 3 && resolve())
      })
      await listener.query('listen node_news')
      await connected(async (client) => {
        for (const text of ['a', 'b', 'c']) await client.query("select pg_notify('node_news', $1)", [text])
      })
      await all
      return received
    }),

  timeout: () =>
    connected(
      async (client) => {
        const error = await code(client.query('select pg_sleep(30)'))
        return { error, alive: (await client.query('select 1 as a')).rows[0].a }
      },
      { statement_timeout: 100 }
    ),

  settings: () =>
    connected(
      async (client) => {
        const show = async (name) => Object.values((await client.query(`show ${name}`)).rows[0])[0]
        return [await show('application_name'), await show('work_mem'), await show('lock_timeout')]
      },
      { application_name: 'matrix', options: '-c work_mem=5MB', lock_timeout: 1234 }
    ),

  // Queries sent without waiting for one another; with this option node-postgres sends them at once.
  pipelined: () =>
    connected(
      async (client) => {
        const queries = Array.from({ length: 200 }, (_, n) => client.query('select $1::int as n', [n]))
        const broken = code(client.query('select 1/0'))
        const after = Array.from({ length: 5 }, (_, n) => client.query({ name: 'after', text: 'select $1::int as n', values: [n] }))
        const numbers = (await Promise.all(queries)).map((result) => result.rows[0].n)
        return { numbers, broken: await broken, after: (await Promise.all(after)).map((result) => result.rows[0].n) }
      },
      { pipeline: true }
    ),

  secure: () =>
    connected(async (client) => {
      const { rows } = await client.query('select current_user as name, length($1::text) as n', ['x'.repeat(2000000)])
      const wrong = new Client({ ...options, password: 'wrong' })
      const refused = await wrong.connect().catch((error) => ({ code: error.code, message: error.message }))
      return { ...rows[0], encrypted: client.connection.stream.encrypted, refused }
    }),
}

checks[process.argv[2]]().then(
  (found) => process.stdout.write(JSON.stringify(found)),
  (error) => {
    process.stderr.write(`${error.stack}\n`)
    process.exitCode = 1
  }
)
