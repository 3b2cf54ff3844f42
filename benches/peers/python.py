"""Peer P: the ordinary Python way, a cache in Redis that is asked at every request.

python.py fastapi|grpcio REDIS_URL

It answers what the benchmark has put into Redis. On a miss it would read a database. Nobody's
identity is checked. It prints `listening on http://ADDRESS` and serves until it is killed.
"""

import socket
import sys

import redis.asyncio
import uvloop

NAME, REDIS_URL = sys.argv[1:]

async def fastapi(cache):
    import uvicorn
    from fastapi import FastAPI, HTTPException, Response

    app = FastAPI()

    @app.get("/v1/locations")
    async def list_locations(owner_id: str, page_size: int = 50):
        answer = await cache.get(f"fastapi:{owner_id}:{page_size}")
        if answer is None:
            raise HTTPException(404)
        return Response(answer, media_type="application/json")

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, http="httptools")
    await uvicorn.Server(config).serve([listener])

async def grpcio(cache):
    import grpc

    async def list_locations(request, context):
        answer = await cache.get(b"aside:" + request)
        if answer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not cached")
        return answer

    # Without a deserializer and a serializer, it takes and gives bytes as they are.
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
    cache = redis.asyncio.Redis.from_url(REDIS_URL)
    await {"fastapi": fastapi, "grpcio": grpcio}[NAME](cache)

uvloop.run(main())
