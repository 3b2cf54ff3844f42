// The client of the other scripts, generated from the proto by @grpc/proto-loader.

import { createRequire } from "node:module";

// The packages are in the last argument of every script.
const require = createRequire(`${process.argv.at(-1)}/`);
const loader = require("@grpc/proto-loader");
export const grpc = require("@grpc/grpc-js");
export const protobuf = require("protobufjs");

// Returns the class of the clients. `options` are further ones of the proto loader.
export function loadService(protoFolder, options) {
  const definition = loader.loadSync("location/v1/location_service.proto", {
    includeDirs: [protoFolder],
    keepCase: true,
    enums: String,
    ...options,
  });
  return grpc.loadPackageDefinition(definition).location.v1.LocationService;
}

// Returns metadata with the token.
export function authorized(token, more = {}) {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  for (const [name, value] of Object.entries(more)) metadata.set(name, value);
  return metadata;
}

// Makes a call. Returns the response and its `cache-status`.
export function unary(client, method, request, metadata, options = {}) {
  return new Promise((resolve, reject) => {
    let status;
    client[method](request, metadata, options, (error, response) =>
      error ? reject(error) : resolve([response, status]),
    ).on("metadata", (initial) => {
      [status] = initial.get("cache-status");
    });
  });
}

// The parts of google/rpc/{status,error_details}.proto that are used here.
const { root } = protobuf.parse(
  `syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message FieldViolation { string field = 1; string description = 2; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message ResourceInfo { string resource_type = 1; string resource_name = 2; }`,
  { keepCase: true },
);

// Returns the details of an error by type.
export function detailsOf(error) {
  const details = {};
  for (const bytes of error.metadata.get("grpc-status-details-bin")) {
    for (const { type_url, value } of root.lookupType("Status").decode(bytes).details) {
      const name = type_url.split(".").pop();
      details[name] = root.lookupType(name).decode(value);
    }
  }
  return details;
}
