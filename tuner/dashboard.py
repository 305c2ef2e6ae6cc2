"""The dashboard: optuna-dashboard behind a guard, on storage that reads large studies in bulk.

optuna-dashboard has no login, checks no Host header, lets anybody delete a study and shows uploaded HTML on its own
origin. :class:`Guard` stands before it, as plain WSGI, and refuses all of that with the reason. It also reads every
trial of a study anew for every look, one object each: of 20,000 trials that is 41 MiB of JSON after 17 seconds on two
CPU cores. :class:`Shown` reads in a handful of statements, and of a large study one trial in every few: 3.4 MiB after
1.2 seconds.
"""

from __future__ import annotations

import base64
import binascii
import copy
import errno
import hmac
import ipaddress
import json
import logging
import math
import socket
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import bottle
import optuna
import optuna_dashboard
import sqlalchemy
import waitress
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, select

from tuner.errors import BadInputError, StorageError
from tuner.manager import artifacts_root
from tuner.storage import records
from tuner.storage.attachments import MAX_BYTES, Attachments
from tuner.storage.database import open_database

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SHOWN_TRIALS = 2000  # more than these are thinned: what a browser draws within seconds
WEIGHED_TRIALS = 4000  # and what importances are computed from within a second or two
SHOWN_POINTS = 100  # of one learning curve
PORT = 8080
PASSWORD_VARIABLE = "TUNER_DASHBOARD_PASSWORD"
_UPLOAD_BYTES = MAX_BYTES * 3 // 2  # of a request with an attachment, which comes in Base64
_NO_UPLOAD_BYTES = 2**20
_READS = ("GET", "HEAD")
_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"

_log = logging.getLogger(__name__)

# What is served


class Handed(Attachments):
    """The attachments as the dashboard hands them out and takes them in: what goes wrong is an answer with a reason."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The file, or 404 or 503."""
        try:
            return super().open_reader(artifact_id)
        except ArtifactNotFound:
            reason = "the file is not where this dashboard keeps files; give it the --artifacts of who attached it"
            raise _answer("404 Not Found", reason) from None
        except StorageError:
            _log.warning("an attachment cannot be read", exc_info=True)
            raise _answer("503 Service Unavailable", "the files cannot be read at the moment") from None

    def save(self, artifact_id: str, content: bytes) -> None:
        """Store an upload, or answer 507 with the reason."""
        try:
            super().save(artifact_id, content)
        except StorageError as error:
            raise bottle.HTTPError(507, str(error)) from None  # which its JSON views take for a reason


def _answer(status: str, reason: str) -> bottle.HTTPResponse:
    """What a view of optuna-dashboard may raise to be answered with it."""
    return bottle.HTTPResponse(json.dumps({"reason": reason}), status, {"Content-Type": "application/json"})


class Shown(optuna.storages.RDBStorage):
    """Optuna's storage as the dashboard looks at it: whole studies in a handful of statements, large ones thinned.

    Of a study with more than ``SHOWN_TRIALS`` trials, each run of 2, 4, 8, … consecutive ones is represented by one: a
    trial that is not over while there is any, then the best. So the best trial of all is among them, those that were
    over stay where they were from one look to the next, and a list stays short. A user attribute of the study says so.
    Of a long learning curve about ``SHOWN_POINTS`` epochs are left. Trials that are over are kept in memory.

    Importances, and plots that the server draws, are of every 2nd, 4th, 8th, … trial of a study with more than
    ``WEIGHED_TRIALS``: evenly, since the best would not do for them. Within :func:`whole` they are of all.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._over: dict[int, FrozenTrial] = {}  # by trial id
        self._distributions: dict[str, BaseDistribution] = {}
        self._reading = threading.Lock()

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies, each large one with an attribute that says what of it is shown."""
        found = super().get_all_studies()
        counted = select(records.trials.c.study_id, sqlalchemy.func.count().label("trials")).group_by(
            records.trials.c.study_id
        )
        with self.engine.connect() as connection:
            trials = {row.study_id: row.trials for row in connection.execute(counted)}
        for study in found:
            count = trials.get(study._study_id, 0)
            if (each := stride(count)) > 1:
                evenly = stride(count, WEIGHED_TRIALS)
                weighed = f"importances are of one trial in {evenly}; " if evenly > 1 else ""
                study.user_attrs["shown"] = (
                    f"the best of each {each} consecutive trials of {count:,}; {weighed}"
                    f"tuner report {study.study_name} draws all"
                )
        return found

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name, or 404: whoever still has the page of a deleted study open asks for its plots."""
        try:
            return super().get_study_name_from_id(study_id)
        except KeyError:
            raise bottle.HTTPError(404, f"study {study_id} is gone") from None

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """None of a trial that is gone, as of a study."""
        try:
            return super().get_trial_system_attrs(trial_id)
        except KeyError:
            return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """None of a study that is gone: whoever still has its page open is told that its files are not there."""
        try:
            return super().get_study_system_attrs(study_id)
        except KeyError:
            return {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials to show, by number; see the class."""
        with self._reading, self.engine.connect() as connection:
            chosen = _chosen(connection, study_id)
            missing = [trial_id for trial_id in chosen if trial_id not in self._over]
            fresh = _read(connection, missing, self._distributions)
            self._over |= {trial_id: trial for trial_id, trial in fresh.items() if trial.state.is_finished()}
            trials = [self._over.get(trial_id) or fresh[trial_id] for trial_id in chosen]
        wanted = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(wanted) if deepcopy else wanted

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """The trials as ``optuna.load_study`` asks for them, without their learning curves: for importances, plots and
        the CSV file. See the class.
        """
        trials = records.trials
        with self.engine.connect() as connection:
            mine = select(trials.c.trial_id).where(trials.c.study_id == study_id)
            if not _whole.get():
                counted = select(sqlalchemy.func.count()).where(trials.c.study_id == study_id)
                mine = mine.where(
                    trials.c.number % stride(connection.execute(counted).scalar_one(), WEIGHED_TRIALS) == 0
                )
            wanted = sqlalchemy.or_(
                trials.c.trial_id > trial_id_greater_than, trials.c.trial_id.in_(included_trial_ids)
            )
            ids = connection.execute(mine.where(wanted).order_by(trials.c.trial_id)).scalars().all()
            found = _read(connection, ids, self._distributions, curves=False)
        return [found[i] for i in ids if states is None or found[i].state in states]


_whole: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def whole() -> Iterator[None]:
    """Within it, all trials of large studies are read: for those who take them away as a file."""
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def stride(count: int, most: int = SHOWN_TRIALS) -> int:
    """How many consecutive trials one stands for: a power of two, so that it seldom changes while a study grows.

    >>> stride(2000), stride(2001), stride(20_000)
    (1, 2, 16)
    """
    return 1 << max(0, math.ceil(math.log2(count / most))) if count else 1


def representatives(
    heads: Sequence[tuple[int, int, bool, float]],
    each: int,
) -> list[int]:
    """The ids of the trials that stand for their runs of ``each`` consecutive numbers.

    heads: (id, number, whether it is over, its rank key: the least is the best, infinite without a value), by number.

    >>> representatives([(7, 0, True, 0.3), (8, 1, True, 0.1), (9, 2, True, 0.5), (10, 3, False, 0.0)], 2)
    [8, 10]
    """
    best: dict[int, tuple[bool, float, int, int]] = {}
    for trial_id, number, over, key in heads:
        candidate = (over, key, number, trial_id)
        best[number // each] = min(best.get(number // each, candidate), candidate)
    return [trial_id for *_, trial_id in best.values()]


def _chosen(connection: Connection, study_id: int) -> list[int]:
    trials, values = records.trials, records.values
    directions = select(records.directions.c.direction).where(records.directions.c.study_id == study_id)
    known = connection.execute(directions).scalars().all()
    if not known:
        raise KeyError(f"study {study_id} is gone")
    sign = -1.0 if known[0].name == "MAXIMIZE" else 1.0
    first = sqlalchemy.and_(values.c.trial_id == trials.c.trial_id, values.c.objective == 0)
    rows = connection.execute(
        select(trials.c.trial_id, trials.c.number, trials.c.state, values.c.value)
        .select_from(trials.outerjoin(values, first))
        .where(trials.c.study_id == study_id)
        .order_by(trials.c.number)
    ).all()
    each = stride(len(rows))
    if each == 1:
        return [row.trial_id for row in rows]
    heads = []
    for row in rows:
        key = math.inf if row.value is None else sign * row.value
        # A pruned trial's value is of fewer epochs: it never stands before a complete one.
        behind = 0.0 if row.state == TrialState.COMPLETE else 1e300
        heads.append((row.trial_id, row.number, row.state.is_finished(), key + behind))
    return representatives(heads, each)


def _read(
    connection: Connection,
    trial_ids: Sequence[int],
    distributions: dict[str, BaseDistribution],
    *,
    curves: bool = True,
) -> dict[int, FrozenTrial]:
    """FrozenTrials by id, read in a number of statements that does not depend on how many there are."""

    def rows_of(table: sqlalchemy.Table) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        order = list(table.primary_key)
        for ids in records.batched(trial_ids):
            for row in connection.execute(select(table).where(table.c.trial_id.in_(ids)).order_by(*order)):
                found.setdefault(row.trial_id, []).append(row)
        return found

    heads, params, values = rows_of(records.trials), rows_of(records.params), rows_of(records.values)
    steps = rows_of(records.intermediate_values) if curves else {}
    user, system = rows_of(records.trial_user_attrs), rows_of(records.trial_system_attrs)

    def distribution(text: str) -> BaseDistribution:
        if text not in distributions:
            distributions[text] = json_to_distribution(text)
        return distributions[text]

    found = {}
    for trial_id, (head,) in heads.items():
        drawn = {row.param_name: distribution(row.distribution_json) for row in params.get(trial_id, [])}
        objective = sorted(values.get(trial_id, []), key=lambda row: int(row.objective))
        found[trial_id] = FrozenTrial(
            number=head.number,
            state=head.state,
            value=None,
            values=[models.TrialValueModel.stored_repr_to_value(row.value, row.value_type) for row in objective]
            or None,
            datetime_start=head.datetime_start,
            datetime_complete=head.datetime_complete,
            params={
                row.param_name: drawn[row.param_name].to_external_repr(row.param_value)
                for row in params.get(trial_id, [])
            },
            distributions=drawn,
            user_attrs={row.key: json.loads(row.value_json) for row in user.get(trial_id, [])},
            system_attrs={row.key: json.loads(row.value_json) for row in system.get(trial_id, [])},
            intermediate_values={
                row.step: models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(
                    row.intermediate_value, row.intermediate_value_type
                )
                for row in _thinned(sorted(steps.get(trial_id, []), key=lambda row: int(row.step)))
            },
            trial_id=trial_id,
        )
    return found


def _thinned(points: Sequence[Any]) -> Sequence[Any]:
    """About ``SHOWN_POINTS`` of a curve's points, the first and the last among them."""
    each = -(-len(points) // SHOWN_POINTS)
    return points if each <= 1 else [*points[: len(points) - 1 : each], points[-1]]


# Who may see it


class Guard:
    """A WSGI middleware that lets through what a careful administrator would.

    hosts: names, beside ``localhost`` and IP addresses, that the Host header may have. Another name is one that
        somebody else made point here (DNS rebinding). password: asked for as HTTP's Basic authentication, with any user
        name. allow_edits: whether requests that change something pass; renaming never does, as it would copy the trials
        into another study and cut them off from Tuner's ledger.
    """

    def __init__(
        self,
        application: WSGIApplication,
        *,
        hosts: Iterable[str] = (),
        password: str | None = None,
        allow_edits: bool = False,
    ) -> None:
        self._application = application
        self._hosts = {host.lower() for host in hosts} | {"localhost"}
        self._password = password
        self._allow_edits = allow_edits

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refused = self._refusal(environ)
        if refused is not None:
            status, reason, extra = refused
            body = json.dumps({"reason": reason}).encode()
            headers = {**_EVERYWHERE, **extra, "Content-Type": "application/json", "Content-Length": str(len(body))}
            start_response(status, [*headers.items(), ("Content-Security-Policy", _NO_CONTENT_POLICY)])
            return [body]
        path = str(environ.get("PATH_INFO", ""))
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # optuna-dashboard takes it for granted

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            return start_response(status, _safe_headers(path, headers), *rest)

        with whole() if path.startswith("/csv/") else nullcontext():
            return self._application(environ, start)

    def _refusal(self, environ: Mapping[str, Any]) -> tuple[str, str, dict[str, str]] | None:
        """Status, reason and headers of the answer to a request that does not pass."""
        host = str(environ.get("HTTP_HOST", ""))
        if not self._is_here(host):
            return (
                "403 Forbidden",
                f"the Host header must name this machine, not {host!r}; tuner dashboard --allow-host NAME adds a name",
                {},
            )
        if self._password is not None and not _knows(self._password, str(environ.get("HTTP_AUTHORIZATION", ""))):
            return (
                "401 Unauthorized",
                f"this dashboard needs the password in {PASSWORD_VARIABLE}; any user name will do",
                {"WWW-Authenticate": 'Basic realm="tuner dashboard", charset="UTF-8"'},
            )
        origin = str(environ.get("HTTP_ORIGIN", ""))
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        travels = environ.get("HTTP_SEC_FETCH_MODE") == "navigate" and environ["REQUEST_METHOD"] in _READS
        if (origin and urlsplit(origin).netloc.lower() != host.lower()) or (
            site not in ("none", "same-origin") and not travels
        ):
            return "403 Forbidden", f"requests from other sites are refused; this one came from {origin or site}", {}
        if environ["REQUEST_METHOD"] not in _READS:
            if not self._allow_edits:
                return (
                    "403 Forbidden",
                    "this dashboard is read-only; to change studies in it: tuner dashboard --allow-edits",
                    {},
                )
            if str(environ.get("PATH_INFO", "")).rstrip("/").endswith("/rename"):
                return (
                    "403 Forbidden",
                    "a study keeps its name: renaming would copy its trials and cut them off from Tuner's ledger",
                    {},
                )
        return None

    def _is_here(self, host: str) -> bool:
        name = _name_of(host)
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name_of(host: str) -> str:
    """The name in a Host header, without the port and the brackets of IPv6.

    >>> _name_of("Localhost:8080"), _name_of("[::1]:80"), _name_of("a@b"), _name_of("")
    ('localhost', '::1', '', '')
    """
    if any(letter in host for letter in "@/?#\\ "):
        return ""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _knows(password: str, authorization: str) -> bool:
    """Whether a Basic authorization has the password; compared in a time that does not depend on where they differ."""
    kind, _, encoded = authorization.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        given = b""
    return hmac.compare_digest(given, password.encode()) and kind.lower() == "basic"


def _safe_headers(path: str, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The answer's headers with ours; an artifact is downloaded, never shown on this origin."""
    kept = {name.title(): (name, value) for name, value in headers}
    for name in ("Access-Control-Allow-Origin", "Server"):
        kept.pop(name, None)
    ours = dict(_EVERYWHERE)
    if path.startswith("/artifacts/"):
        ours |= {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": "attachment",
            "Content-Security-Policy": _NO_CONTENT_POLICY,
        }
    elif "Content-Security-Policy" not in kept:
        ours["Content-Security-Policy"] = _NO_CONTENT_POLICY
    if path.startswith(("/api/", "/artifacts/", "/csv/")):
        ours["Cache-Control"] = "no-store"
    own = {name.title() for name in ours}
    return [*(pair for name, pair in kept.items() if name not in own), *ours.items()]


# Serving


def check_address(host: str, password: str | None) -> None:
    """Raises BadInputError for an address that others reach, without a password, and for an empty password."""
    if password == "":
        raise BadInputError(f"{PASSWORD_VARIABLE} is set and empty; give a password, or unset it")
    if password is None and not _is_loopback(host):
        raise BadInputError(
            f"--host {host} opens the dashboard to others, which needs a password: set {PASSWORD_VARIABLE}, or leave "
            "out --host and come through a tunnel (ssh -L 8080:localhost:8080)"
        )


def serve(
    storage: str,
    artifacts: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    password: str | None = None,
    allow_edits: bool = False,
    allow_hosts: Sequence[str] = (),
    wait_s: float = 10.0,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the dashboard of a database until KeyboardInterrupt or SystemExit.

    artifacts: where its studies keep their files, as :class:`tuner.manager.StudyManager` takes it.
    port: 0 takes a free one. wait_s: seconds to wait for a database that does not answer yet. ready: called with the
    address once it answers.

    Raises BadInputError for an address that cannot be used, StorageError when the database cannot.
    """
    check_address(host, password)
    files = Handed(artifacts_root(storage, artifacts))
    database = open_database(storage, create=False, open_patience_s=wait_s)  # for its messages
    try:
        shown = database.optuna_storage(kind=Shown)
    finally:
        database.close()
    names = [*allow_hosts, host, socket.gethostname()]
    application = optuna_dashboard.wsgi(shown, artifact_store=files)
    guard = Guard(application, hosts=names, password=password, allow_edits=allow_edits)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a browser's many requests at once are no news
    try:
        with _listening(host, port) as listening:
            server = waitress.create_server(
                guard,
                sockets=[listening],
                threads=8,
                ident=None,
                max_request_body_size=_UPLOAD_BYTES if allow_edits else _NO_UPLOAD_BYTES,
            )
            try:
                ready(f"http://{_written(host)}:{listening.getsockname()[1]}")
                server.run()
            finally:
                server.close()
    finally:
        shown.engine.dispose()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises BadInputError with what to do where that cannot be."""
    name = host.strip("[]")
    try:
        return socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = (
                f"port {port} on {host} is taken; see whose it is: ss -ltnp 'sport = :{port}'; "
                f"give another: --port {port % 65535 + 1}"
            )
        elif error.errno == errno.EACCES:
            problem = f"port {port} needs more rights than this process has; give one above 1023: --port {PORT}"
        else:
            problem = f"cannot listen on {host}, port {port}: {error.strerror or error}; give another --host or --port"
        raise BadInputError(problem) from error


def _written(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
