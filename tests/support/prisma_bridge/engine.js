#!/usr/bin/env node
'use strict';
// Stands in for Prisma's native `query-engine`, which prisma-client-py starts and talks to over HTTP in GraphQL. The
// engine itself is Prisma's own, the WebAssembly build in @prisma/client 5.17.0, so no binary has to be downloaded.
// It is for tests: people with internet run `prisma generate` and never see it.

const parent = process.ppid; // before anything slow: whoever started us must not be gone unnoticed
const ENGINE_VERSION = '393aa359c9ad4a4bb28630fb5613f9c281cde053';
if (process.argv.includes('--version')) {
  console.log(`query-engine ${ENGINE_VERSION}`);
  process.exit(0);
}
process.title = 'query-engine'; // LiteLLM's reaper looks for this name

const fs = require('fs');
const http = require('http');
const path = require('path');
const { requests, reply, readModels } = require('./graphql.js');
const { connect } = require('./postgres.js');

// Prisma wants a W3C trace context with every call.
const NO_TRACE = '{}';
const PARENT_CHECK_MS = 500;

class Engine {
  static async start(environment) {
    const schema = fs.readFileSync(environment.PRISMA_DML_PATH, 'utf8');
    const runtime = path.dirname(require.resolve('@prisma/client/package.json')) + '/runtime/';
    const glue = require(runtime + 'query_engine_bg.postgresql.js');
    const module = await WebAssembly.compile(fs.readFileSync(runtime + 'query_engine_bg.postgresql.wasm'));
    const { exports } = await WebAssembly.instantiate(module, { './query_engine_bg.js': glue });
    glue.__wbg_set_wasm(exports);
    const { pool, adapter } = connect(environment);
    const options = { datamodel: schema, env: environment, logQueries: false, ignoreEnvVarErrors: true,
      datasourceOverrides: {}, logLevel: 'error', configDir: '/', engineProtocol: 'json' };
    const log = (line) => { if (environment.LOG_QUERIES) console.error(line); };
    const core = new glue.QueryEngine(options, log, adapter);
    await core.connect(NO_TRACE);
    await pool.query('select 1');
    return new Engine(core, readModels(schema));
  }

  constructor(core, models) {
    this.core = core;
    this.models = models;
  }

  async ask(query, transaction) {
    return JSON.parse(await this.core.query(JSON.stringify(query), NO_TRACE, transaction));
  }

  /** A body as prisma-client-py posts it, a query or a batch of them, to the answer it expects. */
  async run(body, transaction) {
    if (Array.isArray(body.batch)) return this.batch(body, transaction);
    const data = {};
    for (const request of requests(body.query, this.models)) {
      const answer = reply(await this.ask(request.query, transaction), request);
      if (answer.errors || !answer.data) return answer;
      Object.assign(data, answer.data);
    }
    return { data };
  }

  async batch(body, transaction) {
    const batch = body.batch.map((item) => {
      const [request, ...more] = requests(item.query, this.models);
      if (more.length) throw new Error('an item of a batch has more than one root field');
      return request;
    });
    const isolated = body.transaction ? { isolationLevel: body.isolationLevel || null } : null;
    const answer = await this.ask({ batch: batch.map((request) => request.query), transaction: isolated }, transaction);
    if (!answer.batchResult) return answer;
    return { batchResult: answer.batchResult.map((result, index) => reply(result, batch[index])) };
  }

  async transaction(action, id, given) {
    let answer;
    if (action === 'start') {
      const options = { max_wait: given.max_wait ?? 2000, timeout: given.timeout ?? 5000,
        isolation_level: given.isolation_level ?? null };
      answer = await this.core.startTransaction(JSON.stringify(options), NO_TRACE);
    } else {
      answer = await this.core[`${action}Transaction`](id, NO_TRACE);
    }
    const parsed = typeof answer === 'string' && answer ? JSON.parse(answer) : {};
    return parsed.error_code ? { errors: [{ error: parsed.message, user_facing_error: parsed }] } : parsed;
  }
}

// ---- HTTP ----

function failure(message, code) {
  const error = { is_panic: false, message, meta: {}, error_code: code, batch_request_idx: null };
  return { errors: [{ error: message, user_facing_error: error }] };
}

async function read(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

/** `[status, body]` for one request; a body that is a string is sent as plain text. */
async function route(engine, request) {
  const body = await read(request);
  const [url, parameters] = request.url.split('?');
  const call = `${request.method} ${url}`;
  if (call === 'GET /status') return engine ? [200, { status: 'ok' }] : [503, { Errors: ['starting'] }];
  if (!engine) return [503, failure('the engine is starting', 'P1001')];
  if (call === 'GET /metrics') {
    const format = /prometheus/.test(parameters || '') ? 'prometheus' : 'json';
    return [200, await engine.core.metrics(JSON.stringify({ format }))];
  }
  if (call === 'POST /') return [200, await engine.run(JSON.parse(body), request.headers['x-transaction-id'])];
  if (call === 'POST /transaction/start') return [200, await engine.transaction('start', null, JSON.parse(body || '{}'))];
  const ending = /^POST \/transaction\/([^/]+)\/(commit|rollback)$/.exec(call);
  if (ending) return [200, await engine.transaction(ending[2], decodeURIComponent(ending[1]))];
  return [404, {}];
}

let engine = null;

const server = http.createServer(async (request, response) => {
  let status, body;
  try {
    [status, body] = await route(engine, request);
  } catch (error) {
    const message = String((error && error.message) || error);
    console.error('query-engine:', message.slice(0, 500));
    [status, body] = [200, failure(message, 'P2009')];
  }
  const text = typeof body === 'string';
  response.writeHead(status, { 'content-type': text ? 'text/plain' : 'application/json' });
  response.end(text ? body : JSON.stringify(body));
});

function main() {
  const flag = process.argv.indexOf('-p');
  const port = flag > 0 ? Number(process.argv[flag + 1]) : 4466;
  server.keepAliveTimeout = 75_000;
  server.listen(port, 'localhost'); // the name that prisma-client-py dials, whichever family it means here
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));
  setInterval(() => { if (process.ppid !== parent) process.exit(0); }, PARENT_CHECK_MS).unref();
  Engine.start(process.env).then(
    (started) => { engine = started; },
    (error) => {
      console.error('query-engine: could not start:', (error && error.message) || error);
      process.exit(1);
    });
}

main();
