"""Ray: one actor a worker, wherever the cluster has room for it.

Ray starts an actor again on another node when its own dies, and one that there is no room for as soon as a node joins.
An actor keeps ``tuner worker`` at work on its node, as a launcher does on its machine, and ends with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from tuner.errors import BadInputError, DeviceError, EngineError, TunerError
from tuner.launch.engine import POLL_S, Crew, Engine, WorkersLostError, label, source_folder
from tuner.launch.local import GRACE_S, LocalWorkers
from tuner.words import count

NAMESPACE = "tuner"  # of detached actors
CONNECT_S = 5.0  # seconds that a cluster may take to take a connection
ANSWER_S = 5.0  # seconds that an actor may take to say that it heard; one without a node never does

BURY_S = 2.0  # seconds to try to free what a dead process held, before its leases run out by themselves

Lost = tuple[str, int]  # how a worker was lost, and its exit code

_log = logging.getLogger(__name__)


class RayWorkers(Engine):
    """One actor a worker.

    address: of the cluster; None is ``RAY_ADDRESS``, else the cluster that this machine belongs to. runtime_env: what
    Ray sets up for the workers, as its own ``runtime_env``; tuner itself goes along where it is not installed.
    """

    name = "Ray"

    def __init__(self, crew: Crew, *, address: str | None = None, runtime_env: Mapping[str, Any] | None = None) -> None:
        super().__init__(crew)
        self._address = address
        home = source_folder()
        shipped = {} if home is None else {"py_modules": [str(home / "tuner")]}
        wanted = {**shipped, **(runtime_env or {})}
        self._runtime_env = {key: value for key, value in wanted.items() if value}  # Ray stumbles over empty ones
        self._id = f"{label(crew.study)}-{uuid.uuid4().hex[:6]}"
        self._actors: list[Any] = []
        self._futures: list[Any] = []
        self._told: set[str] = set()  # what was said of workers already
        self._output: contextlib.redirect_stdout[io.TextIOBase] | None = None

    def submission(self, *, detach: bool = False) -> str:
        """The actors as JSON."""
        content = {
            "address": self._address or "RAY_ADDRESS, or this machine's cluster",
            "actors": [f"{self._id}-{i}" for i in range(self.crew.workers)],
            "options": self._options(detach),
            "runtime_env": self._runtime_env,
            "environment": self.crew.shown_environment,
            "command": ["tuner", *self.crew.words],
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    def _options(self, detach: bool) -> dict[str, Any]:
        return {
            "num_cpus": self.crew.cpus,
            "num_gpus": self.crew.gpus,
            "max_restarts": -1,
            "max_task_retries": -1,
            "max_concurrency": 2,  # one call waits for the worker's end, the other tells it to leave
            "scheduling_strategy": "SPREAD",
            **({"lifetime": "detached", "namespace": NAMESPACE} if detach else {}),
        }

    def check(self) -> None:
        ray = self._connect()
        crew, nodes = self.crew, [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = [_room(node, crew) for node in nodes]
        if not any(room):
            largest = max(int(node.get("GPU" if crew.gpus else "CPU", 0)) for node in nodes)
            self._disconnect()
            raise DeviceError(
                f"a worker of {crew.needs} fits on no node of this Ray cluster, whose largest has {largest}; "
                "ask for fewer, or add such a node first"
            )
        hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        if len(hosts) > 1 and "://" not in (crew.artifacts or ""):
            _log.warning(
                "checkpoints go to %s, which every node has to see; --artifacts also takes s3://…", crew.artifacts
            )
        if sum(room) < crew.workers:
            _log.warning("room for %d of %s; the others start as nodes join", sum(room), count(crew.workers, "worker"))

    def start(self, *, detach: bool = False) -> None:
        ray = self._connect()
        actor = ray.remote(**self._options(detach))(_Place)
        self._actors = [
            actor.options(name=f"{self._id}-{i}").remote(self.crew, detached=detach) for i in range(self.crew.workers)
        ]
        if detach:
            ray.wait([each.heard.remote() for each in self._actors], timeout=ANSWER_S)
            self._disconnect()
        else:
            self._futures = [each.work.remote() for each in self._actors]

    @property
    def traces(self) -> str:
        return f"as actors {self._id}-0 … in Ray's namespace {NAMESPACE}"

    def alive(self) -> int:
        ray = self._connect()
        ended, waiting = ray.wait(self._futures, num_returns=len(self._futures), timeout=0)
        lost = [found for future in ended if (found := self._outcome(ray, future)) is not None]
        if lost and not waiting:
            raise WorkersLostError(*lost[-1])
        for text, _ in lost:
            if text not in self._told:
                self._told.add(text)
                _log.warning("%s", text)
        return len(waiting)

    def stop(self) -> None:
        if not self._actors:
            self._disconnect()
            return
        ray = self._connect()
        heard = {actor.leave.remote(): future for actor, future in zip(self._actors, self._futures, strict=True)}
        answered, _ = ray.wait(list(heard), num_returns=len(heard), timeout=ANSWER_S)
        leaving = [heard[each] for each in answered]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=GRACE_S)
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors, self._futures = [], []
        self._disconnect()

    def _outcome(self, ray: Any, future: Any) -> Lost | None:
        try:
            found: Lost | None = ray.get(future)
        except ray.exceptions.RayError as error:  # it could not even begin
            return f"Ray cannot start a worker: {_gist(error)}", 1
        return found

    def _connect(self) -> Any:
        """Ray, connected. What it prints goes to the log: standard output is for results."""
        try:
            import ray
        except ImportError:
            raise EngineError("--on ray needs Ray; pip install 'tuner[ray]'") from None
        if ray.is_initialized():
            return ray
        address = self._address or os.environ.get("RAY_ADDRESS")
        where = address or "RAY_ADDRESS, or on this machine"
        advice = "ray start --head starts one, and --address names it"
        try:
            _knock(address)
            self._output = contextlib.redirect_stdout(_Log())
            self._output.__enter__()
            ray.init(
                address=self._address or "auto",
                namespace=NAMESPACE,
                runtime_env=self._runtime_env,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            self._disconnect()
            raise EngineError(f"no Ray cluster can be reached at {where} ({_gist(error)}); {advice}") from None
        return ray

    def _disconnect(self) -> None:
        import ray

        ray.shutdown()
        if self._output is not None:
            self._output.__exit__(None, None, None)
            self._output = None


class _Place:
    """An actor: one worker of the crew, on whatever node it is now."""

    def __init__(self, crew: Crew, *, detached: bool) -> None:
        self._crew, self._detached = replace(crew, workers=1), detached
        self._leave = threading.Event()
        self._lost: Lost | None = None
        self._thread = threading.Thread(target=self._tend, daemon=True)
        self._thread.start()

    def heard(self) -> None:
        """Answers once the actor has a node."""

    def work(self) -> Lost | None:
        """Wait for the worker's end; how it was lost, None where it left in peace."""
        self._thread.join()
        return self._lost

    def leave(self) -> None:
        """Let the worker finish its epoch, save and leave. Returns at once."""
        self._leave.set()

    def _tend(self) -> None:
        try:
            with LocalWorkers.of(self._crew, died=self._bury) as workers:
                while workers.alive() and not self._leave.wait(POLL_S):
                    pass
        except TunerError as error:
            self._lost = str(error), error.exit_code
        except Exception as error:  # no process can be started there, say: whoever waits must not take it for peace
            self._lost = f"a worker on {socket.gethostname()} is lost: {type(error).__name__}: {error}", 1
        if self._detached:
            import ray

            if self._lost is not None:  # nobody asks; Ray's log of the actor keeps it
                _log.error("%s", self._lost[0])
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _bury(self, pid: int) -> None:
        """Free what a dead process held."""
        from tuner.manager import StudyManager

        with (
            contextlib.suppress(TunerError),
            StudyManager(self._crew.storage, self._crew.artifacts, create=False, patience_s=BURY_S) as manager,
        ):
            manager.bury(self._crew.study, socket.gethostname(), pid)


class _Log(io.TextIOBase):
    """Takes what is printed, and logs it line by line."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                _log.info("%s", line.rstrip())
        return len(text)


def read_runtime_env(text: str) -> dict[str, Any]:
    """Ray's ``runtime_env``, as JSON. Raises BadInputError.

    >>> read_runtime_env('{"pip": ["tuner[postgresql]"]}')
    {'pip': ['tuner[postgresql]']}
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadInputError(f'--runtime-env takes JSON, as in \'{{"pip": ["tuner"]}}\': {error}') from None
    if not isinstance(content, dict):
        raise BadInputError('--runtime-env takes a JSON object, as in \'{"pip": ["tuner"]}\'')
    return content


def _room(node: Mapping[str, float], crew: Crew) -> int:
    """How many workers of a crew a node has room for.

    >>> _room({"CPU": 8.0, "GPU": 2.0}, Crew(study="s", workers=9, storage="", cpus=3, gpus=1))
    2
    """
    room = int(node.get("CPU", 0)) // crew.cpus
    return min(room, int(node.get("GPU", 0)) // crew.gpus) if crew.gpus else room


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens; Ray itself would try for a long time."""
    place = urlsplit(address if address and "://" in address else f"ray://{address or ''}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_S).close()


def _gist(error: BaseException) -> str:
    """What an error of Ray's begins and ends with; a traceback of its own stands between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))
