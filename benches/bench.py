"""Measures a variant: starts its servers, calls and checks them, and counts time and memory."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

import grpc
import servers
from figures import spread
from servers import Failed, Listener, Postgres, Redis

SERVICE = "location.v1.LocationService"
LIST = f"{SERVICE}/ListLocations"

# The owner of the listed locations, and its number.
CALLER, CALLER_NUMBER = "user-0", 0

# The usual size of a page, and all sizes.
PAGE = 50
PAGES = 1, PAGE, 1_000

# Numbers of rows, and the databases by name with theirs.
ROWS = 10_000, 100_000, 1_000_000
DATABASES = {f"rows_{count}": count for count in ROWS}
DATABASES |= {"base": ROWS[0], "creations": ROWS[0], "mixed": ROWS[1], "mixed_e": ROWS[1]}

# The measured fields that are printed.
SHOWN = "cpu_us", "rate", "p50_us", "p99_us", "hit_rate", "stale_rate", "entry_bytes"

# Parts of the code, by the file and symbol of a sample. Rust's symbols begin with their crate.
PARTS = {
    "kernel": r"^\[",
    "HTTP/2: h2, hyper, http": r" [<&(]*(h2|hyper\w*|http\w*)::",
    "tonic, tower": r" [<&(]*(tonic\w*|tower\w*|axum\w*|matchit)::",
    "tokio": r" [<&(]*(tokio\w*|mio)::",
    "Redis client: fred": r" [<&(]*(fred|redis_protocol)::",
    "database, JSON: sqlx, serde": r" [<&(]*(sqlx\w*|serde\w*)::",
    "the handler, the cache": r" [<&(]*(location_service|peers)::",
    "memory: mimalloc, copies": r" (_?mi_|_*mem)",
    "other libraries": r"",
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A load: its connections, the calls in flight on each, and the calls per second, or `None` for
    as many as possible."""

    connections: int
    streams: int
    rate: int | None = None

    @property
    def in_flight(self):
        return self.connections * self.streams

    def __str__(self):
        name = f"{self.connections}x{self.streams}"
        return f"{name}@{self.rate}" if self.rate else name


def kind_of(name):
    """The kind of a server, by its name."""
    return re.split("[:@]", name)[0]


def frame(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


class Bench:
    """Starts servers when they are first needed, calls them, and collects the figures."""

    def __init__(self, options, programs, folder):
        sys.path.append("proto")
        self.pb, _ = grpc.protos_and_services("location/v1/location_service.proto")
        self.options = options
        self.programs = programs
        self.folder = folder
        self.places = servers.read_places(options.cities)
        self.secret = folder / "secret"
        self.secret.write_text(random.randbytes(32).hex())
        self.measured = {}
        self.profiles = {}
        self.variants = {}
        self.order = random.Random(1)
        self.started = {}
        self.clients = {}

    @functools.cached_property
    def redis(self):
        return Redis(self.folder)

    @functools.cached_property
    def postgres(self):
        return Postgres(self.folder)

    @functools.cached_property
    def certificate(self):
        """The files of a certificate for 127.0.0.1, which signs itself, and of its key."""
        files = self.folder / "certificate.pem", self.folder / "key.pem"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
        name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = ["-out", files[0], "-keyout", files[1]]
        command = ["openssl", "req", "-x509", *curve, *name, *made]
        subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
        return files

    @functools.cache
    def database(self, name, build):
        """The URL of a database with rows, migrated by a build of the service."""
        count = DATABASES[name]
        name += build
        print(f"filling {name} with {count:,} rows", flush=True)
        self.postgres.run("postgres", f"CREATE DATABASE {name}")
        url = self.postgres.url(name)
        self.service_command("migrate", "--database-url", url, build=build)
        self.postgres.fill(name, self.places, count)
        return url

    @functools.cache
    def file(self, name, build):
        """The URL of an SQLite database with rows, migrated by a build of the service."""
        url = f"sqlite:{self.folder}/{name or 'embedded'}{build}.db"
        self.service_command("migrate", "--database-url", url, build=build)
        count = DATABASES.get(name, ROWS[0])
        servers.fill_sqlite(url.removeprefix("sqlite:"), self.places, count)
        return url

    def service_command(self, *command, build=""):
        """Runs a command of the service, and returns its output."""
        program = self.programs[f"location-service{build}"]
        done = subprocess.run([program, *command], stdout=subprocess.PIPE, check=True)
        return done.stdout.decode().strip()

    @functools.cache
    def token(self, subject):
        who = ["--subject", subject, *(["--admin"] if subject == "root" else [])]
        secret = ["--jwt-secret-file", self.secret, "--ttl-secs", "86400"]
        return self.service_command("token", *who, *secret)

    def service(self, *flags, build=""):
        command = [self.programs[f"location-service{build}"], "--listen", "127.0.0.1:0"]
        secret = ["--jwt-secret-file", self.secret]
        # The load is that of one caller, and the peers have no shares of callers.
        shares = ["--max-calls-per-caller", "16"]
        return Listener([*command, *secret, *shares, "--log-filter", "warn", *flags], self.folder)

    def replica(self, database, *flags, build=""):
        """The service over PostgreSQL and Redis."""
        engines = ["--database-url", self.database(database, build), "--redis-url", self.redis.url]
        prefix = ["--redis-key-prefix", f"{database}{build}:"]
        return self.service(*engines, *prefix, *flags, build=build)

    def peer(self, command, database, *flags):
        engines = ["--database-url", self.database(database, ""), "--redis-url", self.redis.url]
        return Listener([self.programs["peers"], command, *engines, *flags], self.folder)

    def server(self, name):
        if name not in self.started:
            self.started[name] = self.start(name)
            if kind_of(name) in ("embedded", "embedded-tls", "warm", "cold", "service"):
                self.await_cache(name)
        return self.started[name]

    def stop(self, name):
        self.clients.pop(name).close()
        self.started.pop(name).stop()

    def await_cache(self, name):
        """Waits until the service caches: a shared cache is active only after some checks."""
        request = self.pb.ListLocationsRequest(page_size=1).SerializeToString()
        token = self.token("root")

        def hits():
            return "hit" in self.call(name, LIST, request, token)[1]

        servers.until(f"{name} caches", hits)

    def start(self, name):
        """Starts a server. After a colon, its name has the database, the size of its page, or its
        number among several; after an `@`, the build of the service."""
        name, _, build = name.partition("@")
        kind, _, detail = name.partition(":")
        match kind:
            case "embedded":
                return self.service("--database-url", self.file(detail, build), build=build)
            case "embedded-tls":
                certificate, key = self.certificate
                tls = ["--tls-cert-file", certificate, "--tls-key-file", key]
                return self.service("--database-url", self.file(kind, ""), *tls)
            case "warm":
                return self.replica("base", build=build)
            case "cold":
                return self.replica("base", "--cache-max-bytes", "1", build=build)
            case "service":
                return self.replica(detail, build=build)
            case "e":
                return self.peer("e", detail or "base")
            case "e-decoded":
                return self.peer("e", "base", "--decode")
            case "sql":
                return self.peer("sql", detail)
            case "a":
                return Listener([self.programs["peers"], "a", *self.page_files()], self.folder)
            case "a-plain":
                return Listener([self.programs["peer-plain"], *self.page_files()], self.folder)
            case "f":
                file = self.page_files()[PAGES.index(int(detail or PAGE))]
                return Listener([self.programs["peers"], "f", file], self.folder)
            case "f-tls":
                file = self.page_files()[PAGES.index(PAGE)]
                tls = ["--tls", *self.certificate]
                return Listener([self.programs["peers"], "f", file, *tls], self.folder)
            case "fastapi" | "fastapi-ready" | "grpcio":
                script = pathlib.Path("benches/peers/python.py").resolve()
                return Listener([sys.executable, script, kind, self.redis.url], self.folder)
            case _:
                raise ValueError(name)

    def page_files(self):
        """Writes the page of each size to a file, and returns the files."""
        files = []
        for size in PAGES:
            files.append(self.folder / f"page-{size}")
            files[-1].write_bytes(self.page(size))
        return files

    def call(self, server, method, message, token=None, metadata=()):
        """Calls with a real client. Returns the serialized response and its `cache-status`."""
        if server not in self.clients:
            large = [("grpc.max_receive_message_length", 8 << 20)]
            listener = self.server(server)
            if listener.url.startswith("https:"):
                trusted = grpc.ssl_channel_credentials(self.certificate[0].read_bytes())
                self.clients[server] = grpc.secure_channel(listener.address, trusted, large)
            else:
                self.clients[server] = grpc.insecure_channel(listener.address, large)
        if token:
            metadata = (*metadata, ("authorization", f"Bearer {token}"))
        function = self.clients[server].unary_unary(f"/{method}")
        patience = servers.PATIENCE_SECS
        try:
            response, call = function.with_call(message, metadata=metadata, timeout=patience)
        except grpc.RpcError as error:
            raise Failed(f"{method} of {server}: {error.code()}: {error.details()}") from error
        return response, dict(call.initial_metadata()).get("cache-status", "")

    def rows_of_caller(self, count):
        """The newest locations of the caller."""
        of_owner = []
        for number in reversed(range(ROWS[0])):
            if len(of_owner) == count:
                break
            if number // servers.ROWS_PER_RUN % servers.OWNERS == CALLER_NUMBER:
                of_owner.append(self.location(number))
        return of_owner

    def location(self, number):
        """The location of a row, as the service returns it."""
        row = servers.row(self.places, number)
        values = dict(zip(servers.COLUMNS.split(", "), row, strict=True))
        location = self.pb.Location(
            address={
                "address_lines": json.loads(values.pop("address_lines")),
                "locality": values.pop("locality"),
                "administrative_area": values.pop("administrative_area"),
                "postal_code": values.pop("postal_code"),
                "region_code": values.pop("region_code"),
            },
            coordinates={key: values.pop(key) for key in ("latitude", "longitude")},
            labels=json.loads(values.pop("labels")),
        )
        del values["display_name_lower"]
        values["etag"] = f'"{values["etag"]}"'
        for time_ in "create_time", "update_time":
            getattr(location, time_).FromMicroseconds(values.pop(time_))
        for field, value in values.items():
            setattr(location, field, value)
        return location

    @functools.cache
    def page(self, size):
        """The caller's first page from the service, compared with the rows of the database."""
        request = self.pb.ListLocationsRequest(page_size=size).SerializeToString()
        response, _ = self.call("warm", LIST, request, self.token(CALLER))
        page = self.pb.ListLocationsResponse.FromString(response)
        if list(page.locations) != self.rows_of_caller(size):
            raise Failed(f"the service's page of {size} differs from the rows of the database")
        return response

    def invalidate(self, server):
        request = self.pb.InvalidateRequest(everything=True).SerializeToString()
        self.call(server, "location.v1.CacheService/Invalidate", request, self.token("root"))

    def measure(self, title, variants, rounds=None):
        """Measures variants in rounds, each in another order. `variants` has functions that make
        them, so that only those selected by `--only` are made."""

        def is_selected(name):
            is_paired = f"{name.removesuffix('@before')}@before" in variants
            return re.search(self.options.only, name) and (is_paired or not self.options.before)

        selected = {name: make() for name, make in variants.items() if is_selected(name)}
        if not selected:
            return
        print(f"\n{title}", flush=True)
        seen = {name: [] for name in selected}
        for _ in range(rounds or self.options.rounds):
            order = list(selected)
            self.order.shuffle(order)
            for name in order:
                try:
                    seen[name].append(selected[name]())
                except Failed as failed:
                    raise Failed(f"{name}: {failed}") from failed
        self.variants |= selected
        self.measured |= seen
        width = max(map(len, seen))
        for name, rounds in seen.items():
            parts = []
            for field in SHOWN:
                if field in rounds[0]:
                    middle, low, high = spread([round_[field] for round_ in rounds])
                    parts.append(f"{field} {show(middle):>6} ({show(low)}-{show(high)})")
            print(f"  {name:{width}}  {'  '.join(parts)}", flush=True)

    def profile(self, name):
        """Profiles the servers of a measured variant: the share of CPU time of each part of the
        code."""
        variant = self.variants[name]
        variant()
        file = self.folder / "perf.data"
        record = ["perf", "record", "-q", "-F", "4999", "-e", "cpu-clock", "-o", file]
        pids = ",".join(str(self.server(server).pid) for server in variant.names)
        perf = subprocess.Popen([*record, "-p", pids], stderr=subprocess.DEVNULL)
        # Wait until perf samples.
        time.sleep(0.5)
        for _ in range(self.options.rounds):
            variant()
        perf.send_signal(signal.SIGINT)
        perf.wait()
        report = ["perf", "report", "-q", "-i", file, "--no-children", "--stdio", "--sort=dso,sym"]
        lines = subprocess.run(report, stdout=subprocess.PIPE, text=True, check=True).stdout
        shares = dict.fromkeys(PARTS, 0.0)
        line = re.compile(r"^ *([\d.]+)% +(\S+) +\[.\] (.*)$", re.MULTILINE)
        for share, of, symbol in line.findall(lines):
            where = f"{of} {symbol}"
            part = next(part for part, names in PARTS.items() if re.search(names, where))
            shares[part] += float(share)
        total = sum(shares.values())
        self.profiles[name] = {part: share / total for part, share in shares.items()}
        print(f"\n{name}: where its CPU goes")
        for part, share in self.profiles[name].items():
            print(f"  {part:28} {share:4.0%}")

    def database_ns(self):
        """CPU time of PostgreSQL; 0 if it wasn't started."""
        return self.postgres.cpu_ns() if "postgres" in self.__dict__ else 0


def show(value):
    if value == 0:
        return "0"
    digits = max(0, 2 - len(str(int(abs(value)))) + 1)
    return f"{value:,.{digits}f}" if abs(value) >= 0.1 else f"{value:.2g}"


class OtherLoad:
    """The share of the time that other processes took on the server's core. If it is large, the
    machine is busy."""

    def __init__(self):
        self.since = time.monotonic_ns()
        self.busy = self.busy_ns()

    @staticmethod
    def busy_ns():
        stat = pathlib.Path("/proc/stat").read_text()
        core = re.search(rf"^cpu{servers.SERVER_CORE} (.*)$", stat, re.MULTILINE)[1].split()
        user, nice, system, *_ = map(int, core)
        return (user + nice + system + int(core[7])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    def share(self, own_ns):
        took = time.monotonic_ns() - self.since
        return max(0.0, (self.busy_ns() - self.busy - own_ns) / took)


class Expected:
    """Compares responses with the expected one."""

    def __init__(self, value, parse=bytes, *, exact=True):
        self.value = value
        self.parse = parse
        # Whether all responses have the same bytes.
        self.exact = exact

    def __call__(self, response):
        if self.parse(response) != self.value:
            raise Failed(f"unexpected response: {response[:200]}...")


class Repeated:
    """A variant: one call, repeated by h2load, on one server or on several that share the
    connections."""

    def __init__(self, bench, names, method, message, shape, expected, *, headers=(), status=None):
        self.bench = bench
        self.names = names
        self.method = method
        self.message = message
        self.shape = shape
        self.expected = expected
        self.headers = headers
        self.status = status
        self.rate = None
        self.body = bench.folder / f"body-{id(self)}"
        self.body.write_bytes(frame(message))

    def check(self):
        """Calls each server with a real client. Returns the size of a response, if constant."""
        metadata = [tuple(header.split(": ", 1)) for header in self.headers]
        for name in self.names:

            def call(name=name):
                return self.bench.call(name, self.method, self.message, metadata=metadata)

            if self.status:
                # The first calls connect, open the tag and fill the cache.
                servers.until(
                    f"{self.status} by {name}", lambda call=call: self.status in call()[1]
                )
            response, status = call()
            if self.status and self.status not in status:
                raise Failed(f"{name} has the cache-status {status!r}, not {self.status!r}")
            self.expected(response)
        return len(frame(response)) if self.expected.exact else None

    def __call__(self):
        size = self.check()
        if self.rate is None:
            self.rate, *_ = self.load(1_000)
        calls = int(self.rate * self.bench.options.round_secs)
        self.load(calls // 10)
        processes = [self.bench.server(name) for name in self.names]
        commands = self.bench.redis.commands()
        other_load = OtherLoad()
        before = sum(process.cpu_ns() for process in processes)
        database_before = self.bench.database_ns()
        self.rate, micros, data = self.load(calls)
        cpu_ns = sum(process.cpu_ns() for process in processes) - before
        calls = len(micros)
        measured = {
            "cpu_us": cpu_ns / 1e3 / calls,
            "database_us": (self.bench.database_ns() - database_before) / 1e3 / calls,
            "rate": self.rate,
            "p50_us": micros[calls // 2],
            "p99_us": micros[calls * 99 // 100],
            "commands": (self.bench.redis.commands() - commands - 1) / calls,
            "other_load": other_load.share(cpu_ns),
            "rss_bytes": sum(process.rss_bytes() for process in processes),
        }
        if size is not None and data != calls * size:
            raise Failed(f"responses had {data / calls:.1f} bytes, not {size}")
        self.check()
        return measured

    def target(self, name):
        url = f"{self.bench.server(name).url}/{self.method}"
        headers = ["content-type: application/grpc", "te: trailers", *self.headers]
        return [f"--data={self.body}", *(f"--header={header}" for header in headers), url]

    def load(self, calls):
        """Makes calls. Returns their rate, their sorted durations, and the bytes of responses."""
        share = dataclasses.replace(
            self.shape, connections=self.shape.connections // len(self.names)
        )
        calls = max(calls // len(self.names), share.in_flight)
        loads = []
        for number, name in enumerate(self.names):
            log = self.bench.folder / f"h2load-{number}"
            log.unlink(missing_ok=True)
            command = ["h2load", f"--requests={calls}", f"--clients={share.connections}"]
            command += [f"--max-concurrent-streams={share.streams}", f"--log-file={log}"]
            if share.rate:
                command.append(f"--rps={share.rate // share.connections}")
            command += self.target(name)
            loads.append((log, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        rate, micros, data = 0, [], 0
        for log, load in loads:
            report, _ = load.communicate()
            done = re.search(r"(\d+) succeeded, 0 failed, 0 errored, 0 timeout", report)
            if load.returncode or not done or int(done[1]) != calls:
                raise Failed(f"h2load: {report}")
            rate += float(re.search(r"finished in .*?, ([\d.]+) req/s", report)[1])
            data += int(re.search(r"\((\d+)\) data$", report, re.MULTILINE)[1])
            with log.open() as lines:
                micros += [int(line.rsplit("\t", 1)[1]) for line in lines]
        return rate, sorted(micros), data


class Endurance(Repeated):
    """A variant: the growth of a server over ten million calls, after a first million."""

    def __call__(self):
        self.check()
        server = self.bench.server(self.names[0])
        sizes = []
        for _ in range(11):
            self.load(1_000_000)
            sizes.append(server.rss_bytes())
        self.check()
        return {"grown_kib": (sizes[-1] - sizes[0]) / 1024, "rss_bytes": sizes}


class Rest(Repeated):
    """A variant: one call, repeated by h2load with HTTP/1.1 and JSON."""

    def check(self):
        url = f"{self.bench.server(self.names[0]).url}/{self.method}"
        with urllib.request.urlopen(url) as response:
            response = response.read()
        self.expected(response)
        return len(response)

    def target(self, name):
        headers = [f"--header={header}" for header in self.headers]
        return ["--h1", *headers, f"{self.bench.server(name).url}/{self.method}"]


class Various:
    """A variant: calls that differ from each other, by the load generator of the peers."""

    def __init__(self, bench, name, flags):
        self.bench = bench
        self.name = name
        self.names = [name]
        self.ours = name.startswith(("service", "embedded"))
        self.flags = [*flags, f"--token={bench.token('root')}"]
        self.seed = 0

    def load(self, *flags):
        self.seed += 1
        peers, url = self.bench.programs["peers"], self.bench.server(self.name).url
        load = [peers, "load", f"--server={url}", f"--seed={self.seed}", *self.flags, *flags]
        done = subprocess.run(load, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            self.bench.server(self.name).fail("a call failed")
        return json.loads(done.stdout)

    def counted(self, *flags):
        """Runs the load. Returns its counts, with the CPU time of the server and the database."""
        process = self.bench.server(self.name)
        cpu_ns, database_ns = process.cpu_ns(), self.bench.database_ns()
        seen = self.load(*flags)
        seen["cpu_ns"] = process.cpu_ns() - cpu_ns
        seen["database_ns"] = self.bench.database_ns() - database_ns
        return seen

    @staticmethod
    def figures(seen):
        """The figures of consecutive loads."""
        fields = "reads", "writes", "hits", "stale", "stored", "secs", "cpu_ns", "database_ns"
        reads, writes, hits, stale, stored, secs, cpu_ns, database_ns = (
            sum(load[field] for load in seen) for field in fields
        )
        return {
            "cpu_us": cpu_ns / 1e3 / (reads + writes),
            "database_us": database_ns / 1e3 / (reads + writes),
            "rate": (reads + writes) / secs,
            "p50_us": statistics.median(load["read"]["p50_us"] for load in seen),
            "p99_us": statistics.median(load["read"]["p99_us"] for load in seen),
            "hit_rate": hits / reads,
            "stale_rate": stale / reads,
            "stored_rate": stored / reads,
        }


class Misses(Various):
    """A variant: lists that aren't cached. Each pass calls each list once; the service drops its
    cache before it."""

    def __init__(self, bench, name, in_flight, runs, passes):
        super().__init__(bench, name, [f"--in-flight={in_flight}", f"--runs={runs}"])
        self.passes = passes
        self.warm = False

    def __call__(self):
        if not self.warm:
            # Opens connections, prepares statements and allocates memory.
            self.load()
            self.warm = True
        seen = []
        for _ in range(self.passes):
            if self.ours:
                self.bench.invalidate(self.name)
            seen.append(self.counted())
        figures = self.figures(seen)
        if self.ours and (figures["hit_rate"] > 0 or figures["stored_rate"] < 0.99):
            raise Failed(f"lists that weren't cached were no misses: {seen}")
        del figures["hit_rate"], figures["stale_rate"]
        return figures


class Memory(Various):
    """A variant: the memory of a cached response in addition to its bytes, by the growth of the
    process. Each round starts a process, and fills its cache once before it measures, so that
    everything else has grown already."""

    LARGE = f"--cache-max-bytes={8 << 30}"

    def __init__(self, bench, name, page, runs, passes):
        super().__init__(bench, f"{name}:fresh", ["--kinds=3", f"--runs={runs}"])
        self.page = page
        self.passes = passes

    def fill(self, first):
        """Calls each list once per pass, each time with other locations."""
        passes = range(first, first + self.passes)
        return [self.load(f"--page-size={self.page}", f"--skip={skip}") for skip in passes]

    def __call__(self):
        kind, database, _ = self.name.split(":")
        if kind == "embedded":
            process = self.bench.service("--database-url", self.bench.file(database, ""), self.LARGE)
        else:
            process = self.bench.replica(database, self.LARGE)
        self.bench.started[self.name] = process
        self.bench.await_cache(self.name)
        self.bench.invalidate(self.name)
        few, before = self.fill(0), process.rss_bytes()
        more, after = self.fill(self.passes), process.rss_bytes()
        self.bench.invalidate(self.name)
        self.bench.stop(self.name)
        if any(seen["stored"] != seen["reads"] for seen in few + more):
            raise Failed(f"not every response was stored: {few}, {more}")
        entries, body_bytes = (sum(seen[field] for seen in more) for field in ("stored", "bytes"))
        return {"entries": entries, "entry_bytes": (after - before - body_bytes) / entries}


class Mixed(Various):
    """A variant: lists and creations mixed, over runs of unequal popularity."""

    def __init__(self, bench, name, in_flight, runs, writes):
        flags = [f"--in-flight={in_flight}", f"--runs={runs}", f"--writes={writes}", "--kinds=3"]
        super().__init__(bench, name, flags)

    def __call__(self):
        secs = self.bench.options.round_secs
        # Warm up: each list once, then until the cache is as full as these writes allow.
        self.load()
        self.load(f"--secs={secs}")
        figures = self.figures([self.counted(f"--secs={3 * secs}")])
        if self.ours and figures["stale_rate"] > 0:
            raise Failed(f"lists lacked acknowledged locations: {figures}")
        return figures
