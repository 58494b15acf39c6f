'use strict';
// The engine's way to PostgreSQL: a pool of node-postgres connections behind Prisma's driver adapter.
const { Pool, Client } = require('pg');
const { PrismaPg } = require('@prisma/adapter-pg');
const { bindAdapter } = require('@prisma/driver-adapter-utils');

// The adapter refuses some catalogue types (name, regclass, ...) that the native engine reads as text, and their arrays.
const TEXT = 25;
const TEXT_ARRAY = 1009;
const READ_AS = { 18: TEXT, 19: TEXT, 194: TEXT, 829: TEXT, 2205: TEXT, 2206: TEXT, 2278: TEXT, 3614: TEXT,
  1002: TEXT_ARRAY, 1003: TEXT_ARRAY, 2210: TEXT_ARRAY };
const readAs = (type) => READ_AS[type] || type;

function readCatalogueTypesAsText() {
  const query = Client.prototype.query;
  Client.prototype.query = function (config, values, callback) {
    const fromAdapter = config && typeof config === 'object' && config.types && config.rowMode === 'array';
    if (!fromAdapter) return query.apply(this, arguments);
    const parser = config.types.getTypeParser;
    const types = { getTypeParser: (type, format) => parser(readAs(type), format) };
    const relabel = (result) => {
      for (const field of (result && result.fields) || []) field.dataTypeID = readAs(field.dataTypeID);
      return result;
    };
    if (typeof values === 'function') {
      return query.call(this, { ...config, types }, (error, result) => values(error, relabel(result)));
    }
    if (typeof callback === 'function') {
      return query.call(this, { ...config, types }, values, (error, result) => callback(error, relabel(result)));
    }
    return query.call(this, { ...config, types }, values).then(relabel);
  };
}

// Parameters of the URL that are Prisma's, not PostgreSQL's.
const OURS = ['connection_limit', 'pool_timeout', 'schema', 'pgbouncer', 'connect_timeout', 'socket_timeout',
  'statement_cache_size', 'max_idle_connection_lifetime', 'max_connection_lifetime'];

/** `DATABASE_URL`, or what prisma-client-py puts over it, as node-postgres takes it. */
function settings(environment) {
  let url = environment.DATABASE_URL;
  const override = environment.OVERWRITE_DATASOURCES;
  if (override) {
    const text = override.trimStart().startsWith('[') ? override : Buffer.from(override, 'base64').toString();
    const [source] = JSON.parse(text);
    if (source && source.url) url = source.url;
  }
  if (!url) throw new Error('DATABASE_URL is not set');
  // Node's URL refuses the empty host of a URL for a Unix socket.
  const parsed = new URL(url.replace(/^(\w+:\/\/(?:[^@/?#]*@)?)(?=\/)/, '$1localhost'));
  const parameters = parsed.searchParams;
  const max = Number(parameters.get('connection_limit')) || 10;
  const wait = Number(parameters.get('pool_timeout')) || 10;
  const schema = parameters.get('schema') || undefined;
  for (const name of OURS) parameters.delete(name);
  return { pool: { connectionString: parsed.toString(), max, connectionTimeoutMillis: wait * 1000 }, schema };
}

/** `{pool, adapter}` for the database that the environment names. */
function connect(environment) {
  readCatalogueTypesAsText();
  const { pool: options, schema } = settings(environment);
  const pool = new Pool(options);
  // A connection that breaks while idle (PostgreSQL restarts) is replaced by the pool; without a listener Node would end.
  pool.on('error', (error) => console.error('query-engine: idle connection lost:', error.message));
  return { pool, adapter: bindAdapter(new PrismaPg(pool, schema ? { schema } : undefined)) };
}

module.exports = { connect };
