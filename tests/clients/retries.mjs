// As retries.py, with @grpc/grpc-js, whose service config hedges reads.
//
//     node retries.mjs ADDRESS PROTO_FOLDER TOKEN SERVICE_CONFIG NODE_MODULES

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import { authorized, grpc, loadService, unary } from "./common.mjs";

const [address, protoFolder, token, serviceConfig] = process.argv.slice(2);
const RUN = "retries-node";

const LocationService = loadService(protoFolder, { longs: Number, defaults: true });
const client = new LocationService(address, grpc.credentials.createInsecure(), {
  "grpc.service_config": readFileSync(serviceConfig, "utf8"),
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 500,
});

const outcomes = {};
const acknowledged = new Set();

async function call(method, request) {
  const [response] = await unary(client, method, request, authorized(token));
  return response;
}

// Returns the response, or null if the call failed.
async function attempt(method, request) {
  try {
    const response = await call(method, request);
    outcomes.OK = (outcomes.OK ?? 0) + 1;
    return response;
  } catch (error) {
    const code = grpc.status[error.code];
    outcomes[code] = (outcomes[code] ?? 0) + 1;
    // The client itself calls a broken stream INTERNAL; errors of the service have details.
    const isWrong = ["NOT_FOUND", "ALREADY_EXISTS", "INTERNAL"].includes(code);
    const details = error.metadata?.get("grpc-status-details-bin") ?? [];
    assert.ok(!isWrong || details.length === 0, `${method}: ${error}`);
    return null;
  }
}

async function create(writer, repeatable, isStopped) {
  for (let number = 1; !isStopped(); number += 1) {
    const name = `${writer}-${number}`;
    const created = await attempt("CreateLocation", {
      location: {
        type: "LOCATION_TYPE_STORAGE",
        display_name: name,
        production_run_id: RUN,
      },
      request_id: repeatable ? randomUUID() : "",
    });
    if (created) {
      acknowledged.add(name);
      // Once it is acknowledged, every read finds it.
      const found = await attempt("GetLocation", { id: created.id });
      if (found) assert.equal(found.display_name, name);
    }
    await sleep(10);
  }
}

// Counts up the capacity of a location that no other client updates.
async function update(isStopped) {
  const request = {
    location: {
      type: "LOCATION_TYPE_DELIVERY",
      display_name: "counter",
      production_run_id: RUN,
    },
    request_id: randomUUID(),
  };
  let counter = null;
  while (!counter) counter = await attempt("CreateLocation", request);
  acknowledged.add(counter.display_name);
  while (!isStopped()) {
    const next = counter.capacity + 1;
    let updated = await attempt("UpdateLocation", {
      location: { ...counter, capacity: next },
      update_mask: { paths: ["capacity"] },
    });
    if (updated) {
      assert.equal(updated.capacity, next);
    } else {
      // It may have been applied, and not more than once.
      while (!updated) updated = await attempt("GetLocation", { id: counter.id });
      assert.ok([counter.capacity, next].includes(updated.capacity), updated.capacity);
    }
    counter = updated;
    await sleep(10);
  }
  assert.deepEqual(await call("GetLocation", { id: counter.id }), counter);
  assert.ok(counter.capacity > 10, `${counter.capacity}`);
}

async function listed() {
  const names = [];
  const page = { production_run_id: RUN, page_size: 1000, page_token: "" };
  do {
    const response = await call("ListLocations", page);
    names.push(...response.locations.map(({ display_name }) => display_name));
    page.page_token = response.next_page_token;
  } while (page.page_token);
  return names;
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let phase = 1;
const writers = (name, repeatable, last) =>
  [0, 1, 2].map((number) => create(`${name}-${number}`, repeatable, () => phase > last));
const unrepeatable = writers("once", false, 1);
const repeatable = [...writers("repeatable", true, 2), update(() => phase > 2)];
await lines.next();
phase = 2;
await Promise.all(unrepeatable);
console.log("ready");
await lines.next();
phase = 3;
await Promise.all(repeatable);
const names = await listed();
assert.equal(new Set(names).size, names.length, "created twice");
const lost = [...acknowledged].filter((name) => !names.includes(name));
assert.deepEqual(lost, []);
assert.ok(acknowledged.size > 20, JSON.stringify(outcomes));
console.log(`${names.length} created, ${JSON.stringify(outcomes)}: the session is over`);
client.close();
process.exit();
