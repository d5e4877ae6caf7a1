"""Who ends a job, and why: with a clock and a store of messages of the test's own."""

import json
import threading
import time

import pytest

from litevit_jax.distributed import watchdog


class Store:
    """What JAX's client does with keys."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, key):
        return [(k, v) for k, v in self.values.items() if k.startswith(key)]


class Ended(Exception):
    pass


class Fake(watchdog.Watch):
    """A watch that is stepped by hand, `tick` a second later each time."""

    def __init__(self, store, index, **limits):
        hosts = ["a", "b", "c"]
        super().__init__(store, hosts, index, watchdog.Limits(**limits))
        self.said = []

    def tick(self, seconds=1.0):
        self._now += seconds
        self._exchange()
        if not self._done:
            self._judge()

    def _say(self, text):
        self.said.append(text)

    def _quit(self, code, *, stacks):
        raise Ended(code, stacks)


@pytest.fixture
def three():
    store = Store()
    return [Fake(store, i, stuck_s=20, grace_s=100, peer_s=10) for i in range(3)]


def pass_by(watches, seconds):
    for _ in range(seconds):
        for one in watches:
            one.heartbeat("step")
            one.tick()


def is_quiet(watches):
    """Whether nobody complained or failed."""
    told = [key for key in watches[0]._client.values if key.startswith(watchdog.FAILED)]
    return not told and not any(one.said for one in watches)


def test_processes_that_get_on_are_left_alone(three):
    pass_by(three, 300)
    assert is_quiet(three) and [one._now for one in three] == [300] * 3


def test_a_silent_process_ends_the_others_and_is_named(three):
    pass_by(three, 5)
    with pytest.raises(Ended) as ended:
        pass_by(three[:2], 20)
    assert ended.value.args == (watchdog.EXIT_STUCK, True)
    (text,) = three[0].said
    assert "process 2 (c) was not heard of for 11 s" in text and "step" in text


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(watchdog, "_EVERY_S", 0.05)
    monkeypatch.setattr(watchdog, "_ANSWER_S", 0.2)
    store, never, ended = Store(), threading.Event(), []
    one = Fake(store, 1, stuck_s=600, grace_s=600, peer_s=0.5)
    one._hosts = ["a", "b"]

    def quit_(code, *, stacks):
        ended.append((code, stacks, time.monotonic()))
        one._stop.set()

    one._quit = quit_
    one.start()
    store.values[f"{watchdog.ALIVE}0"] = json.dumps({"done": False, "doing": "a step"})
    while 0 not in one._heard:
        time.sleep(0.01)
    store.key_value_set = lambda *_, **__: never.wait()  # process 0 is suspended
    start = time.monotonic()
    one._threads[0].join(60)
    ((code, stacks, end),) = ended
    never.set()
    assert (code, stacks) == (watchdog.EXIT_STUCK, True) and end - start < 30
    assert "process 0 (a) was not heard of" in one.said[0] and "a step" in one.said[0]
    assert "could not be told" in one.said[1]


def test_one_that_never_spoke_is_noticed_too(three):
    with pytest.raises(Ended):
        pass_by(three[:2], 20)
    assert "process 2 (c) was not heard of" in three[0].said[0]


def test_a_process_that_ended_as_it_should_is_not_missed(three):
    pass_by(three, 5)
    three[2].finish()
    pass_by(three[:2], 50)
    assert is_quiet(three) and three[0]._now == 55


def test_one_that_does_not_get_on_ends_itself_and_says_with_what(three):
    pass_by(three, 5)
    three[1].heartbeat("data of step 6")
    with pytest.raises(Ended) as ended:
        for _ in range(30):
            pass_by(three[::2], 1)
            three[1].tick()
    assert ended.value.args == (watchdog.EXIT_STUCK, True)
    (text,) = three[1].said
    assert "process 1 (b) did not get on for 21 s with: data of step 6" in text
    assert "process 0 (a): step for" in text and "watchdog.stuck_s" in text
    # The others hear it and end with the same code.
    row = json.loads(three[0]._client.values[f"{watchdog.FAILED}1"])
    assert row["code"] == watchdog.EXIT_STUCK and "data of step 6" in row["text"]


def test_what_may_take_long_may_take_longer(three):
    first = three[0]
    first.heartbeat("compiling", grace=True)
    for _ in range(100):
        pass_by(three[1:], 1)
        first.tick()
    with pytest.raises(Ended):
        pass_by(three[1:], 1)
        first.tick()


def test_slow_steps_are_no_stuck_ones(three):
    first = three[0]
    first.heartbeat("step 1")
    for seconds in (15, 100):  # ten times the longest so far is waited
        for _ in range(seconds):
            pass_by(three[1:], 1)
            first.tick()
        first.heartbeat("step")
    assert is_quiet(three) and first._longest == 100


def test_a_failure_of_another_ends_this_one_with_its_code(three, monkeypatch):
    monkeypatch.setattr(watchdog, "_PATIENCE_S", 0.2)
    pass_by(three, 2)
    three[2].fail(2, "7 files cannot be read", wait_s=0.0)
    with pytest.raises(Ended) as ended:
        three[0].tick()
    assert ended.value.args == (2, False)
    assert three[0].said == ["error: process 2 (c) ended: 7 files cannot be read"]


def test_limits_are_positive():
    with pytest.raises(ValueError, match=r"watchdog\.peer_s=0; expected more than 0"):
        watchdog.Limits(peer_s=0)
