"""Creations with grpcio, whose service config retries UNAVAILABLE, until stdin ends: then checks that
each name that was acknowledged is there, and none twice.

    retries.py ADDRESS PROTO_FOLDER TOKEN
"""

import collections
import json
import sys
import threading
import uuid

import grpc

ADDRESS, PROTO_FOLDER, TOKEN = sys.argv[1:]
WRITERS = 6

sys.path.append(PROTO_FOLDER)
pb, services = grpc.protos_and_services("location/v1/location_service.proto")

ADMIT = (("authorization", f"Bearer {TOKEN}"),)
CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "location.v1.LocationService"}],
            "timeout": "20s",
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = [("grpc.service_config", json.dumps(CONFIG)), ("grpc.enable_retries", 1)]

stopped = threading.Event()
outcomes = collections.Counter()
acknowledged = set()


def write(stub, writer):
    number = 0
    while not stopped.is_set():
        number += 1
        name = f"{writer}-{number}"
        request = pb.CreateLocationRequest(
            location=pb.Location(
                type=pb.LOCATION_TYPE_STORAGE, display_name=name, production_run_id="retries"
            )
        )
        # The calls of half of the writers can be repeated.
        if writer % 2:
            request.request_id = str(uuid.uuid4())
        try:
            stub.CreateLocation(request, metadata=ADMIT)
            acknowledged.add(name)
            outcomes["OK"] += 1
        except grpc.RpcError as error:
            outcomes[error.code().name] += 1
            stopped.wait(0.05)


def listed(stub):
    names = collections.Counter()
    page = pb.ListLocationsRequest(production_run_id="retries", page_size=1000)
    while True:
        response = stub.ListLocations(page, metadata=ADMIT)
        names.update(location.display_name for location in response.locations)
        page.page_token = response.next_page_token
        if not page.page_token:
            return names


with grpc.insecure_channel(ADDRESS, OPTIONS) as channel:
    stub = services.LocationServiceStub(channel)
    threads = [
        threading.Thread(target=write, args=(stub, writer), daemon=True)
        for writer in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    names = listed(stub)
    twice = [name for name, count in names.items() if count > 1]
    assert not twice, twice
    lost = acknowledged - names.keys()
    assert not lost, lost
    assert len(acknowledged) > 20, outcomes
print(f"{len(names)} created, {dict(outcomes)}: the session is over")
