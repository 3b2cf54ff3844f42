"""A whole session with grpcio, with stubs generated from the proto by grpcio-tools.

    session.py ADDRESS PROTO_FOLDER TOKEN DATABASE
"""

import sqlite3
import sys
import uuid

import grpc
from google.protobuf import field_mask_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

ADDRESS, PROTO_FOLDER, TOKEN, DATABASE = sys.argv[1:]

sys.path.append(PROTO_FOLDER)
pb, services = grpc.protos_and_services("location/v1/location_service.proto")

# Deadline of a call, in seconds.
PATIENCE = 20
ADMIT = (("authorization", f"Bearer {TOKEN}"),)
HIT = "location-service; hit; detail=local"


def call(method, request, *, metadata=ADMIT, timeout=PATIENCE, **options):
    """The response, and the `cache-status` that came with it."""
    response, call = method.with_call(request, metadata=metadata, timeout=timeout, **options)
    return response, dict(call.initial_metadata()).get("cache-status")


def refused(code, method, request, **options):
    """Checks that the call fails with this code. Returns the error's details by type."""
    try:
        response, _ = call(method, request, **options)
    except grpc.RpcError as error:
        assert error.code() == code, error
        status = rpc_status.from_call(error)
        details = {}
        for detail in status.details if status else ():
            kind = getattr(error_details_pb2, detail.type_url.rpartition(".")[2])
            details[kind] = kind()
            assert detail.Unpack(details[kind])
        return details
    raise AssertionError(f"{code} expected, returned {response}")


def session(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in "", "location.v1.LocationService":
        response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        assert response.status == health_pb2.HealthCheckResponse.SERVING, response

    stub = services.LocationServiceStub(channel)
    of_run = pb.ListLocationsRequest(production_run_id="python")

    details = refused(grpc.StatusCode.UNAUTHENTICATED, stub.ListLocations, of_run, metadata=())
    assert details[error_details_pb2.ErrorInfo].domain == "location.v1", details

    create = pb.CreateLocationRequest(
        location=pb.Location(
            type=pb.LOCATION_TYPE_STORAGE,
            display_name="Første lager",
            production_run_id="python",
            address=pb.Address(locality="København", region_code="DK"),
            coordinates=pb.LatLng(latitude=55.676, longitude=12.568),
            capacity=2**40,
            labels={"colour": "red"},
        ),
        request_id=str(uuid.uuid4()),
    )
    created, _ = call(stub.CreateLocation, create)
    assert created.display_name == "Første lager" and created.etag and created.owner_id
    again, _ = call(stub.CreateLocation, create)
    assert again == created

    listed, status = call(stub.ListLocations, of_run)
    assert list(listed.locations) == [created] and status != HIT, (listed, status)
    listed, status = call(stub.ListLocations, of_run)
    assert list(listed.locations) == [created] and status == HIT, (listed, status)
    get = pb.GetLocationRequest(id=created.id)
    got, _ = call(stub.GetLocation, get)
    assert got == created
    past_the_cache = ADMIT + (("cache-control", "no-cache"),)
    got, status = call(stub.GetLocation, get, metadata=past_the_cache)
    assert got == created and status == "location-service; fwd=request; stored", status

    update = pb.UpdateLocationRequest(
        location=pb.Location(
            id=created.id,
            etag=created.etag,
            display_name="Andet lager",
            capacity=7,
            labels={"size": "xl"},
        ),
        update_mask=field_mask_pb2.FieldMask(paths=["display_name", "labels.size"]),
    )
    updated, _ = call(stub.UpdateLocation, update)
    assert updated.display_name == "Andet lager" and updated.capacity == 2**40
    assert dict(updated.labels) == {"colour": "red", "size": "xl"}
    # A repeated update changes nothing, so its etag may be the old one.
    again, _ = call(stub.UpdateLocation, update)
    assert again == updated
    update.location.display_name = "Tredje lager"
    details = refused(grpc.StatusCode.ABORTED, stub.UpdateLocation, update)
    assert details[error_details_pb2.ErrorInfo].reason == "ETAG_MISMATCH", details
    assert details[error_details_pb2.ResourceInfo].resource_name == created.id, details

    batch = pb.BatchCreateLocationsRequest()
    for number in range(12):
        location = batch.requests.add().location
        location.type = pb.LOCATION_TYPE_DELIVERY
        location.display_name = f"Ramp {number}"
        location.production_run_id = "python"
        location.capacity = number
    ramps, _ = call(stub.BatchCreateLocations, batch, compression=grpc.Compression.Gzip)
    ids = [location.id for location in ramps.locations]
    found, _ = call(stub.BatchGetLocations, pb.BatchGetLocationsRequest(ids=reversed(ids)))
    assert list(found.locations) == list(reversed(ramps.locations))
    unknown = str(uuid.uuid4())
    details = refused(
        grpc.StatusCode.NOT_FOUND,
        stub.BatchGetLocations,
        pb.BatchGetLocationsRequest(ids=[*ids, unknown]),
    )
    assert details[error_details_pb2.ResourceInfo].resource_name == unknown, details

    reports, _ = call(
        stub.ListLocationReports, pb.ListLocationReportsRequest(production_run_id="python")
    )
    assert [
        (report.type, report.location_count, report.total_capacity) for report in reports.reports
    ] == [(pb.LOCATION_TYPE_DELIVERY, 12, 66), (pb.LOCATION_TYPE_STORAGE, 1, 2**40)], reports

    page = pb.ListLocationsRequest(
        production_run_id="python", page_size=5, order_by="capacity", include_total_size=True
    )
    sizes, names = [], []
    while True:
        response, _ = call(stub.ListLocations, page)
        assert response.total_size == 13, response
        sizes.append(len(response.locations))
        names += [location.display_name for location in response.locations]
        page.page_token = response.next_page_token
        if not page.page_token:
            break
    assert sizes == [5, 5, 3], sizes
    assert names == [f"Ramp {number}" for number in range(12)] + ["Andet lager"], names

    matching = pb.ListLocationsRequest(
        production_run_id="python", query="RAMP 1", order_by="capacity"
    )
    response, _ = call(stub.ListLocations, matching, compression=grpc.Compression.Gzip)
    assert [location.capacity for location in response.locations] == [1, 10, 11], response

    bad = pb.CreateLocationRequest(location=pb.Location(capacity=-1), request_id="x")
    details = refused(grpc.StatusCode.INVALID_ARGUMENT, stub.CreateLocation, bad)
    violations = details[error_details_pb2.BadRequest].field_violations
    assert {violation.field for violation in violations} == {
        "location.type",
        "location.display_name",
        "location.capacity",
        "request_id",
    }, violations

    lock = sqlite3.connect(DATABASE, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    late = pb.CreateLocationRequest(location=created)
    refused(grpc.StatusCode.DEADLINE_EXCEEDED, stub.CreateLocation, late, timeout=0.3)
    lock.execute("ROLLBACK")
    lock.close()

    delete = pb.DeleteLocationRequest(id=created.id, etag=updated.etag)
    call(stub.DeleteLocation, delete)
    response, status = call(stub.ListLocations, of_run)
    assert created.id not in {location.id for location in response.locations}, response
    assert len(response.locations) == 12 and status != HIT, (response, status)
    refused(grpc.StatusCode.NOT_FOUND, stub.DeleteLocation, delete)


with grpc.insecure_channel(ADDRESS) as channel:
    session(channel)
print("the session is over")
