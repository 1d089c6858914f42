"""docker-compose.yml, docker-compose.single.yml and the Dockerfile. No container runs here: what they say is held against the
code, and the distributed file's commands are run as processes, with its environment, its database and its health checks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import pytest
import yaml
from click.testing import CliRunner
from sqlalchemy import make_url

from cmis_stream.cli import main
from cmis_stream.cli_db import new_keys
from cmis_stream.log.topics import load_topics
from cmis_stream.settings import Settings
from cmis_stream.store.database import Database, Unavailable, upgraded
from cmis_stream.store.keyring import keyring
from cmis_stream.store.signing import gateway_key
from scripts.kafka import VERSION, Kafka
from scripts.postgres import APP, OWNER, RELAY, Postgres
from scripts.server import free_port
from tests.servers.kafka import own_kafka
from tests.servers.running import running

__all__ = ["own_kafka"]  # a fixture

ROOT = Path(__file__).resolve().parents[1]
MANY, SINGLE = "docker-compose.yml", "docker-compose.single.yml"
OURS = "cmis-stream:local"
READY_S = 120
ONCE = ("topics", "db")
"""Services that end when they have done their work."""
PASSWORDS = ("CMIS_OWNER_PASSWORD", "CMIS_APP_PASSWORD", "CMIS_RELAY_PASSWORD", "CMIS_POSTGRES_PASSWORD")
KEYS = dict(line.split("=", 1) for line in CliRunner().invoke(new_keys).output.splitlines())
"""What `.env` has to say, made as the file says."""


class Service(NamedTuple):
    """file and name only tell which one a test is about."""

    file: str
    name: str
    told: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return {name: interpolated(str(value)) for name, value in self.told.get("environment", {}).items()}


def interpolated(text: str, env: Mapping[str, str] = KEYS) -> str:
    """As compose does it with this `.env`: ${NAME:-default} and ${NAME:?what is said when it is missing}."""

    def value(found: re.Match[str]) -> str:
        name, how, rest = found.groups()
        if how == ":?" and not env.get(name):
            raise KeyError(f"{name} {rest}")
        return env.get(name) or rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, text)


def loaded(file: str) -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return compose


SERVICES = [Service(file, name, told) for file in (MANY, SINGLE) for name, told in loaded(file)["services"].items()]
OUR_SERVICES = [service for service in SERVICES if service.told["image"] == OURS]


def each(services: list[Service]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("service", services, ids=lambda service: f"{service.file}:{service.name}")


def parsed(words: list[str]) -> click.Context:
    """What the real CLI makes of `cmis WORDS`, without running it; click's UsageError when it cannot be."""
    command: click.Command = main
    name: str | None = "cmis"
    while isinstance(command, click.Group) and words:
        name, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    return command.make_context(name, list(words))


def of(service: Service, monkeypatch: pytest.MonkeyPatch) -> click.Context:
    for name in [name for name in os.environ if name.startswith("CMIS_")]:
        monkeypatch.delenv(name)
    image = dict(word.split("=", 1) for word in dict(instructions())["ENV"].split())
    for name, value in {**image, **service.environment}.items():
        if name.startswith("CMIS_"):
            monkeypatch.setenv(name, value)
    return parsed([str(word) for word in service.told["command"]])


# --- commands ----------------------------------------------------------------------------------------------------------


@each(OUR_SERVICES)
def test_the_command_of_each_service_is_one_of_the_cli_with_values_that_it_takes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = of(service, monkeypatch)
    assert context.info_name == {"cmis": "up", "topics": "apply", "db": "upgrade"}.get(service.name, service.name)
    assert context.params.get("data_dir", Path("/data")) == Path("/data")
    if service.file == MANY and service.name != "db":
        assert context.params["log_url"] == "kafka://kafka:9092"
    assert context.params.get("backplane_url") in (None, "redis://redis:6379/0")
    assert context.params.get("host", "0.0.0.0") == "0.0.0.0", "nothing outside its container reaches it"


@pytest.mark.parametrize("file", [MANY, SINGLE, "Dockerfile"])
def test_the_commands_in_the_comments_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    commands = re.findall(r"^#.* exec (\w+) cmis (.+?)(?: {2,}.*)?$", text, re.M)
    assert commands or file == "Dockerfile"
    for alone in re.findall(rf"docker run --rm {OURS} ([^>#\n]+)", text):
        parsed(shlex.split(alone))
    for service, command in commands:
        assert service in loaded(file)["services"]
        parsed(shlex.split(command.partition("#")[0]))
    for scaled in re.findall(r"--scale (\w+)=", text):
        assert scaled in loaded(file)["services"]


@each([service for service in OUR_SERVICES if service.name not in ONCE])
def test_health_is_asked_at_the_port_that_the_command_listens_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    port = of(service, monkeypatch).params["port"]
    *command, source = service.told["healthcheck"]["test"]
    assert command == ["CMD", "python", "-c"]
    (url,) = re.findall(r"urlopen\('(.+?)'", source)
    assert url == f"http://127.0.0.1:{port}/healthz"
    compile(source, "healthcheck", "exec")


@each(SERVICES)
def test_published_ports_are_on_loopback_and_lead_to_a_port_that_the_service_listens_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = [port.split(":") for port in service.told.get("ports", ())]
    assert all(address == "127.0.0.1" and outside == inside for address, outside, inside in published)
    if service.told["image"] != OURS:
        assert not published
        return
    params = of(service, monkeypatch).params
    listening = {params.get("port")} | ({params["gateway_port"]} if service.name == "cmis" else set())
    assert {int(inside) for _, _, inside in published} == (listening if service.name not in (*ONCE, "worker") else set())
    assert not published or service.told.get("deploy", {}).get("replicas", 1) == 1, "replicas would want the same port"


def test_the_page_finds_the_published_gateway_and_the_gateway_takes_that_page(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = {service.name: service for service in SERVICES if service.file == MANY}
    api, gateway = of(by_name["api"], monkeypatch).params, of(by_name["gateway"], monkeypatch).params
    assert (api["gateway_port"], gateway["page_port"]) == (gateway["port"], api["port"])


# --- services ----------------------------------------------------------------------------------------------------------


@each(SERVICES)
def test_each_service_is_pinned_comes_back_and_is_given_time_to_end(service: Service) -> None:
    image = service.told["image"]
    assert image == OURS or re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", image), "pinned by version"
    assert (service.told.get("build") == ".") == (image == OURS)
    if service.name in ONCE:
        assert service.told["restart"].startswith("on-failure:")
        return
    assert service.told["restart"] == "unless-stopped"
    assert re.fullmatch(r"\d+s", service.told["stop_grace_period"])
    assert {"test", "interval", "timeout", "start_period"} <= service.told["healthcheck"].keys()


@pytest.mark.parametrize("file", [MANY, SINGLE])
def test_volumes_are_declared_and_used_and_services_wait_for_what_can_become_true(file: str) -> None:
    compose = loaded(file)
    services = compose["services"]
    used = {volume.split(":")[0] for told in services.values() for volume in told.get("volumes", ())}
    files = {name for name in used if name.startswith("./")}
    assert used - files == set(compose["volumes"]) and all((ROOT / file).is_file() for file in files)
    for told in services.values():
        for name, wanted in told.get("depends_on", {}).items():
            condition = wanted["condition"]
            assert condition in ("service_healthy", "service_completed_successfully")
            assert (condition == "service_healthy") == ("healthcheck" in services[name])


def test_processes_share_what_is_a_folder_and_all_find_the_same_kafka_redis_database_and_keys() -> None:
    services = loaded(MANY)["services"]
    of_all = dict(services["api"]["environment"])
    assert services["gateway"]["environment"] == of_all
    assert {name: services["worker"]["environment"][name] for name in of_all} == of_all
    shared = [f"{path.name}:/data/{path.name}" for path in (Settings().history_path, Settings().data_dir / "files")]
    assert services["worker"]["volumes"] == services["api"]["volumes"] == shared
    assert not [name for name in ("gateway", *ONCE) if "volumes" in services[name]]
    owned = dict(instructions())["RUN"].rpartition("install -d -o cmis -g cmis ")[2].split()
    assert set(owned) == {"/data", *(volume.split(":")[1] for volume in shared)}, "a new volume takes over their owner"
    ours = [services["worker"]]
    kafka = services["kafka"]["environment"]
    advertised = urlsplit(kafka["KAFKA_ADVERTISED_LISTENERS"])
    log, backplane = urlsplit(ours[0]["environment"]["CMIS_LOG"]), urlsplit(ours[0]["environment"]["CMIS_BACKPLANE"])
    assert log.netloc == advertised.netloc == services["kafka"]["healthcheck"]["test"][-1]
    assert services["kafka"]["hostname"] == log.hostname
    assert backplane.hostname in services
    assert f"{kafka['KAFKA_LOG_DIRS']}" in [volume.split(":")[1] for volume in services["kafka"]["volumes"]]
    assert services["kafka"]["image"] == f"apache/kafka:{VERSION}", "the version that the tests run"
    assert kafka["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_each_process_connects_to_the_database_as_the_least_that_it_needs_to_be() -> None:
    services = loaded(MANY)["services"]
    database = services["postgres"]
    roles: dict[str, set[str]] = {}
    for name, told in services.items():
        for key, value in told.get("environment", {}).items():
            if key.startswith("CMIS_STORE"):
                url = make_url(interpolated(value))
                roles.setdefault(name, set()).add(str(url.username))
                assert (url.host, url.port, url.database) == ("postgres", 5432, "cmis")
                variable = f"CMIS_{str(url.username).removeprefix('cmis_').upper()}_PASSWORD"
                assert database["environment"][variable] in value, "the password that its role was made with"
    assert roles == {"db": {OWNER}, "worker": {APP, RELAY}, "api": {APP}, "gateway": {APP}}
    assert set(database["environment"].values()) == {f"${{{name}:-trial}}" for name in PASSWORDS}
    assert "ports" not in database, "its passwords are known to everybody"
    check = database["healthcheck"]["test"]
    assert check[check.index("--host") + 1] == "127.0.0.1", "its start makes the roles over a socket"


def test_without_keys_it_does_not_start_and_the_ones_that_are_made_are_taken(tmp_path: Path) -> None:
    environment = loaded(MANY)["services"]["api"]["environment"]
    for name, value in KEYS.items():
        with pytest.raises(KeyError, match=f"{name} is missing"):
            interpolated(environment[name], {})
        assert interpolated(environment[name]) == value
    assert len(gateway_key(KEYS["CMIS_GATEWAY_KEY"], tmp_path / "none")) == 32
    assert repr(keyring(KEYS["CMIS_SECRET_KEYS"], tmp_path / "none")).startswith("Keyring(")
    assert len(set(KEYS.values())) == 2 and not list(tmp_path.iterdir())
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_every_worker_of_the_compose_file_can_have_a_partition() -> None:
    partitions = {spec.partitions for spec in load_topics().values()}
    assert loaded(MANY)["services"]["worker"]["deploy"]["replicas"] <= min(partitions)


# --- image -------------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(instruction, its text) of the Dockerfile, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def test_the_image_runs_the_cli_as_an_ordinary_user_on_a_python_that_the_package_wants() -> None:
    found = dict(instructions())
    assert yaml.safe_load(found["ENTRYPOINT"]) == ["cmis"]
    assert parsed(yaml.safe_load(found["CMD"])).info_name == "up"
    assert found["USER"] not in ("root", "0")
    assert "CMIS_DATA_DIR=/data" in found["ENV"] and found["VOLUME"] == "/data"
    assert {"8600", "8601", "8610"} == set(found["EXPOSE"].split())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    bases = [text.split()[0] for name, text in instructions() if name == "FROM"]
    assert wanted == ">=3.11" and set(bases) == {"python:3.11-slim"}
    assert any("--require-hashes -r requirements/run.txt" in text for name, text in instructions() if name == "RUN")


def test_what_the_image_is_built_from_exists_and_reaches_the_build() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        word for name, text in instructions() if name == "COPY" and "--from" not in text for word in shlex.split(text)[:-1]
    }  # fmt: skip
    assert copied == kept, ".dockerignore lets through what is copied, and nothing else"
    assert all((ROOT / path).exists() for path in copied)
    assert not any(fnmatch(path, line) for path in copied for line in ignore if not line.startswith("!") and line != "*")


def test_the_package_is_built_from_what_the_image_copies(tmp_path: Path) -> None:
    """As in the Dockerfile, but for the page, which the build takes as it is here when it is there."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name, text in instructions():
        if name != "COPY" or "--from" in text:
            continue
        *sources, target = shlex.split(text)
        for source in sources:
            to = tmp_path / target / Path(source).name if target.endswith("/") else tmp_path / target
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=ignored)
            else:
                shutil.copy(ROOT / source, to)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path / "wheels"), str(tmp_path)], check=True)
    assert list((tmp_path / "wheels").glob("cmis_stream-*.whl"))


# --- the distributed file, as processes --------------------------------------------------------------------------------


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    binary = shutil.which("redis-server")
    if binary is None:
        if os.environ.get("CI"):
            raise FileNotFoundError("redis-server")
        pytest.skip("redis-server is not installed")
    port = free_port()
    *_, save, nothing, append, no = loaded(MANY)["services"]["redis"]["command"]
    process = subprocess.Popen([binary, save, nothing, append, no, "--port", str(port), "--bind", "127.0.0.1"], cwd=tmp_path)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """With the roles and the database as the file makes them, and passwords that count."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not below pytest's folder, which the server's user may not enter
    try:
        with running(Postgres(folder, settings={"fsync": "off"})) as server:
            server.execute("drop database cmis; drop role cmis_owner, cmis_app, cmis_relay;", database="postgres")
            trusting = (folder / "cluster" / "pg_hba.conf").read_text()
            asked = "".join(f"host all {role} 127.0.0.1/32 scram-sha-256\n" for role in (OWNER, APP, RELAY))
            (folder / "cluster" / "pg_hba.conf").write_text(asked + trusting)
            server.execute("select pg_reload_conf()", database="postgres")
            make_roles(server, dict.fromkeys(PASSWORDS, "trial"))
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_roles(server: Postgres, passwords: Mapping[str, str]) -> None:
    """As the image does it: psql as its superuser, with the environment of the service."""
    (file,) = (volume.split(":")[0] for volume in loaded(MANY)["services"]["postgres"]["volumes"] if volume.startswith("./"))
    psql = ["psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--no-password", "-d", server.url("postgres", "postgres")]
    subprocess.run([*psql, "-f", str(ROOT / file)], env={**os.environ, **passwords}, check=True, stdout=subprocess.DEVNULL)


def as_role(server: Postgres, role: str, password: str) -> str:
    return make_url(server.url(role)).set(password=password).render_as_string(False)


@pytest.mark.slow
def test_the_roles_have_their_passwords_and_no_more_rights_than_they_need(own_postgres: Postgres) -> None:
    server = own_postgres
    with pytest.raises(Unavailable, match="password authentication failed"):
        upgraded(as_role(server, OWNER, "wrong"))
    assert upgraded(as_role(server, OWNER, "trial")) is None
    make_roles(server, {name: f"new{name.split('_')[1].lower()}" for name in PASSWORDS})
    for role, password in ((APP, "newapp"), (RELAY, "newrelay")):
        with pytest.raises(Unavailable, match="password authentication failed"):
            Database(as_role(server, role, "trial"))
        Database(as_role(server, role, password)).close()
    may = "rolsuper or rolbypassrls or rolcreaterole or rolcreatedb"
    assert server.execute(f"select count(*) from pg_roles where rolname like 'cmis%' and not ({may})") == "3\n"
    assert (
        server.execute("select string_agg(distinct tableowner, ' ') from pg_tables where schemaname = 'public'") == f"{OWNER}\n"
    )
    server.execute("create role stranger login", database="postgres")
    with pytest.raises(Unavailable, match="permission denied for database"):
        upgraded(server.url("stranger"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_processes_become_healthy_in_its_order_do_what_its_comments_say_and_end_cleanly(
    tmp_path: Path, own_kafka: Kafka, redis_port: int, own_postgres: Postgres
) -> None:
    ports = {port: str(free_port()) for port in ("8600", "8601", "8610")}
    here = {
        "kafka:9092": own_kafka.bootstrap, "redis:6379": f"127.0.0.1:{redis_port}",
        "postgres:5432": f"127.0.0.1:{own_postgres.port}", "0.0.0.0": "127.0.0.1", "CMD": "", "python": sys.executable, **ports,
    }  # fmt: skip

    def moved(text: str) -> str:
        for there, to in here.items():
            text = text.replace(there, to) if there != "python" else re.sub(r"^python$", to, text)
        return text

    def environment(name: str) -> dict[str, str]:
        """Each in a folder of its own, with the volumes mounted as they are there."""
        folder = tmp_path / name
        for volume in services[name].get("volumes", ()):
            shared, mounted = tmp_path / "volumes" / volume.split(":")[0], folder / volume.split(":")[1].removeprefix("/data/")
            shared.mkdir(parents=True, exist_ok=True)
            mounted.parent.mkdir(exist_ok=True)
            if not mounted.is_symlink():
                mounted.symlink_to(shared)
        told = {key: moved(interpolated(value)) for key, value in services[name].get("environment", {}).items()}
        return {**os.environ, "CMIS_DATA_DIR": str(folder), **told}

    def done(name: str, words: list[str]) -> str:
        finished = subprocess.run(
            [*cmis, *words], env=environment(name), cwd=ROOT, timeout=READY_S, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    cmis = [sys.executable, "-m", "cmis_stream"]
    services = loaded(MANY)["services"]
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in (*ONCE, "worker", "api", "gateway"):
            told = services[name]
            assert set(told["depends_on"]) <= {"kafka", "redis", "postgres", *ONCE}
            words = [moved(word) for word in told["command"]]
            if name in ONCE:
                done(name, words)
                continue
            started[name] = subprocess.Popen([*cmis, *words], env=environment(name), cwd=ROOT)
        for name, process in started.items():
            check = [moved(word) for word in services[name]["healthcheck"]["test"]][1:]
            give_up_at = time.monotonic() + READY_S
            while subprocess.run(check, check=False, stderr=subprocess.DEVNULL).returncode:
                assert process.poll() is None and time.monotonic() < give_up_at, f"{name} did not become healthy"
                time.sleep(0.2)
        commands = re.findall(r"^#.* exec (\w+) cmis (.+?)(?: {2,}.*)?$", (ROOT / MANY).read_text(), re.M)
        said = {command: done(service, shlex.split(command)) for service, command in commands}
        assert f":{ports['8600']}/sign-in#code=" in said["sign-in"] and said["token create acme"].startswith("cmis_")
        shown = done("api", ["status"])
        assert f"Store: postgresql://cmis_app@127.0.0.1:{own_postgres.port}/cmis can be written" in shown
        for name, process in started.items():
            process.send_signal(signal.SIGTERM)
            assert process.wait(int(services[name]["stop_grace_period"].removesuffix("s"))) == 0, name
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    assert not list(tmp_path.rglob("*.key")) and not list(tmp_path.rglob("store.db")), "they share no disk but the volumes"
