"""Starts Python programs in forks of a process that has imported the package.

Importing takes seconds of CPU time, more than a small program takes afterwards. Such a
fork is safe as long as the server has a single thread, which it checks before each one;
it computes nothing, so JAX has started none.

    python -m tests.fork_server    (tests/processes.py starts it)

Requests come as lines of JSON on stdin: `arguments`, `environment`, `directory`, where
it runs, and `log`. The answer is the id of a process that is no child of the server's,
but of the nearest process above it that adopts orphans.
"""

import importlib
import json
import os
import runpy
import signal
import sys

# What runs import, at the latest when they end; here nothing of it starts a thread.
MODULES = (
    *("litevit_jax.__main__", "litevit_jax.jobs.analyse", "litevit_jax.jobs.summary"),
    *("litevit_jax.data.pipeline", "litevit_jax.data.sources.digits"),
    *("litevit_jax.train.eval_setup", "clu.parameter_overview", "orbax.checkpoint"),
    "tests.jobs",
)


def serve():
    """Returns in each fork, and at the end of the server never."""
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of stdin is the signal
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    before = dict(os.environ)
    for line in sys.stdin:
        request = json.loads(line)
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"a fork of {len(threads)} threads would hang"
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                os.close(writer)
                answers.close()
                _become(request, before)
                return
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(between, 0)
        print(os.read(reader, 20).decode(), file=answers)
        os.close(reader)
    os._exit(0)


def _become(request, before):
    """Makes this process what a new interpreter with a program would be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(number, file)
    os.close(log)
    os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(request["directory"])
    _use_environment(request["environment"], before)
    sys.argv = request["arguments"]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))


def _use_environment(environment, before):
    """JAX has read its variables when the server imported it."""
    import jax

    os.environ.clear()
    os.environ.update(environment)
    for name, text in environment.items():
        option = name.lower()
        if not hasattr(jax.config, option) or text == before.get(name):
            continue
        value = getattr(jax.config, option)
        if isinstance(value, bool):
            value = text.lower() in ("1", "true", "yes", "on", "t", "y")
        else:
            value = type(value)(text) if isinstance(value, int | float) else text
        jax.config.update(option, value)
    unset = [x for x in before.keys() - environment.keys() if x.startswith("JAX_")]
    assert not unset, f"{unset} cannot be unset in a fork"


if __name__ == "__main__":
    serve()
    runpy.run_path(sys.argv[0], run_name="__main__")
