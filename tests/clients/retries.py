"""Creations, updates and reads with grpcio, whose service config retries them, while servers are killed.
At the end, the stored locations are compared with the acknowledged ones.

    retries.py ADDRESS PROTO_FOLDER TOKEN SERVICE_CONFIG

The first line of stdin ends the creations without a request id, the second one the rest.
"""

import collections
import sys
import threading
import uuid

import grpc

ADDRESS, PROTO_FOLDER, TOKEN, SERVICE_CONFIG = sys.argv[1:]
RUN = "retries-python"

sys.path.append(PROTO_FOLDER)
pb, services = grpc.protos_and_services("location/v1/location_service.proto")

ADMIT = (("authorization", f"Bearer {TOKEN}"),)
with open(SERVICE_CONFIG, encoding="utf-8") as file:
    OPTIONS = [
        ("grpc.service_config", file.read()),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]

outcomes = collections.Counter()
acknowledged = set()
failures = []


def attempt(call, request):
    """The response, or None if the call failed."""
    try:
        response = call(request, metadata=ADMIT)
        outcomes["OK"] += 1
        return response
    except grpc.RpcError as error:
        outcomes[error.code().name] += 1
        # The client itself calls a broken stream INTERNAL; errors of the service have details.
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        if details and error.code().name in ("NOT_FOUND", "ALREADY_EXISTS", "INTERNAL"):
            failures.append(error)
        return None


def create(stub, writer, repeatable, stopped):
    number = 0
    while not stopped.wait(0.01):
        number += 1
        name = f"{writer}-{number}"
        request = pb.CreateLocationRequest(
            location=pb.Location(
                type=pb.LOCATION_TYPE_STORAGE, display_name=name, production_run_id=RUN
            ),
            request_id=str(uuid.uuid4()) if repeatable else "",
        )
        created = attempt(stub.CreateLocation, request)
        if created:
            acknowledged.add(name)
            # Once it is acknowledged, every read finds it.
            found = attempt(stub.GetLocation, pb.GetLocationRequest(id=created.id))
            if found and found.display_name != name:
                failures.append(found)


def update(stub, stopped):
    """Counts up the capacity of a location that no other client updates."""
    new = pb.Location(type=pb.LOCATION_TYPE_DELIVERY, display_name="counter", production_run_id=RUN)
    request = pb.CreateLocationRequest(location=new, request_id=str(uuid.uuid4()))
    counter = None
    while not counter:
        counter = attempt(stub.CreateLocation, request)
    acknowledged.add(counter.display_name)
    while not stopped.wait(0.01):
        request = pb.UpdateLocationRequest(location=counter, update_mask={"paths": ["capacity"]})
        request.location.capacity += 1
        updated = attempt(stub.UpdateLocation, request)
        if updated is None:
            # It may have been applied, and not more than once.
            while not updated:
                updated = attempt(stub.GetLocation, pb.GetLocationRequest(id=counter.id))
            if updated.capacity - counter.capacity not in (0, 1):
                failures.append((counter, updated))
        elif updated.capacity != counter.capacity + 1:
            failures.append((counter, updated))
        counter = updated
    stored = stub.GetLocation(pb.GetLocationRequest(id=counter.id), metadata=ADMIT)
    assert stored == counter, (stored, counter)
    assert counter.capacity > 10, counter


def listed(stub):
    names = collections.Counter()
    page = pb.ListLocationsRequest(production_run_id=RUN, page_size=1000)
    while True:
        response = stub.ListLocations(page, metadata=ADMIT)
        names.update(location.display_name for location in response.locations)
        page.page_token = response.next_page_token
        if not page.page_token:
            return names


def start(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def end(threads, stopped):
    sys.stdin.readline()
    stopped.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


with grpc.insecure_channel(ADDRESS, OPTIONS) as channel:
    stub = services.LocationServiceStub(channel)
    first, second = threading.Event(), threading.Event()
    unrepeatable = [start(create, stub, f"once-{i}", False, first) for i in range(3)]
    repeatable = [start(create, stub, f"repeatable-{i}", True, second) for i in range(3)]
    repeatable.append(start(update, stub, second))
    end(unrepeatable, first)
    print("ready", flush=True)
    end(repeatable, second)
    assert not failures, failures
    names = listed(stub)
    twice = [name for name, count in names.items() if count > 1]
    assert not twice, twice
    lost = acknowledged - names.keys()
    assert not lost, lost
    assert len(acknowledged) > 20, outcomes
print(f"{len(names)} created, {dict(outcomes)}: the session is over")
