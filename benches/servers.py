"""The processes of a benchmark, each on one core, and the rows that databases are filled with."""

import csv
import gzip
import itertools
import json
import os
import pathlib
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time

# The time limit for anything that must happen.
PATIENCE_SECS = 60

# Servers that are measured have a core of their own; load, databases and Redis share the other.
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]

ROWS_PER_RUN = 60
OWNERS = 5
COLUMNS = (
    "id, type, display_name, display_name_lower, production_run_id, owner_id, address_lines, "
    "locality, administrative_area, postal_code, region_code, latitude, longitude, capacity, "
    "state, description, labels, create_time, update_time, etag"
)
FIRST_ROW_MS = 1_767_225_600_000
STREETS = "Station Road", "Market Square", "Harbour Lane", "Mill Street", "Old Customs Yard"


class Failed(Exception):
    """The benchmark failed. The text is for its user."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, happened):
    deadline = time.monotonic() + PATIENCE_SECS
    while not happened():
        if time.monotonic() > deadline:
            raise Failed(f"not in {PATIENCE_SECS} s: {what}")
        time.sleep(0.02)


class Process:
    """A process on one core, which ends with the benchmark."""

    numbers = itertools.count(1)

    def __init__(
        self, argv, folder, *, core=LOAD_CORE, user=None, death_signal="KILL", stdout=None
    ):
        as_user = ["--reuid", user, "--regid", user, "--init-groups"] if user else []
        self.log = folder / f"{next(self.numbers)}-{pathlib.Path(argv[0]).name}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", death_signal, *as_user, "--"]
                + ["taskset", "--cpu-list", str(core), *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                cwd="/" if user else None,
            )
        self.pid = self.popen.pid

    def fail(self, what):
        raise Failed(f"{what}: {self.log.read_text(errors='replace')[-2000:]}")

    def stop(self):
        self.popen.kill()
        self.popen.wait()

    def cpu_ns(self):
        """User and system time of all its threads, including ended ones."""
        return cpu_ns(self.pid)

    def rss_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


def cpu_ns(pid):
    """utime + stime of /proc/PID/stat, in nanoseconds: see clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


class Listener(Process):
    """A server that prints `listening on URL`."""

    def __init__(self, argv, folder, *, core=SERVER_CORE):
        super().__init__(argv, folder, core=core, stdout=subprocess.PIPE)
        line = self.popen.stdout.readline().decode()
        if not line.startswith("listening on http"):
            self.fail(f"{argv[0]} doesn't start")
        self.url = line.split()[-1]
        self.address = self.url.partition("://")[2]


class Redis(Process):
    """A private Redis server, without persistence."""

    def __init__(self, folder):
        port = free_port()
        super().__init__(
            ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            folder,
        )
        import redis

        self.url = f"redis://127.0.0.1:{port}"
        self.client = redis.Redis(port=port)

        def responds():
            if self.popen.poll() is not None:
                self.fail("redis-server doesn't start")
            try:
                return self.client.ping()
            except redis.ConnectionError:
                return False

        until("Redis responds", responds)

    def commands(self):
        """Number of executed commands, including those of scripts, without this one."""
        return self.client.info("stats")["total_commands_processed"]


class Postgres(Process):
    """A private PostgreSQL server. It doesn't wait for the disk, which isn't measured."""

    def __init__(self, folder):
        binaries = max(
            pathlib.Path("/usr/lib/postgresql").glob("*/bin"),
            key=lambda path: float(path.parent.name),
        )
        user = "postgres" if os.geteuid() == 0 else None
        data = folder / "postgres"
        data.mkdir()
        if user:
            # Lets the server's user enter the folder.
            folder.chmod(0o711)
            owner = pwd.getpwnam(user)
            os.chown(data, owner.pw_uid, owner.pw_gid)
        initdb = Process(
            [binaries / "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8"]
            + ["--locale=C.UTF-8", "--username=postgres", "--pgdata", data],
            folder,
            user=user,
        )
        if initdb.popen.wait():
            initdb.fail("initdb")
        self.port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "max_connections": 300,
            "shared_buffers": "1GB",
            "max_wal_size": "16GB",
            "checkpoint_timeout": "1h",
        }
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        super().__init__(
            [binaries / "postgres", "-D", data, *flags], folder, user=user, death_signal="QUIT"
        )
        self.psql = [binaries / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
        ready = [binaries / "pg_isready", "--quiet", "--host=127.0.0.1", f"--port={self.port}"]

        def responds():
            if self.popen.poll() is not None:
                self.fail("postgres doesn't start")
            return subprocess.run(ready, check=False).returncode == 0

        until("PostgreSQL responds", responds)

    def url(self, database):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def run(self, database, sql, lines=None):
        """Runs a statement. `lines` are the input of COPY FROM STDIN."""
        psql = subprocess.Popen(
            [*self.psql, "--command", sql, self.url(database)], stdin=subprocess.PIPE, text=True
        )
        with psql.stdin as stdin:
            csv.writer(stdin).writerows(lines or ())
        if psql.wait():
            raise Failed(f"psql: {sql}")

    def fill(self, database, places, count):
        """Inserts rows into a database with the service's schema."""
        copy = f"COPY locations ({COLUMNS}) FROM STDIN (FORMAT csv, NULL 'NULL')"
        self.run(database, copy, rows(places, count))
        self.run(database, "VACUUM (ANALYZE, FREEZE) locations")

    def cpu_ns(self):
        """CPU time of all its current processes."""
        children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sum(cpu_ns(int(pid)) for pid in [self.pid, *children])


def fill_sqlite(path, places, count):
    """Inserts rows into a database with the service's schema."""
    database = sqlite3.connect(path)
    marks = ", ".join("?" * len(COLUMNS.split(", ")))
    with database:
        database.executemany(
            f"INSERT INTO locations ({COLUMNS}) VALUES ({marks})",
            ((bytes.fromhex(id.replace("-", "")), *rest) for id, *rest in rows(places, count)),
        )
    database.close()


def read_places(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def rows(places, count):
    """Yields rows of the table `locations`: the places, repeated with a number after the name.

    Each run has `ROWS_PER_RUN` consecutive rows of one owner. Later rows are newer.
    """
    for number in range(count):
        yield row(places, number)


def row(places, number):
    place, turn = places[number % len(places)], number // len(places) + 1
    ms = FIRST_ROW_MS + number
    run = number // ROWS_PER_RUN
    name = place["display_name"] if turn == 1 else f"{place['display_name']} {turn}"
    street = f"{1 + number * 7 % 199} {STREETS[number % len(STREETS)]}"
    etag = (number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)
    return (
        f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-{number:012x}",
        1 + number % 2,
        name,
        name.lower(),
        f"run-{run:05}",
        f"user-{run % OWNERS}",
        json.dumps([street, "Gate B"], ensure_ascii=False),
        place["display_name"],
        place["administrative_area"],
        f"{number * 31 % 100_000:05}",
        place["region_code"],
        float(place["latitude"]),
        float(place["longitude"]),
        int(place["population"]),
        1 if number % 10 else 2,
        f"By appointment, 07:00 to 15:30 in {place['timezone']}",
        json.dumps({"geoname": place["geoname_id"]}),
        ms * 1_000,
        ms * 1_000,
        f"{etag:032x}",
    )


class Folder:
    """A temporary folder, deleted at the end."""

    def __enter__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="location-service-bench-"))
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)
