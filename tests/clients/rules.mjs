// The rules of rules.json, which rules.py describes, with @grpc/grpc-js, from the proto alone.
//
//     node rules.mjs ADDRESS PROTO_FOLDER TOKEN NODE_MODULES

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [address, protoFolder, token, modules] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");
const rules = JSON.parse(readFileSync(new URL("rules.json", import.meta.url), "utf8"));

const definition = loader.loadSync("location/v1/location_service.proto", {
  includeDirs: [protoFolder],
  keepCase: true,
  longs: String,
  enums: String,
});
const { location } = grpc.loadPackageDefinition(definition);
const client = new location.v1.LocationService(address, grpc.credentials.createInsecure());

// The parts of google/rpc/{status,error_details}.proto that are used here.
const { root } = protobuf.parse(
  `syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message FieldViolation { string field = 1; string description = 2; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`,
  { keepCase: true },
);

// proto-loader takes messages as they are: masks and times aren't text as in the JSON of protobuf.
function message(value, name) {
  if (name === "update_mask") {
    return { paths: value.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`).split(",") };
  }
  if (name === "create_time") return { seconds: Date.parse(value) / 1000 };
  if (Array.isArray(value)) return value.map((item) => message(item));
  if (typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, message(item, key)]));
}

const kept = { run: randomUUID(), uuid: {} };
function fill(value) {
  if (Array.isArray(value)) return value.map(fill);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fill(item)]));
  }
  if (typeof value !== "string" || !value.startsWith("$") || ["$any", "$absent"].includes(value)) {
    return value;
  }
  const path = value.slice(1).split(".");
  if (path[0] === "uuid") kept.uuid[path[1]] ??= randomUUID();
  return path.reduce((found, name) => found[name], kept);
}

function matches(expected, actual) {
  if (expected === "$any") return Boolean(actual);
  if (expected === "$absent") {
    return actual === undefined || actual === null || Object.keys(actual).length === 0;
  }
  if (Array.isArray(expected)) {
    return (
      expected.length === (actual ?? []).length &&
      expected.every((item, index) => matches(item, actual[index]))
    );
  }
  if (expected !== null && typeof expected === "object") {
    return Object.entries(expected).every(([name, item]) => matches(item, actual?.[name]));
  }
  return expected === actual;
}

function call(method, request, headers) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
  return new Promise((resolve, reject) => {
    let status;
    client[method](message(request), metadata, { deadline: Date.now() + 20_000 }, (error, response) =>
      error ? reject(error) : resolve([response, status]),
    ).on("metadata", (initial) => {
      status = initial.get("cache-status")[0] ?? "";
    });
  });
}

async function check(step) {
  const headers = { authorization: `Bearer ${token}`, ...step.metadata };
  const outcome = await call(step.call, fill(step.request), headers).then(
    ([response, status]) => ({ response, status }),
    (error) => ({ error }),
  );
  if (outcome.error) {
    assert.equal(grpc.status[outcome.error.code], step.error, outcome.error.message);
    const [bytes] = outcome.error.metadata.get("grpc-status-details-bin");
    const details = {};
    for (const { type_url, value } of root.lookupType("Status").decode(bytes).details) {
      const name = type_url.split(".").pop();
      if (root.get(name)) details[name] = root.lookupType(name).decode(value);
    }
    assert.equal(details.ErrorInfo.domain, "location.v1");
    assert.equal(details.ErrorInfo.reason, step.reason);
    const fields = (details.BadRequest?.field_violations ?? []).map(({ field }) => field);
    assert.deepEqual(fields.sort(), [...(step.fields ?? [])].sort());
    const text = outcome.error.message + JSON.stringify(details.ErrorInfo.metadata);
    for (const mention of fill(step.mentions ?? [])) assert.ok(text.includes(mention), text);
    return;
  }
  assert.equal(step.error, undefined, JSON.stringify(outcome.response));
  const expected = fill(step.response);
  assert.ok(
    matches(expected, outcome.response),
    `${JSON.stringify(expected)} ${JSON.stringify(outcome.response)}`,
  );
  assert.ok(outcome.status.includes(step.cache_status ?? ""), outcome.status);
  if (step.as) kept[step.as] = outcome.response;
}

for (const [number, step] of rules.entries()) {
  try {
    await check(step);
  } catch (error) {
    throw new Error(`step ${number}, ${step.rule}, ${step.call}`, { cause: error });
  }
}
console.log(`${rules.length} steps: the session is over`);
client.close();
