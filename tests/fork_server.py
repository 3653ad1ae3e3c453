"""Python programs that start without importing torch: forked from a server that has done it.

`start(["-m", MODULE, …])` is `subprocess.Popen([sys.executable, "-P", "-m", MODULE, …])`: process
id, signals, exit status, file descriptors, folder and environment are those of a process of its
own. The programs that it starts in the same way, such as the ranks of a run, are forked from it.
Two things differ: what a library reads from the environment when it is imported (the server has one
thread and no network), and the memory that a process has from its start. A test of those, or of the
start itself, starts a real process.

`call(…, module=M)` forks from a second server, which imports also what engines import when they are
built, 4 s of CPU for ZeRO on each rank, and each test module once. Programs do without: they must
import what they need.

The server never runs an OpenMP region and has no threads: forking pytest itself, whose thread pool
is alive, makes children hang.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import inspect
import io
import os
import pickle
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
_PROGRAM = [sys.executable, "-P", "-m"]
_PRELOADED = (
    "pytest",
    "tensorboard.compat.proto.event_pb2",
    "torch.distributed.checkpoint",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "hydra.main",
    "hydra.core.override_parser.overrides_parser",
    "launcher.optimizer.adamw",
    "launcher.optimizer._groups.param_groups",
    "launcher.optimizer._torch.base_optimizer",
    "launcher.optimizer._torch.uncorrected_adam",
)
# DeepSpeed, and what it compiles its optimizers with when an engine is built.
_PRELOADED_FOR_FUNCTIONS = ("torch._inductor.compile_fx", "tests.contract.engine_bench")
# Programs, which `runpy` imports again, and what imports libraries that need not be installed.
_LEFT_OUT = (
    "launcher.__main__",
    "launcher.launch._worker",
    "launcher.optimizer.",
    "launcher.verify._rank",
)


def start(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], module: str = ""
) -> subprocess.Popen[str]:
    """Start a program, with pipes for its standard output and error.

    Args:
        words: Words after `python -P`.
        cwd: The working directory.
        env: The environment variables.
        module: Fork from the server for functions, after it has imported this test module.
    """
    return _Requested(
        [*_PROGRAM[:2], *words],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        module=module,
    )


def call(
    function: Callable[..., Any], *args: Any, cwd: Path, env: Mapping[str, str], module: str = ""
) -> tuple[Any, str, str]:
    """Call a function of a test module in a process of its own.

    Args:
        function: A function of a test module, by name.
        args: Its arguments; must be picklable.
        cwd: The working directory.
        env: The environment variables.
        module: As of `start`.

    Returns:
        What it returned, and what was printed on standard output and error.

    Raises:
        AssertionError: It raised; the message is the traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = (function.__module__, function.__qualname__, args)
        Path(folder, "job").write_bytes(pickle.dumps(job))
        words = ["-m", "tests.fork_server", "call", folder]
        process = start(words, cwd=cwd, env=env, module=module)
        out, err = process.communicate()
        assert process.returncode == 0, f"status {process.returncode}\n{err}"
        return pickle.loads(Path(folder, "result").read_bytes()), out, err


def _call(folder: Path) -> None:
    module, name, args = pickle.loads((folder / "job").read_bytes())
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    (folder / "result").write_bytes(pickle.dumps(function(*args)))


class _Requested(subprocess.Popen[str]):
    """A process that a server forks and waits for."""

    def __init__(self, *args: Any, module: str, **options: Any) -> None:
        self._module = module
        super().__init__(*args, **options)

    def _execute_child(self, *args: Any) -> None:
        given = _named(args)
        status, theirs = os.pipe()
        server = _server_for_functions() if self._module else _server()
        with tempfile.TemporaryFile() as job:
            folder, variables = os.fspath(given["cwd"]), dict(given["env"])
            pickle.dump((self._module, given["args"], folder, variables), job)
            job.flush()
            socket.send_fds(server, [b"job"], [job.fileno(), theirs, *_files(given)])
        os.close(theirs)
        self._close_pipe_fds(*(given[name] for name in _PIPES))  # type: ignore[attr-defined]
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int.from_bytes(self._status.read(8), "little")
        assert self.pid, "the fork server has ended"
        self._child_created = True

    def _try_wait(self, flags: int) -> tuple[int, int]:
        os.set_blocking(self._status.fileno(), flags != os.WNOHANG)
        status = self._status.read(8)
        if status is None:
            return 0, 0
        self._status.close()
        return self.pid, int.from_bytes(status, "little") if status else signal.SIGKILL

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid == self.pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined] # of Popen
        return self.returncode


class _Forked(subprocess.Popen[Any]):
    """In a forked program: what it starts is forked where it is a module, too."""

    def _execute_child(self, *args: Any) -> None:
        given = _named(args)
        command = given["args"]
        if isinstance(command, str) or list(command[:3]) != _PROGRAM:
            super()._execute_child(*args)  # type: ignore[misc] # of Popen
            return
        self.pid = os.fork()
        if self.pid == 0:
            _become(
                command,
                given["cwd"],
                os.environ if given["env"] is None else given["env"],
                files=_files(given),
                inherited=given["pass_fds"],
                session=given["start_new_session"],
            )
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _PIPES))  # type: ignore[attr-defined]


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


def _named(args: Sequence[Any]) -> Mapping[str, Any]:
    return _SIGNATURE.bind(None, *args).arguments


def _files(given: Mapping[str, Any]) -> list[int]:
    """Return the child's standard input, output and error."""
    files = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
    return [number if file < 0 else file for number, file in enumerate(files)]


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with theirs:
        server = subprocess.Popen(
            [*_PROGRAM, "tests.fork_server", "serve", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            cwd=ROOT,
        )
    atexit.register(server.kill)
    return ours


@cache
def _server_for_functions() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(_server(), [b"server"], [theirs.fileno()])
    return ours


class _Server:
    """Forks one program after another, until the connection ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reports: dict[int, int] = {}
        self._ended, wake = os.pipe()
        for descriptor in (self._ended, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)

    def serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._connection, selectors.EVENT_READ, self._fork)
        selector.register(self._ended, selectors.EVENT_READ, self._reap)
        go_on = True
        while go_on:
            go_on = all(key.data() for key, _ in selector.select())
        for pid in self._reports:
            os.kill(pid, signal.SIGKILL)

    def _fork(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._connection, 16, 5)
        if not message:
            return False
        if message == b"server":
            self._fork_server(*descriptors)
            return True
        job, report, *files = descriptors
        with os.fdopen(job, "rb") as file:
            file.seek(0)
            module, command, cwd, environment = pickle.load(file)
        if module:
            # The forked process reports what cannot be imported.
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        pid = os.fork()
        if pid == 0:
            subprocess.Popen = _Forked  # type: ignore[misc] # for what the program starts
            _become(command, cwd, environment, files=files)
        self._reports[pid] = report
        _send(report, pid)
        for descriptor in files:
            os.close(descriptor)
        return True

    def _fork_server(self, connection: int) -> None:
        """Fork a server that has imported more."""
        if os.fork() == 0:
            for descriptor in (self._connection.fileno(), *self._reports.values()):
                os.close(descriptor)
            _serve(connection, _PRELOADED_FOR_FUNCTIONS)
            os._exit(0)
        os.close(connection)

    def _reap(self) -> bool:
        os.read(self._ended, 1 << 16)
        for pid in list(self._reports):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                report = self._reports.pop(pid)
                _send(report, status)
                os.close(report)
        return True


def _send(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked has gone
        os.write(descriptor, number.to_bytes(8, "little"))


def _modules_of_launcher() -> list[str]:
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "launcher").rglob("*.py"))
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [name for name in names if not name.startswith(_LEFT_OUT)]


def _become(
    command: Sequence[str],
    cwd: str | None,
    environment: Mapping[str, str],
    *,
    files: Sequence[int],
    inherited: Collection[int] = (),
    session: bool = False,
) -> NoReturn:
    """Be a new program, as after `exec`, in a process that has just been forked."""
    try:
        # Objects of the parent must not close descriptors whose numbers are used again here.
        gc.freeze()
        if session:
            os.setsid()
        _default_signals()
        _only(files, inherited)
        if cwd is not None:
            os.chdir(cwd)
        given, before = (
            values.get("PYTHONPATH", "").split(os.pathsep) for values in (environment, os.environ)
        )
        environment = dict(environment)
        os.environ.clear()
        os.environ.update(environment)
        # As with -P: the working directory is not searched.
        sys.path[:] = [*filter(None, given), *(path for path in sys.path if path not in before)]
        importlib.invalidate_caches()
        module, *words = command[3:]
        sys.argv = [module, *words]
    except BaseException:  # noqa: BLE001 - never return into the parent's frames
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    _run(module)


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        handler = signal.getsignal(number)
        if handler not in {signal.SIG_IGN, signal.SIG_DFL, None}:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _only(files: Sequence[int], inherited: Collection[int]) -> None:
    """Make files the standard ones, and close all but these and the inherited."""
    for number, copy in enumerate([os.dup(file) for file in files]):
        os.dup2(copy, number)
    for path in list(Path("/dev/fd").iterdir()):
        if (number := int(path.name)) > 2 and number not in inherited:
            with contextlib.suppress(OSError):
                os.close(number)
    for number in inherited:
        os.set_inheritable(number, True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = io.TextIOWrapper(
            os.fdopen(number, "wb" if number else "rb", closefd=False),
            encoding="utf-8",
            errors="backslashreplace" if name == "stderr" else "strict",
            line_buffering=name == "stderr" or os.isatty(number),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run(module: str) -> NoReturn:
    """Run a module as the interpreter does, to its exit."""
    status = 1
    try:
        if module == "tests.fork_server":
            _main(*sys.argv[1:])
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    try:
        threading._shutdown()  # type: ignore[attr-defined] # waits for threads that are no daemons
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):
                stream.flush()
    finally:
        os._exit(status & 0xFF)


def _serve(connection: int, modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    _Server(socket.socket(fileno=connection)).serve()


def _main(command: str, argument: str) -> None:
    if command == "call":
        _call(Path(argument))
        return
    _serve(int(argument), [*_PRELOADED, *_modules_of_launcher()])


if __name__ == "__main__":
    _main(*sys.argv[1:])
