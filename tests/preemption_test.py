"""Signals end a program wherever it is: with its exit code, and after it has saved."""

import ctypes
import importlib
import os
import pathlib
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from litevit_jax import preemption

ROOT = pathlib.Path(__file__).parents[1]
CODES = {signal.SIGTERM: 42, signal.SIGHUP: 42, signal.SIGINT: 130}


def stuck():
    """Waits for ever where Python cannot look at signals, as in a compiler."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def train(step, last=lambda: print("written", flush=True)):
    """A training loop: `step()` until a signal came, then it saves."""
    with preemption.handlers() as asked, asked.training(last):
        try:
            while asked.signal is None:
                step(asked)
                asked.unsaved = True
        except preemption.Stopped as error:
            asked.caught(error)
        if not asked.urgent:
            print("saved", flush=True)
        asked.unsaved = False


def say_and_sleep(_):
    preemption._PATIENCE_S = 600.0  # of a machine that is busy
    preemption.say("step", sys.stdout)  # its reader may be gone
    time.sleep(0.5)


def wait_for_data(asked):
    with asked.at_once():
        print("step", flush=True)
        time.sleep(600)


def compile_first(_):
    print("step", flush=True)
    stuck()


def compile_later(asked):
    asked.unsaved = True
    compile_first(asked)


def start_up():
    print("step", flush=True)
    time.sleep(600)


def start_up_in_c():
    print("step", flush=True)
    stuck()


SLOW_MODULE = """
import time
print("step", flush=True)
try:
    time.sleep(0.4)
except BaseException:
    raise ImportError("an extension module was interrupted") from None
print("imported", flush=True)
"""


def import_slowly():
    preemption._PATIENCE_S = 60.0
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "slow_module.py").write_text(SLOW_MODULE)
        sys.path.insert(0, folder)
        importlib.import_module("slow_module")
        time.sleep(600)


def leave_a_thread():
    threading.Thread(target=stuck).start()  # as a reader that never returns
    start_up()


class Crashing:
    """What a library holds, and what crashes as the interpreter frees it."""

    def __del__(self):
        os.abort()


def leave_it_half_built():
    sys.modules["half_built"] = Crashing()
    start_up()


def talk_to_nobody():
    print("step", flush=True)
    time.sleep(0.5)
    preemption.say("nobody reads this", sys.stdout)
    train(say_and_sleep)


def child(name):
    preemption._PATIENCE_S = preemption._AGAIN_S = 0.5
    function = globals()[name]

    def main():
        train(function) if function.__code__.co_argcount else function()
        number = preemption._preemption.signal
        sys.exit(0 if number is None else preemption.exit_code(number))

    preemption.program(main)


class Program:
    """Function `name` of this file in a program of its own."""

    def __init__(self, name, before=(), **kwargs):
        kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
        code = f"from tests import preemption_test; preemption_test.child({name!r})"
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", code], cwd=ROOT, text=True, **kwargs
        )

    def started(self):
        assert self.process.stdout.readline() == "step\n"
        return self

    def end(self, *numbers, pause_s=0.2):
        """Sends the signals; (exit code, what was printed, what was answered)."""
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(pause_s)
        said, answered = self.process.communicate(timeout=120)
        return self.process.returncode, said, answered


NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
}


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_start_up_ends_the_program_with_its_code(number):
    code, said, answered = Program("start_up").started().end(number)
    assert (code, said) == (CODES[number], "")
    assert f"stopped by {NAMES[number]}" in answered
    assert "Traceback" not in answered


def test_what_a_signal_leaves_half_built_is_not_freed():
    code, _, answered = Program("leave_it_half_built").started().end(signal.SIGTERM)
    assert code == 42 and answered.endswith("stopped by SIGTERM\n")


def test_a_signal_in_an_import_waits_for_its_end():
    code, said, answered = Program("import_slowly").started().end(signal.SIGTERM)
    assert (code, said) == (42, "imported\n")
    assert answered == "stopping\nstopped by SIGTERM\n"


EACH_LINE = """
import os, signal, sys
from litevit_jax import preemption
count, wanted = 0, int(sys.argv[1])
def trace(frame, event, _):
    global count
    if frame.f_code.co_filename == preemption.__file__:
        if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):
            count += event == "line"
            if count == wanted and event == "line":
                os.kill(os.getpid(), signal.SIGTERM)
        return trace
def main():
    os.write(1, b"main")
    sys.exit(0)
sys.settrace(trace)
preemption.program(main)
"""


def test_no_moment_ends_with_a_traceback():
    """SIGTERM before every line of `program` once the first handler is there."""
    for line in range(1, 12):
        ended = subprocess.run(
            [sys.executable, "-c", EACH_LINE, str(line)],
            cwd=ROOT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert "Traceback" not in ended.stderr, (line, ended.stderr)
        assert ended.returncode in (0, 42), (line, ended.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_more_signals_while_it_ends_change_nothing(number):
    program = Program("start_up").started()
    program.process.send_signal(number)
    while program.process.poll() is None:
        program.process.send_signal(number)
    program.process.communicate()
    assert program.process.returncode == CODES[number]


@pytest.mark.parametrize("name", ["start_up_in_c", "leave_a_thread"])
def test_code_that_cannot_be_interrupted_is_ended(name):
    code, _, answered = Program(name).started().end(signal.SIGTERM)
    assert code == 42 and "stopped by SIGTERM" in answered


@pytest.mark.parametrize("number", CODES)
def test_training_ends_its_step_and_saves(number):
    code, said, answered = Program("say_and_sleep").started().end(number)
    assert (code, said) == (CODES[number], "saved\n")
    assert "stopping after this step" in answered
    again = "stopping after this step; again to stop without saving\n"
    assert (again in answered) == (number == signal.SIGINT)


def test_training_that_waits_for_data_saves_at_once():
    code, said, _ = Program("wait_for_data").started().end(signal.SIGTERM)
    assert (code, said) == (42, "saved\n")


def test_a_second_ctrl_c_loses_the_step_alone():
    code, said, answered = (
        Program("say_and_sleep").started().end(signal.SIGINT, signal.SIGINT)
    )
    assert (code, said) == (130, "")
    assert "stopping without saving" in answered
    # Also where the step does not come to its end; what is being written is finished.
    code, said, _ = Program("compile_later").started().end(*[signal.SIGINT] * 2)
    assert (code, said) == (130, "written\n")


def test_a_third_ctrl_c_waits_for_nothing():
    code, said, _ = Program("compile_later").started().end(*[signal.SIGINT] * 3)
    assert (code, said) == (130, "")


def test_a_second_sigterm_is_the_first():
    code, said, _ = Program("say_and_sleep").started().end(*[signal.SIGTERM] * 2)
    assert (code, said) == (42, "saved\n")


def test_a_first_step_that_is_compiled_is_not_waited_for():
    code, said, _ = Program("compile_first").started().end(signal.SIGTERM)
    assert (code, said) == (42, "written\n")  # nothing was learned yet


def test_a_run_whose_output_nobody_reads_saves_all_the_same():
    program = Program("talk_to_nobody").started()
    program.process.stdout.close()
    time.sleep(1.0)
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(timeout=120) == 130
    assert "Traceback" not in program.process.stderr.read()
    program.process.stderr.close()


def test_a_run_whose_terminal_is_closed_saves():
    ours, its = pty.openpty()
    program = Program(
        "say_and_sleep", stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    assert b"step" in os.read(ours, 100)
    os.close(ours)
    program.process.send_signal(signal.SIGHUP)  # as the session's shell does
    assert program.process.wait(timeout=120) == 42


def test_nohup_outlives_the_terminal():
    program = Program("say_and_sleep", before=["nohup"]).started()
    code, said, _ = program.end(signal.SIGHUP, signal.SIGTERM, pause_s=1.0)
    assert code == 42 and "step\n" in said


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in CODES]
    with preemption.handlers() as outer, preemption.handlers() as inner:
        assert outer is inner
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(n) for n in CODES] == before
