"""The variants, in sections that are measured in the same rounds."""

import functools
import json
import re
import subprocess

import figures
import servers
from bench import (
    CALLER,
    LIST,
    PAGE,
    PAGES,
    ROWS,
    SERVICE,
    Endurance,
    Expected,
    Memory,
    Misses,
    Mixed,
    Repeated,
    Rest,
    Shape,
    kind_of,
)
from google.protobuf import json_format

RUST = "a", "a-plain", "f", "e", "e-decoded"
PYTHON = "fastapi", "fastapi-ready", "grpcio"
OURS = "embedded", "warm", "cold"

FULL_LOAD = Shape(4, 32)
ONE = Shape(1, 1)
IN_FLIGHT = ONE, Shape(4, 2), Shape(4, 8), FULL_LOAD
SHAPES = *IN_FLIGHT, Shape(32, 1), Shape(4, 32, rate=4_000)

# The runs that databases of all sizes have, with the same lists.
RUNS = ROWS[0] // servers.ROWS_PER_RUN
MIXED_RUNS = 500
WRITES = 0, 0.01, 0.1, 0.5


def cached_list(bench, name, shape, size=PAGE, names=None, make=Repeated):
    """A variant: the caller's first page, from the cache."""
    page = bench.page(size)
    parse = bench.pb.ListLocationsResponse.FromString
    request = bench.pb.ListLocationsRequest(page_size=size)
    # Peers get the same headers, and ignore the token.
    headers = [f"authorization: Bearer {bench.token(CALLER)}"]
    kind = kind_of(name)
    if kind.startswith("fastapi"):
        fields = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
        message = parse(page)
        response = json_format.MessageToDict(message, **fields)
        del response["total_size"]
        for location, origin in zip(response["locations"], message.locations, strict=True):
            location["capacity"] = origin.capacity
            for field in "create_time", "update_time":
                of = getattr(origin, field).ToDatetime()
                location[field] = f"{of.isoformat(timespec='microseconds')}Z"
        text = json.dumps(response, ensure_ascii=False, separators=(",", ":"))
        bench.redis.client.set(f"fastapi:{CALLER}:{size}", text)
        path = f"v1/locations?owner_id={CALLER}&page_size={size}"
        shape = Shape(shape.connections * shape.streams, 1)
        expected = Expected(response, json.loads)
        return Rest(bench, [name], path, b"", shape, expected, headers=headers)
    if kind.removesuffix("-tls") in OURS:
        status = "hit; detail=redis" if kind == "cold" else "hit; detail=local"
        # Page tokens differ: each database has its own signing key.
        expected = Expected(parse(page).locations, lambda it: parse(it).locations)
        message = request.SerializeToString()
        return make(
            bench, names or [name], LIST, message, shape, expected, headers=headers, status=status
        )
    request.owner_id = CALLER
    message = request.SerializeToString()
    bench.redis.client.set(b"aside:" + message, page)
    return Repeated(bench, [name], LIST, message, shape, Expected(page), headers=headers)


def measure_lists(bench, quick):
    variants = {}
    for shape in (FULL_LOAD, ONE) if quick else SHAPES:
        names = *RUST, *PYTHON, *OURS
        if shape.rate:
            # Python peers can't reach this rate.
            names = *RUST, *OURS
        elif quick and shape == ONE:
            names = "e", "warm"
        if shape == FULL_LOAD and bench.options.before:
            names += tuple(f"{name}@before" for name in OURS)
        for name in names:
            make = functools.partial(cached_list, bench, name, shape)
            variants[f"list/{shape}/{name}"] = make
    bench.measure(f"A cached list of {PAGE} (connections x streams)", variants)


def measure_tls(bench, _quick):
    variants = {}
    for name in "f-tls", "embedded-tls":
        variants[f"tls/{name}"] = functools.partial(cached_list, bench, name, FULL_LOAD)
    bench.measure("A cached list with TLS", variants)


def measure_pages(bench, quick):
    if quick:
        return
    variants = {}
    for size in PAGES:
        for name in ("a", f"f:{size}", "e", *OURS):
            make = functools.partial(cached_list, bench, name, FULL_LOAD, size)
            variants[f"page/{size}/{name.partition(':')[0]}"] = make
    bench.measure("Cached lists by size", variants)


def measure_replicas(bench, _quick):
    variants = {}
    for count in 1, 2, 4:
        names = [f"warm:{number}" for number in range(count)]
        shape = Shape(count * FULL_LOAD.connections, FULL_LOAD.streams)
        make = functools.partial(cached_list, bench, "warm", shape, names=names)
        variants[f"replicas/{count}"] = make
    bench.measure("The full load on each of one replica, two and four, all on one core", variants)


def cached_get(bench, name, shape):
    location = bench.rows_of_caller(1)[0]
    request = bench.pb.GetLocationRequest(id=location.id).SerializeToString()
    return Repeated(
        bench,
        [name],
        f"{SERVICE}/GetLocation",
        request,
        shape,
        Expected(location, bench.pb.Location.FromString),
        headers=[f"authorization: Bearer {bench.token(CALLER)}"],
        status="hit; detail=redis" if name == "cold" else "hit; detail=local",
    )


def measure_gets(bench, quick):
    if quick:
        return
    variants = {}
    for shape in SHAPES:
        for name in OURS:
            variants[f"get/{shape}/{name}"] = functools.partial(cached_get, bench, name, shape)
    bench.measure("A cached location", variants)


def create(bench, name, shape):
    location = bench.rows_of_caller(1)[0]
    for field in "id", "etag", "create_time", "update_time", "state":
        location.ClearField(field)
    request = bench.pb.CreateLocationRequest(location=location)

    def without_assigned_fields(response):
        created = bench.pb.Location.FromString(response)
        for field in "id", "etag", "create_time", "update_time", "state":
            created.ClearField(field)
        return created

    return Repeated(
        bench,
        [name],
        f"{SERVICE}/CreateLocation",
        request.SerializeToString(),
        shape,
        Expected(location, without_assigned_fields, exact=False),
        headers=[f"authorization: Bearer {bench.token(CALLER)}"],
    )


def measure_creations(bench, quick):
    variants = {}
    names = {"postgres": "service:creations", "sql": "sql:creations"}
    if bench.options.before:
        names["postgres@before"] = "service:creations@before"
    if not quick:
        names["embedded"] = "embedded:creations"
    for shape in [ONE] if quick else IN_FLIGHT:
        for label, name in names.items():
            variants[f"create/{shape}/{label}"] = functools.partial(create, bench, name, shape)
    bench.measure("A creation", variants)


def measure_misses(bench, quick):
    variants = {}
    largest = f"rows_{ROWS[-1]}"
    names = {"postgres": f"service:{largest}", "sql": f"sql:{largest}"}
    if bench.options.before:
        names["postgres@before"] = f"service:{largest}@before"
    for in_flight in (128,) if quick else (1, 8, 32, 128):
        for label, name in names.items():
            make = functools.partial(Misses, bench, name, in_flight, runs=1_000, passes=4)
            variants[f"miss/{in_flight}/{label}"] = make
        if not quick:
            make = functools.partial(Misses, bench, "embedded", in_flight, runs=RUNS, passes=5)
            variants[f"miss/{in_flight}/embedded"] = make
    bench.measure("A list that isn't cached", variants)


def reread(bench, page):
    """A variant: a page of the list of all locations, with `no-cache`."""
    name = f"service:rows_{ROWS[-1]}"
    metadata = [("authorization", f"Bearer {bench.token('root')}")]
    request = bench.pb.ListLocationsRequest()
    to_skip = (page - 1) * PAGE
    while to_skip:
        # Steps larger than PAGE leave the pages of this size uncached.
        request.page_size = min(to_skip, 1_000)
        to_skip -= request.page_size
        message = request.SerializeToString()
        response, _ = bench.call(name, LIST, message, metadata=metadata)
        response = bench.pb.ListLocationsResponse.FromString(response)
        request.page_token = response.next_page_token
    request.page_size = PAGE
    newest = ROWS[-1] - 1 - (page - 1) * PAGE
    parse = bench.pb.ListLocationsResponse.FromString
    expected = []
    for number in range(newest, newest - PAGE, -1):
        expected.append(bench.location(number))
    return Repeated(
        bench,
        [name],
        LIST,
        request.SerializeToString(),
        ONE,
        Expected(expected, lambda it: list(parse(it).locations)),
        headers=[": ".join(metadata[0]), "cache-control: no-cache"],
        status="fwd=request; stored",
    )


def measure_growth(bench, quick):
    variants = {}
    for count in (ROWS[0], ROWS[-1]) if quick else ROWS:
        make = functools.partial(Misses, bench, f"service:rows_{count}", 8, RUNS, passes=5)
        variants[f"rows/{count}"] = make
    for page in 1, 10_000:
        variants[f"depth/{page}"] = functools.partial(reread, bench, page)
    bench.measure("A list that isn't cached, by rows in the database and by page", variants)


def measure_writes(bench, quick):
    if quick:
        return
    variants = {}
    for share in WRITES:
        for label, name in ("service", "service:mixed"), ("e", "e:mixed_e"):
            make = functools.partial(Mixed, bench, name, 32, MIXED_RUNS, share)
            variants[f"writes/{share}/{label}"] = make
    bench.measure("Lists and creations mixed, compared with dropping all of the type", variants)


def measure_memory(bench, quick):
    if quick:
        return
    rows = ROWS[1]
    runs = rows // servers.ROWS_PER_RUN
    variants = {}
    for page, passes in (1, 5), (PAGE, 2):
        for label, name in ("warm", f"service:rows_{rows}"), ("embedded", f"embedded:rows_{rows}"):
            make = functools.partial(Memory, bench, name, page, runs, passes)
            variants[f"memory/{page}/{label}"] = make
    bench.measure("Memory of a cached list beside the response, by its size", variants, rounds=3)


def measure_endurance(bench, quick):
    """Measured once, because it takes as long as everything else."""
    if quick or bench.options.before or not re.search(bench.options.only, "endurance"):
        return
    print("\nTen million calls", flush=True)
    endurance = cached_list(bench, "warm", FULL_LOAD, make=Endurance)
    measured = endurance()
    print(f"  endurance  grown_kib {measured['grown_kib']:,.0f}")
    bench.measured["endurance"] = [measured]


def measure_profile(bench, _quick):
    if not bench.options.profile:
        return
    for _, _, names in figures.PROFILES:
        for name in names:
            if name in bench.variants:
                bench.profile(name)


def measure_closing(bench, _quick):
    """Measures how long closing a tag takes, by its number of entries."""
    if bench.options.before or not re.search(bench.options.only, "closing"):
        return None
    print("\nClosing a tag", flush=True)
    path = bench.folder / "closing.json"
    rounds = str(bench.options.rounds)
    cores = ",".join(map(str, servers.CORES))
    command = ["taskset", "--cpu-list", cores, bench.programs["invalidation"]]
    subprocess.run([*command, "--close-alone", f"--rounds={rounds}", f"--json={path}"], check=True)
    return json.loads(path.read_text())["close"]


SECTIONS = (
    measure_lists,
    measure_tls,
    measure_replicas,
    measure_pages,
    measure_gets,
    measure_creations,
    measure_misses,
    measure_profile,
    measure_growth,
    measure_writes,
    measure_closing,
    measure_memory,
    measure_endurance,
)
