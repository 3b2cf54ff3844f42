// A whole session with @grpc/grpc-js, its client made from the proto by @grpc/proto-loader.
//
//     node session.mjs ADDRESS PROTO_FOLDER TOKEN NODE_MODULES

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import { authorized, detailsOf, grpc, loadService, protobuf, unary } from "./common.mjs";

const [address, protoFolder, token] = process.argv.slice(2);

// Deadline of a call.
const PATIENCE_MS = 20_000;
const HIT = "location-service; hit; detail=local";

const LocationService = loadService(protoFolder, { longs: String, defaults: true });
const credentials = grpc.credentials.createInsecure();
const plain = new LocationService(address, credentials);
const compressed = new LocationService(address, credentials, {
  "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip,
});

// The parts of grpc/health/v1/health.proto that are used here.
const { root } = protobuf.parse(
  `syntax = "proto3";
  message HealthCheckRequest { string service = 1; }
  message HealthCheckResponse { int32 status = 1; }`,
);
const HealthCheckRequest = root.lookupType("HealthCheckRequest");
const HealthCheckResponse = root.lookupType("HealthCheckResponse");
const Health = grpc.makeGenericClientConstructor({
  Check: {
    path: "/grpc.health.v1.Health/Check",
    requestStream: false,
    responseStream: false,
    requestSerialize: (request) => Buffer.from(HealthCheckRequest.encode(request).finish()),
    responseDeserialize: (bytes) => HealthCheckResponse.decode(bytes),
  },
});
const health = new Health(address, credentials);

// Returns the response and its `cache-status`.
function call(method, request, options = {}) {
  const { client = plain, metadata = authorized(token), timeoutMs = PATIENCE_MS } = options;
  return unary(client, method, request, metadata, { deadline: Date.now() + timeoutMs });
}

// Checks that the call fails with this code. Returns the error's details by type.
async function refused(code, method, request, options) {
  const error = await call(method, request, options).then(
    ([response]) => assert.fail(`${method} returned ${JSON.stringify(response)}`),
    (error) => error,
  );
  assert.equal(error.code, code, error.message);
  return detailsOf(error);
}

for (const service of ["", "location.v1.LocationService"]) {
  const [response] = await call("Check", { service }, { client: health });
  assert.equal(response.status, 1);
}

const ofRun = { production_run_id: "node" };
let details = await refused(grpc.status.UNAUTHENTICATED, "ListLocations", ofRun, {
  metadata: new grpc.Metadata(),
});
assert.equal(details.ErrorInfo.domain, "location.v1");

const create = {
  location: {
    type: "LOCATION_TYPE_STORAGE",
    display_name: "Første lager",
    production_run_id: "node",
    address: { locality: "København", region_code: "DK" },
    coordinates: { latitude: 55.676, longitude: 12.568 },
    // Too large for a JavaScript number.
    capacity: "9007199254740993",
    labels: { colour: "red" },
  },
  request_id: randomUUID(),
};
const [created] = await call("CreateLocation", create);
assert.equal(created.capacity, "9007199254740993");
assert.ok(created.id && created.etag && created.owner_id);
const [again] = await call("CreateLocation", create);
assert.deepEqual(again, created);

let [response, status] = await call("ListLocations", ofRun);
assert.deepEqual(response.locations, [created]);
assert.notEqual(status, HIT);
[response, status] = await call("ListLocations", ofRun);
assert.deepEqual(response.locations, [created]);
assert.equal(status, HIT);
[response] = await call("GetLocation", { id: created.id });
assert.deepEqual(response, created);
[response, status] = await call(
  "GetLocation",
  { id: created.id },
  { metadata: authorized(token, { "cache-control": "no-cache" }) },
);
assert.deepEqual(response, created);
assert.equal(status, "location-service; fwd=request; stored");

const update = {
  location: {
    id: created.id,
    etag: created.etag,
    display_name: "Andet lager",
    capacity: 7,
    labels: { size: "xl" },
  },
  update_mask: { paths: ["display_name", "labels.size"] },
};
const [updated] = await call("UpdateLocation", update);
assert.equal(updated.display_name, "Andet lager");
assert.equal(updated.capacity, created.capacity);
assert.deepEqual(updated.labels, { colour: "red", size: "xl" });
// A repeated update changes nothing, so its etag may be the old one.
assert.deepEqual((await call("UpdateLocation", update))[0], updated);
update.location.display_name = "Tredje lager";
details = await refused(grpc.status.ABORTED, "UpdateLocation", update);
assert.equal(details.ErrorInfo.reason, "ETAG_MISMATCH");
assert.equal(details.ResourceInfo.resource_name, created.id);

const requests = Array.from({ length: 12 }, (_, number) => ({
  location: {
    type: "LOCATION_TYPE_DELIVERY",
    display_name: `Ramp ${number}`,
    production_run_id: "node",
    capacity: number,
  },
}));
const [ramps] = await call("BatchCreateLocations", { requests }, { client: compressed });
const backwards = ramps.locations.slice().reverse();
const ids = backwards.map(({ id }) => id);
[response] = await call("BatchGetLocations", { ids });
assert.deepEqual(response.locations, backwards);
const unknown = randomUUID();
details = await refused(grpc.status.NOT_FOUND, "BatchGetLocations", { ids: [...ids, unknown] });
assert.equal(details.ResourceInfo.resource_name, unknown);

[response] = await call("ListLocationReports", ofRun);
assert.deepEqual(
  response.reports.map((report) => [report.type, report.location_count, report.total_capacity]),
  [
    ["LOCATION_TYPE_DELIVERY", "12", "66"],
    ["LOCATION_TYPE_STORAGE", "1", "9007199254740993"],
  ],
);

const sizes = [];
const names = [];
const page = { ...ofRun, page_size: 5, order_by: "capacity", include_total_size: true };
do {
  [response] = await call("ListLocations", page);
  assert.equal(response.total_size, 13);
  sizes.push(response.locations.length);
  names.push(...response.locations.map(({ display_name }) => display_name));
  page.page_token = response.next_page_token;
} while (page.page_token);
assert.deepEqual(sizes, [5, 5, 3]);
assert.deepEqual(names, [...requests.map(({ location }) => location.display_name), "Andet lager"]);

const matching = { ...ofRun, query: "RAMP 1", order_by: "capacity" };
[response] = await call("ListLocations", matching, { client: compressed });
assert.deepEqual(
  response.locations.map(({ capacity }) => capacity),
  ["1", "10", "11"],
);

details = await refused(grpc.status.INVALID_ARGUMENT, "CreateLocation", {
  location: { capacity: -1 },
  request_id: "x",
});
assert.deepEqual(details.BadRequest.field_violations.map(({ field }) => field).sort(), [
  "location.capacity",
  "location.display_name",
  "location.type",
  "request_id",
]);

await refused(grpc.status.DEADLINE_EXCEEDED, "ListLocations", ofRun, { timeoutMs: 0 });

const remove = { id: created.id, etag: updated.etag };
await call("DeleteLocation", remove);
[response, status] = await call("ListLocations", ofRun);
assert.equal(response.locations.length, 12);
assert.ok(!response.locations.some(({ id }) => id === created.id));
assert.notEqual(status, HIT);
await refused(grpc.status.NOT_FOUND, "DeleteLocation", remove);

for (const client of [plain, compressed, health]) client.close();
console.log("the session is over");
