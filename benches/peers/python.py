"""Peer P: an ordinary Python service, which reads a cache in Redis at every request.

python.py fastapi|fastapi-ready|grpcio REDIS_URL

It returns the value that the benchmark has stored in Redis: `fastapi` as a model, which FastAPI
serializes, the others as bytes. A miss is an error. Callers aren't authenticated. It prints
`listening on http://ADDRESS` and serves until it is killed.
"""

import socket
import sys
from datetime import datetime

import grpc
import redis.asyncio
import uvicorn
import uvloop
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

NAME, REDIS_URL = sys.argv[1:]


class Address(BaseModel):
    address_lines: list[str]
    locality: str
    administrative_area: str
    postal_code: str
    region_code: str


class LatLng(BaseModel):
    latitude: float
    longitude: float


class Location(BaseModel):
    id: str
    type: str
    display_name: str
    production_run_id: str
    owner_id: str
    address: Address
    coordinates: LatLng
    capacity: int
    state: str
    description: str
    labels: dict[str, str]
    create_time: datetime
    update_time: datetime
    etag: str


class Locations(BaseModel):
    locations: list[Location]
    next_page_token: str


async def fastapi(cache, ready):
    app = FastAPI()

    @app.get("/v1/locations", response_model=None if ready else Locations)
    async def list_locations(owner_id: str, page_size: int = 50):
        value = await cache.get(f"fastapi:{owner_id}:{page_size}")
        if value is None:
            raise HTTPException(404)
        if ready:
            return Response(value, media_type="application/json")
        return Locations.model_validate_json(value)

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, http="httptools")
    await uvicorn.Server(config).serve([listener])


async def grpcio(cache):
    async def list_locations(request, context):
        value = await cache.get(b"aside:" + request)
        if value is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not cached")
        return value

    # Without a deserializer and a serializer, requests and responses are bytes.
    lists = grpc.unary_unary_rpc_method_handler(list_locations)
    service = grpc.method_handlers_generic_handler(
        "location.v1.LocationService", {"ListLocations": lists}
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def main():
    # More than the calls in flight.
    cache = redis.asyncio.Redis.from_url(REDIS_URL, max_connections=256)
    if NAME == "grpcio":
        await grpcio(cache)
    else:
        await fastapi(cache, ready=NAME == "fastapi-ready")


uvloop.run(main())
