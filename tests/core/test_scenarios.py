"""Hours of weather in no time: what line and verdict do together, as expected bands.

Every figure is the one of failures.md where it names one. `tests.simulator` drives the same
functions as the dispatcher does, in the same order.
"""

import functools
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgremover.core import pacing
from bgremover.core.errors import (
    AccountFault,
    BgremoverError,
    Billed,
    BrokenResult,
    Forbidden,
    HttpAnswer,
    KeyRefused,
    LinkFailed,
    LinkRefused,
    NoUsableAnswer,
    PaymentRequired,
    Rejected,
    ServerFailed,
    Throttled,
    Unreachable,
)
from tests.simulator import (
    Answer,
    Post,
    Rule,
    Service,
    Simulation,
    always,
    at_most,
    between,
    poison,
    sometimes,
)

HOUR = 3600.0


def names(count: int) -> list[str]:
    return [f"{number:05}.jpg" for number in range(count)]


def internal_error() -> BgremoverError:
    return ServerFailed("500", http=HttpAnswer(500))


def unavailable() -> BgremoverError:
    return ServerFailed("503", http=HttpAnswer(503))


def refused_connection() -> BgremoverError:
    return Unreachable("connection refused")


def timed_out() -> BgremoverError:
    return NoUsableAnswer("no answer within 300 s")


def bad_key() -> BgremoverError:
    return KeyRefused("401", http=HttpAnswer(401))


def no_money() -> BgremoverError:
    return PaymentRequired("402", http=HttpAnswer(402, reject_reason="insufficient_funds"))


def not_allowed() -> BgremoverError:
    return Forbidden("403", http=HttpAnswer(403))


def failed_calls(simulation: Simulation) -> list[Post]:
    return [post for post in simulation.posts if post.fault is not None]


def calls_of(simulation: Simulation, name: str) -> int:
    return sum(post.name == name for post in simulation.posts)


@functools.cache
def fault_free(count: int, latency: float) -> float:
    return Simulation(Service(latency), names(count)).run().elapsed


# --- the account ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "fault", "seconds"),
    [
        (10_000, bad_key, 0.05),
        (10_000, no_money, 3.0),
        (1_000, bad_key, 3.0),
        (1_000, no_money, 0.05),
        (1_000, not_allowed, 0.05),
    ],
)
def test_an_hour_without_the_account_costs_nothing(
    count: int, fault: Callable[[], BgremoverError], seconds: float
) -> None:
    hour = between(100, 100 + HOUR, always(fault, seconds))
    simulation = Simulation(Service(rules=[hour]), names(count)).run()
    assert len(simulation.saved) == count
    assert not simulation.quarantined
    assert simulation.most_faults == 0
    assert len(failed_calls(simulation)) <= simulation.workers + 10
    assert len(simulation.posts) == count + len(failed_calls(simulation))


def test_the_account_is_probed_at_growing_intervals() -> None:
    day = between(0, 24 * HOUR, always(bad_key, 0.0))
    simulation = Simulation(Service(rules=[day]), names(50)).run(2 * HOUR)
    gaps = [b.at - a.at for a, b in itertools.pairwise(simulation.posts)]
    assert gaps[:6] == pytest.approx([60, 120, 240, 480, 900, 900])
    assert max(gaps) <= 900


def test_work_goes_on_at_once_when_the_key_changes() -> None:
    simulation = Simulation(Service(rules=[between(50, 1000, always(bad_key))]), names(500))
    simulation.at(1000.0, lambda: probe_now(simulation))
    simulation.run()
    assert len(simulation.saved) == 500
    first = min(post.at for post in simulation.posts if post.at >= 1000)
    assert first == 1000.0


def probe_now(simulation: Simulation) -> None:
    simulation.line = pacing.probe_now(simulation.line, simulation.now)


def test_calls_that_were_in_flight_neither_end_the_pause_nor_put_the_probe_off() -> None:
    def rule(call_number: int) -> Answer:
        # Ten calls leave together: nine are refused one by one, the last succeeds long after.
        return Answer(8.0) if call_number == 9 else Answer(1 + call_number / 10, bad_key())

    numbers = itertools.count()
    leap = between(0, 1, lambda _: Answer(1.0))
    crowd = between(1, 60, lambda _: rule(next(numbers)))
    simulation = Simulation(Service(rules=[leap, crowd]), names(40)).run()
    assert len(simulation.saved) == 40
    # One pause, and its first probe a minute after the first refusal ended its call.
    assert len(simulation.pauses) == 1
    late = [post.at for post in simulation.posts if post.at > 1.0]
    assert late[0] == pytest.approx(1.0 + 1.0 + 60.0)


# --- outages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "seconds", "most_posts"),
    [
        (refused_connection, 0.01, 110),
        (internal_error, 0.05, 140),
        (internal_error, 3.0, 140),
        (unavailable, 0.05, 140),
        (timed_out, 300.0, 30),
    ],
)
def test_an_outage_of_an_hour(
    fault: Callable[[], BgremoverError], seconds: float, most_posts: int
) -> None:
    hour = between(600, 600 + HOUR, always(fault, seconds))
    simulation = Simulation(Service(6.5, rules=[hour]), names(6_000)).run()
    assert len(simulation.saved) == 6_000
    assert not simulation.quarantined
    assert len(failed_calls(simulation)) <= most_posts
    longest_probe = 600.0 if fault is timed_out else 60.0
    assert simulation.elapsed - HOUR <= fault_free(6_000, 6.5) + longest_probe + 60.0
    if fault is not timed_out:
        assert simulation.elapsed - HOUR <= 1.1 * fault_free(6_000, 6.5)


def test_an_outage_from_the_first_call_on() -> None:
    outage = between(0, HOUR, always(internal_error))
    simulation = Simulation(Service(rules=[outage]), names(200)).run()
    assert len(simulation.saved) == 200
    assert not simulation.quarantined
    assert simulation.most_faults == 0
    assert len(failed_calls(simulation)) <= 140


def test_an_outage_of_days_does_not_end_the_program() -> None:
    outage = between(0, 20 * HOUR, always(internal_error))
    simulation = Simulation(Service(rules=[outage]), names(5)).run()
    assert max(pause.probes for pause in simulation.pauses) > 1024
    assert len(simulation.saved) == 5


def test_a_single_image_that_fails_alone_is_kept_and_asked_for_rarely() -> None:
    simulation = Simulation(Service(rules=[always(internal_error)]), ["lonely.jpg"]).run(HOUR)
    assert not simulation.quarantined
    assert simulation.line.pause is not None
    assert len(simulation.posts) <= 100


def test_half_of_all_calls_fail_by_chance() -> None:
    simulation = Simulation(Service(rules=[sometimes(0.5, internal_error)]), names(4_000)).run()
    assert len(simulation.saved) == 4_000
    assert not simulation.quarantined
    assert len(simulation.posts) <= 2.1 * 4_000


@pytest.mark.parametrize("workers", [4, 10])
def test_half_of_all_calls_fail_from_the_first_on(workers: int) -> None:
    for seed in range(10):
        simulation = Simulation(
            Service(rules=[sometimes(0.5, internal_error)]), names(40), workers=workers, seed=seed
        ).run()
        assert len(simulation.saved) == 40


# --- poison ---------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 50, 98, 99])
@pytest.mark.parametrize("workers", [4, 10])
@pytest.mark.parametrize("seconds", [0.05, 0.5])
def test_one_poison_file_among_99_good_ones(position: int, workers: int, seconds: float) -> None:
    every = names(100)
    rule = poison([every[position]], internal_error, seconds)
    simulation = Simulation(Service(0.5, rules=[rule]), every, workers=workers).run()
    assert len(simulation.saved) == 99
    assert {name: code for name, (code, _) in simulation.quarantined.items()} == {
        every[position]: "attempts_exhausted"
    }
    assert calls_of(simulation, every[position]) <= 3
    assert not simulation.pauses


def test_several_poison_files_are_isolated_too() -> None:
    every = names(600)
    bad = every[10:300:30]
    simulation = Simulation(Service(3.0, rules=[poison(bad, internal_error, 0.1)]), every).run()
    assert set(simulation.quarantined) == set(bad)
    assert len(simulation.saved) == 590
    assert max(calls_of(simulation, name) for name in bad) <= 7


def test_five_images_in_a_row_refused_pause_the_line() -> None:
    def refuse() -> BgremoverError:
        return Rejected("400", http=HttpAnswer(400))

    hour = between(100, 100 + HOUR, always(refuse))
    simulation = Simulation(Service(rules=[hour]), names(1_000)).run()
    assert [pause.reason for pause in simulation.pauses[:1]] == ["contract_changed"]
    assert len(simulation.quarantined) == 4
    assert len(simulation.saved) == 996
    assert len(failed_calls(simulation)) <= simulation.workers + 10


# --- pacing ---------------------------------------------------------------------------------


def goodput(simulation: Simulation, limit: int, begin: float, end: float) -> float:
    """Return the share of what `limit` calls at a time could have done."""
    latency = simulation.service.latency
    done = sum(
        post.fault is None and begin <= post.at + post.seconds < end for post in simulation.posts
    )
    return done * latency / (limit * (end - begin))


def throttled(simulation: Simulation, begin: float) -> float:
    late = [post for post in simulation.posts if post.at >= begin]
    return sum(isinstance(post.fault, Throttled) for post in late) / len(late)


def too_early(simulation: Simulation) -> int:
    """Return how many calls were made while a Retry-After had not run off."""
    starts = sorted(post.at for post in simulation.posts)
    early = 0
    for post in simulation.posts:
        if isinstance(post.fault, Throttled) and post.fault.retry_after:
            told = post.at + post.seconds
            until = told + post.fault.retry_after
            early += max(0, bisect_left(starts, until - 1e-6) - bisect_right(starts, told))
    return early


@pytest.mark.parametrize(("limit", "workers"), [(1, 4), (3, 10), (10, 20)])
@pytest.mark.parametrize("retry_after", [None, 5.0, 30.0])
@pytest.mark.parametrize("told", [False, True])
def test_a_service_with_a_limit(
    limit: int, workers: int, retry_after: float | None, told: bool
) -> None:
    rule = at_most(lambda _: limit, retry_after=retry_after, told=told)
    simulation = Simulation(Service(1.0, rules=[rule]), names(400 * limit), workers=workers).run(
        360
    )
    assert any(isinstance(post.fault, Throttled) for post in simulation.posts)
    assert too_early(simulation) == 0
    assert throttled(simulation, 60) <= 0.05
    assert goodput(simulation, limit, 60, 360) >= 0.9
    assert not simulation.quarantined


def test_the_limit_that_the_service_tells_is_taken_over_at_once() -> None:
    rule = at_most(lambda _: 12, told=True)
    simulation = Simulation(Service(1.0, rules=[rule]), names(400), workers=30).run()
    at_once = [post for post in simulation.posts if post.at <= 5]
    assert sum(isinstance(post.fault, Throttled) for post in at_once) <= 18
    assert goodput(simulation, 12, 5, 25) >= 0.95


def test_a_limit_that_falls_and_rises_again() -> None:
    def limit(now: float) -> int:
        return 10 if now < 200 else 3 if now < 600 else 8

    simulation = Simulation(Service(1.0, rules=[at_most(limit)]), names(9_000), workers=20)
    simulation.run(1500)
    assert goodput(simulation, 10, 10, 200) >= 0.9
    assert goodput(simulation, 3, 210, 600) >= 0.9
    assert goodput(simulation, 8, 600, 900) >= 0.75
    assert goodput(simulation, 8, 900, 1200) >= 0.95
    assert throttled(simulation, 60) <= 0.05


def test_nothing_is_quarantined_when_others_hold_all_places() -> None:
    taken = between(60, 660, at_most(lambda _: 0))
    simulation = Simulation(Service(rules=[taken]), names(2_000)).run()
    assert len(simulation.saved) == 2_000
    assert len(failed_calls(simulation)) <= 60
    assert simulation.elapsed - 600 <= 1.15 * fault_free(2_000, 3.0)


@pytest.mark.parametrize("latency", [0.5, 3.0])
def test_120_images_take_hardly_longer_than_with_ten_workers_from_the_start(
    latency: float,
) -> None:
    steady: Rule = lambda _: Answer(latency)  # noqa: E731 - a rule is a function of one call
    simulation = Simulation(Service(rules=[steady], fetch_seconds=0.0), names(120)).run()
    assert simulation.elapsed <= 1.1 * 120 * latency / 10


def test_it_begins_with_one_call_and_only_then_with_ten() -> None:
    steady: Rule = lambda _: Answer(2.0)  # noqa: E731 - a rule is a function of one call
    simulation = Simulation(Service(rules=[steady]), names(200), workers=50).run()
    assert [sum(post.at == moment for post in simulation.posts) for moment in (0, 2, 4)] == [
        1,
        10,
        20,
    ]


# --- results --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        lambda: LinkFailed("502", billed=Billed.YES),
        lambda: LinkRefused("another host", billed=Billed.YES),
    ],
)
def test_while_no_result_can_be_fetched_hardly_anything_is_paid_for(
    fault: Callable[[], BgremoverError],
) -> None:
    hour = between(60, 60 + HOUR, always(fault))
    simulation = Simulation(Service(fetch_rules=[hour]), names(1_000)).run()
    assert len(simulation.saved) == 1_000
    assert not simulation.quarantined
    assert len(simulation.posts) == 1_000  # nothing was paid for twice
    assert sum(60 <= post.at < 60 + HOUR for post in simulation.posts) <= 50
    assert simulation.elapsed - HOUR <= 1.1 * fault_free(1_000, 3.0)


def test_a_broken_result_is_fetched_three_times() -> None:
    def broken() -> BgremoverError:
        return BrokenResult("no end", billed=Billed.YES)

    every = names(100)
    simulation = Simulation(Service(fetch_rules=[poison([every[7]], broken, 0.1)]), every).run()
    assert len(simulation.saved) == 99
    assert [code for code, _ in simulation.quarantined.values()] == ["bad_result"]
    assert calls_of(simulation, every[7]) == 1
    assert sum(fetch.name == every[7] for fetch in simulation.fetches) == 3


def test_ten_broken_results_are_ten_broken_results() -> None:
    simulation = Simulation(Service(fetch_rules=[always(broken_result)]), names(10)).run(HOUR)
    assert len(simulation.quarantined) == 10


def broken_result() -> BgremoverError:
    return BrokenResult("a page instead of a picture", billed=Billed.YES)


def test_when_every_result_is_broken_the_images_are_kept() -> None:
    hour = between(60, 60 + HOUR, always(broken_result))
    simulation = Simulation(Service(fetch_rules=[hour]), names(1_000)).run()
    assert len(simulation.quarantined) <= 16
    assert len(simulation.saved) == 1_000 - len(simulation.quarantined)
    assert len(simulation.posts) == 1_000


# --- unknown charges ------------------------------------------------------------------------


def test_no_image_is_sent_more_often_than_allowed_while_all_charges_are_unknown() -> None:
    outage = between(30, 30 + HOUR, always(timed_out, 5.0))
    simulation = Simulation(Service(rules=[outage]), names(300)).run()
    unknown = [post.name for post in failed_calls(simulation)]
    assert len(simulation.saved) == 300
    assert not simulation.quarantined
    assert max(map(unknown.count, unknown)) <= 1 + simulation.unknown_sends
    assert len(unknown) <= 50


def test_an_image_with_two_unknown_charges_goes_to_quarantine_while_others_go_through() -> None:
    every = names(50)
    simulation = Simulation(Service(rules=[poison([every[9]], timed_out, 5.0)]), every).run()
    assert {name: code for name, (code, _) in simulation.quarantined.items()} == {
        every[9]: "unknown_charge"
    }
    assert calls_of(simulation, every[9]) == 2
    assert not simulation.pauses


def test_hold_sends_nothing_again_after_an_unknown_charge() -> None:
    every = names(50)
    simulation = Simulation(
        Service(rules=[poison([every[9]], timed_out, 5.0)]), every, unknown_sends=0
    ).run()
    assert list(simulation.quarantined) == [every[9]]
    assert calls_of(simulation, every[9]) == 1


# --- any weather ----------------------------------------------------------------------------

faults = st.sampled_from([bad_key, no_money, not_allowed, refused_connection])
windows = st.tuples(st.floats(0, 400), st.floats(1, 4000), faults, st.floats(0.01, 5))


@settings(max_examples=40)
@given(
    weather=st.lists(windows, max_size=3),
    limit=st.integers(1, 12),
    retry_after=st.none() | st.floats(0, 100),
    told=st.booleans(),
    workers=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_whatever_the_weather_every_image_is_saved_for_one_charge(
    weather: list[tuple[float, float, Callable[[], BgremoverError], float]],
    limit: int,
    retry_after: float | None,
    told: bool,
    workers: int,
    seed: int,
) -> None:
    rules = [between(a, a + b, always(fault, seconds)) for a, b, fault, seconds in weather]
    rules.append(at_most(lambda _: limit, retry_after=retry_after, told=told))
    simulation = Simulation(Service(rules=rules), names(60), workers=workers, seed=seed).run()
    assert len(simulation.saved) == 60
    assert simulation.most_faults == 0
    assert sum(post.fault is None for post in simulation.posts) == 60
    assert too_early(simulation) == 0
    assert simulation.most_in_flight <= workers
    assert simulation.most_probes <= 1


def test_the_weather_does_pause_the_line_now_and_then() -> None:
    window = between(10, 500, always(bad_key))
    simulation = Simulation(Service(rules=[window, at_most(lambda _: 3)]), names(60)).run()
    assert simulation.most_probes == 1
    assert any(isinstance(post.fault, AccountFault) for post in simulation.posts)
    assert any(isinstance(post.fault, Throttled) for post in simulation.posts)
