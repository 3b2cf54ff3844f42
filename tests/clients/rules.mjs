// The rules of rules.json, which rules.py describes, with @grpc/grpc-js, generated only from the proto.
//
//     node rules.mjs ADDRESS PROTO_FOLDER TOKEN NODE_MODULES

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

import { authorized, detailsOf, grpc, loadService, unary } from "./common.mjs";

const [address, protoFolder, token] = process.argv.slice(2);
const rules = JSON.parse(readFileSync(new URL("rules.json", import.meta.url), "utf8"));

const LocationService = loadService(protoFolder, { longs: String });
const client = new LocationService(address, grpc.credentials.createInsecure());

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

async function check(step) {
  const request = message(fill(step.request));
  const options = { deadline: Date.now() + 20_000 };
  const metadata = authorized(token, step.metadata);
  const outcome = await unary(client, step.call, request, metadata, options).then(
    ([response, status]) => ({ response, status }),
    (error) => ({ error }),
  );
  if (outcome.error) {
    assert.equal(grpc.status[outcome.error.code], step.error, outcome.error.message);
    const details = detailsOf(outcome.error);
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
  const status = outcome.status ?? "";
  assert.ok(status.includes(step.cache_status ?? ""), status);
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
