'use strict';
// Between the two protocols of Prisma's query engine: prisma-client-py speaks GraphQL, the WebAssembly build JSON.
const { parse, Kind } = require('graphql');

// ---- Requests: GraphQL documents to JSON queries ----

function value(node) {
  switch (node.kind) {
    case Kind.NULL:
      return null;
    case Kind.BOOLEAN:
    case Kind.STRING:
    case Kind.ENUM:
      return node.value;
    case Kind.INT: {
      const number = Number(node.value);
      return Number.isSafeInteger(number) ? number : { $type: 'BigInt', value: node.value };
    }
    case Kind.FLOAT:
      return Number(node.value);
    case Kind.LIST:
      return node.values.map(value);
    case Kind.OBJECT:
      return Object.fromEntries(node.fields.map((field) => [field.name.value, value(field.value)]));
    default:
      throw new Error(`unsupported GraphQL value ${node.kind}`);
  }
}

function argumentsOf(field) {
  return Object.fromEntries((field.arguments || []).map((argument) => [argument.name.value, value(argument.value)]));
}

function selection(set) {
  const selected = {};
  for (const field of set ? set.selections : []) {
    if (field.kind !== Kind.FIELD) throw new Error(`unsupported selection ${field.kind}`);
    const given = argumentsOf(field);
    const nested = field.selectionSet || Object.keys(given).length > 0;
    selected[field.name.value] = nested ? { arguments: given, selection: selection(field.selectionSet) } : true;
  }
  return selected;
}

// In GraphQL a Json field is given as a string of JSON text. In the JSON protocol a bare string would mean "the JSON
// string", so such text must be tagged, which takes the data model to know which fields are Json.
const JSON_TEXT_OPERATORS = new Set([
  'set', 'equals', 'not', 'array_contains', 'array_starts_with', 'array_ends_with', 'lt', 'lte', 'gt', 'gte',
]);
const JSON_NULLS = new Set(['JsonNull', 'DbNull', 'AnyNull']);

function tagText(given) {
  if (typeof given !== 'string') return given;
  return JSON_NULLS.has(given) ? { $type: 'Enum', value: given } : { $type: 'Json', value: given };
}

function isPlainObject(given) {
  return given !== null && typeof given === 'object' && !Array.isArray(given) && !given.$type;
}

function tagJsonField(given) {
  if (!isPlainObject(given)) return tagText(given);
  return Object.fromEntries(
    Object.entries(given).map(([operator, operand]) =>
      [operator, JSON_TEXT_OPERATORS.has(operator) ? tagText(operand) : operand]));
}

function tagArguments(given, model, models) {
  if (Array.isArray(given)) return given.map((item) => tagArguments(item, model, models));
  if (!isPlainObject(given)) return given;
  const fields = models.get(model) || new Map();
  return Object.fromEntries(
    Object.entries(given).map(([name, inner]) => {
      const type = fields.get(name);
      if (type === 'Json') return [name, tagJsonField(inner)];
      return [name, tagArguments(inner, models.has(type) ? type : model, models)];
    }));
}

// The arguments of the root field and, below it, of included relations.
function tagQuery(query, model, models) {
  query.arguments = tagArguments(query.arguments, model, models);
  const fields = models.get(model) || new Map();
  for (const [name, inner] of Object.entries(query.selection)) {
    if (inner === true) continue;
    const type = fields.get(name);
    tagQuery(inner, models.has(type) ? type : model, models);
  }
  return query;
}

const ACTIONS = [
  'findUnique', 'findFirst', 'findMany', 'createOne', 'createMany', 'updateOne', 'updateMany', 'deleteOne',
  'deleteMany', 'upsertOne', 'aggregate', 'groupBy',
];
const RAW_ACTIONS = new Set(['queryRaw', 'executeRaw']);

// "findUniqueLiteLLM_UserTableOrThrow" names both the action and the model.
function actionAndModel(name, models) {
  const strict = name.endsWith('OrThrow') ? 'OrThrow' : '';
  const stem = name.slice(0, name.length - strict.length);
  for (const action of ACTIONS) {
    const model = stem.slice(action.length);
    if (stem.startsWith(action) && models.has(model)) return { action: action + strict, modelName: model };
  }
  throw new Error(`unknown root field ${name}`);
}

/** One GraphQL document as a list of `{alias, name, query}`, `query` being what the engine's JSON protocol takes. */
function requests(document, models) {
  const [operation] = parse(document, { noLocation: true }).definitions;
  return operation.selectionSet.selections.map((field) => {
    const name = field.name.value;
    const alias = field.alias ? field.alias.value : name;
    const query = { arguments: argumentsOf(field), selection: selection(field.selectionSet) };
    if (RAW_ACTIONS.has(name)) return { alias, name, query: { action: name, query } };
    const { action, modelName } = actionAndModel(name, models);
    return { alias, name, query: { modelName, action, query: tagQuery(query, modelName, models) } };
  });
}

// ---- Replies: JSON results to GraphQL results ----

function untag(given) {
  if (given === null || typeof given !== 'object') return given;
  if (Array.isArray(given)) return given.map(untag);
  if (typeof given.$type === 'string' && 'value' in given) {
    return given.$type === 'RawJson' ? given.value : untag(given.value);
  }
  return Object.fromEntries(Object.entries(given).map(([name, inner]) => [name, untag(inner)]));
}

// Engines up to 5.4, which prisma-client-py 0.11 was written for, give each raw cell with its type.
function rawCell(type, cell) {
  if (cell === null) return { prisma__type: 'null', prisma__value: null };
  if (type.endsWith('-array') && Array.isArray(cell)) {
    const inner = type.slice(0, -'-array'.length);
    return { prisma__type: 'array', prisma__value: cell.map((item) => rawCell(inner, item)) };
  }
  return { prisma__type: type, prisma__value: cell };
}

function rawRows(result) {
  const table = result && result.$type === 'RawJson' ? result.value : result;
  if (!table || !Array.isArray(table.rows)) return table;
  return table.rows.map((row) =>
    Object.fromEntries(row.map((cell, index) => [table.columns[index], rawCell(table.types[index], cell)])));
}

/** The engine's answer to one request, as prisma-client-py expects it; errors go through as they are. */
function reply(answer, request) {
  if (answer.errors || !answer.data) return answer;
  const data = answer.data;
  const result = request.name in data ? data[request.name] : Object.values(data)[0];
  return { data: { [request.alias]: request.name === 'queryRaw' ? rawRows(result) : untag(result) } };
}

/** Model name -> field name -> type name, read from a Prisma schema. */
function readModels(schema) {
  const models = new Map();
  for (const [, name, block] of schema.matchAll(/^\s*model\s+(\w+)\s*\{([\s\S]*?)^\s*\}/gm)) {
    models.set(name, new Map([...block.matchAll(/^\s*(\w+)\s+(\w+)/gm)].map(([, field, type]) => [field, type])));
  }
  return models;
}

module.exports = { requests, reply, readModels };
