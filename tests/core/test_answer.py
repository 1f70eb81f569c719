"""What each answer of the API means: the documented table, and laws for all the others."""

import json
from collections.abc import Callable
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.answer import (
    LINK_LIFE,
    LONGEST_WAIT,
    SYNCHRONOUS_LIMIT,
    Quote,
    check_link,
    has_expired,
    http_answer,
    is_own_host,
    is_public,
    link_expiry,
    read_acceptance,
    read_generation,
    read_quote,
    read_submission,
    retry_after,
)
from bgremover.core.errors import (
    AccountFault,
    BgremoverError,
    Billed,
    EndpointMoved,
    Forbidden,
    GenerationFailed,
    KeyRefused,
    LinkFailed,
    LinkRefused,
    NoUsableAnswer,
    PaymentRequired,
    Rejected,
    ServerFailed,
    Throttled,
    Unreachable,
    Unsafe,
)
from bgremover.core.job import Receipt

NOW = 1_800_000_000.0
BASE = "https://api.ideogram.ai"
HOSTS = ("ideogram.ai", "*.ideogram.ai")
EXP = int(NOW) + 86_400
LINK = f"https://ideogram.ai/api/images/ephemeral/x.png?exp={EXP}&sig=5ec4e7"


def answer(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def paid(url: object = LINK, *, safe: object = True, **fields: object) -> bytes:
    return answer(created="2000-01-23", data=[{"is_image_safe": safe, "url": url}], **fields)


def submission(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None, seconds: float = 3.0
) -> Receipt:
    return read_submission(status, headers or {}, body, now=NOW, seconds=seconds)


def fault_of(call: Callable[[], object]) -> BgremoverError:
    with pytest.raises(BgremoverError) as caught:
        call()
    return caught.value


# --- a submission ---------------------------------------------------------------------------


def test_an_image_that_was_paid_for_gives_a_receipt() -> None:
    receipt = submission(200, paid(), {"X-Request-Id": "req-1"})
    assert receipt == Receipt(None, LINK, float(EXP), "req-1")


def test_the_generation_id_of_a_synchronous_v2_answer_is_kept() -> None:
    assert submission(200, paid(generation_id="gen-1")).generation_id == "gen-1"


def test_a_link_to_a_strange_host_is_kept_all_the_same_because_it_was_paid_for() -> None:
    assert submission(200, paid("https://elsewhere.example/x.png")).link is not None


@pytest.mark.parametrize(
    ("status", "kind", "billed"),
    [
        (301, EndpointMoved, Billed.NO),
        (308, EndpointMoved, Billed.NO),
        (400, Rejected, Billed.NO),
        (401, KeyRefused, Billed.NO),
        (402, PaymentRequired, Billed.NO),
        (403, Forbidden, Billed.NO),
        (404, EndpointMoved, Billed.NO),
        (405, EndpointMoved, Billed.NO),
        (407, Unreachable, Billed.NO),
        (408, Throttled, Billed.NO),
        (409, ServerFailed, Billed.NO),
        (410, EndpointMoved, Billed.NO),
        (413, Rejected, Billed.NO),
        (415, Rejected, Billed.NO),
        (418, ServerFailed, Billed.NO),
        (422, Unsafe, Billed.NO),
        (425, Throttled, Billed.NO),
        (429, Throttled, Billed.NO),
        (500, ServerFailed, Billed.NO),
        (502, ServerFailed, Billed.NO),
        (503, ServerFailed, Billed.NO),
        (504, ServerFailed, Billed.NO),
        (511, Unreachable, Billed.NO),
        (524, NoUsableAnswer, Billed.UNKNOWN),
        (599, ServerFailed, Billed.NO),
        (101, NoUsableAnswer, Billed.UNKNOWN),
        (204, NoUsableAnswer, Billed.UNKNOWN),
        (206, NoUsableAnswer, Billed.UNKNOWN),
        (600, NoUsableAnswer, Billed.UNKNOWN),
    ],
)
def test_a_status_is_one_fault(status: int, kind: type[BgremoverError], billed: Billed) -> None:
    fault = fault_of(lambda: submission(status, b'{"error": "because"}', {"x-request-id": "r"}))
    assert type(fault) is kind
    assert fault.billed is billed
    assert fault.http is not None
    assert (fault.http.status, fault.http.request_id) == (status, "r")
    assert "because" in fault.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Log in to the hotel's network</html>",
        b'{"data": ',
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        answer(data=[]),
        answer(data={}),
        answer(data=[1]),
        answer(data=[{"is_image_safe": True}]),
        answer(data=[{"is_image_safe": True, "url": LINK}] * 2),
        paid(None),
        paid(""),
        paid(7),
        paid("https://ideogram.ai/\ud800"),
        paid("https://ideogram.ai/" + "x" * 10_000),
    ],
)
def test_a_200_without_exactly_one_link_leaves_the_charge_unknown(body: bytes) -> None:
    fault = fault_of(lambda: submission(200, body))
    assert isinstance(fault, NoUsableAnswer)
    assert fault.billed is Billed.UNKNOWN


@pytest.mark.parametrize("url", [None, "", LINK])
def test_a_withheld_image_is_billed(url: str | None) -> None:
    fault = fault_of(lambda: submission(200, paid(url, safe=False)))
    assert isinstance(fault, Unsafe)
    assert fault.billed is Billed.YES


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "5"}])
def test_a_gateway_that_gives_up_after_the_apis_own_limit_leaves_the_charge_unknown(
    status: int, headers: dict[str, str]
) -> None:
    late = fault_of(lambda: submission(status, b"", headers, seconds=SYNCHRONOUS_LIMIT))
    early = fault_of(lambda: submission(status, b"", headers, seconds=SYNCHRONOUS_LIMIT - 1))
    assert isinstance(late, NoUsableAnswer)
    assert early.billed is Billed.NO


@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "Retry-After-Ms"])
def test_a_503_that_says_when_to_come_back_is_no_failure(name: str) -> None:
    fault = fault_of(lambda: submission(503, b"", {name: "7"}))
    assert isinstance(fault, Throttled)
    assert fault.retry_after == (0.007 if name.endswith("Ms") else 7.0)


@pytest.mark.parametrize(
    ("given_limit", "understood"),
    [(10, 10), (0, None), (-1, None), (True, None), ("10", None), (None, None), (1.5, None)],
)
def test_a_429_tells_how_many_may_be_in_flight(given_limit: object, understood: int | None) -> None:
    body = answer(error="slow", reject_reason="inflight_limit", max_inflight_requests=given_limit)
    fault = fault_of(lambda: submission(429, body, {"retry-after": "2"}))
    assert isinstance(fault, Throttled)
    assert (fault.max_inflight, fault.retry_after) == (understood, 2.0)
    assert fault.http is not None
    assert fault.http.reject_reason == "inflight_limit"


def test_what_the_account_lacks_is_kept() -> None:
    fault = fault_of(lambda: submission(402, answer(reject_reason="insufficient_funds")))
    assert fault.http is not None
    assert fault.http.reject_reason == "insufficient_funds"


@pytest.mark.parametrize(
    "body",
    [
        paid(["x", LINK]),
        json.dumps({"url": LINK}).replace("/", "\\/").encode(),
        json.dumps({"url": LINK}).replace("&", "\\u0026").encode(),
        b"x" * 2030 + LINK.encode(),
        f'<a href="{LINK}">'.encode(),
        b"//ideogram.ai/x.png?exp=1&sig=5ec4e7",
        b'{"api_key": "5ec4e7"}',
        LINK.upper().encode(),
    ],
)
def test_no_link_or_key_is_kept_of_an_answer(body: bytes) -> None:
    kept = http_answer(200, {"x-request-id": LINK}, body)
    assert "5ec4e7" not in repr(kept).lower()


def test_the_start_of_a_body_is_kept() -> None:
    kept = http_answer(500, {}, "é".encode() * 5000).body
    assert kept == "é" * 1024


# --- asynchronous ---------------------------------------------------------------------------


def test_an_accepted_generation_has_a_receipt_without_a_link() -> None:
    receipt = read_acceptance(
        200, {"x-request-id": "r"}, answer(generation_id="gen-1"), now=NOW, seconds=1
    )
    assert receipt == Receipt("gen-1", None, NOW + LINK_LIFE, "r")


def test_an_asynchronous_call_that_is_answered_at_once_is_paid() -> None:
    receipt = read_acceptance(200, {}, paid(generation_id="gen-1"), now=NOW, seconds=1)
    assert (receipt.generation_id, receipt.link) == ("gen-1", LINK)


@pytest.mark.parametrize("bad", [None, "", "..", "a/b", "a?b", "x" * 300, 7])
def test_an_acceptance_without_a_usable_id_leaves_the_charge_unknown(bad: object) -> None:
    body = answer(generation_id=bad)
    fault = fault_of(lambda: read_acceptance(200, {}, body, now=NOW, seconds=1))
    assert isinstance(fault, NoUsableAnswer)


def test_an_acceptance_is_refused_like_a_submission() -> None:
    fault = fault_of(lambda: read_acceptance(401, {}, b"", now=NOW, seconds=1))
    assert isinstance(fault, KeyRefused)


def generation(status: int, body: bytes = b"", **headers: str) -> Receipt | None:
    return read_generation(status, headers, body, now=NOW)


@pytest.mark.parametrize("state", ["pending", "queued", "running"])
def test_a_running_generation_has_no_receipt_yet(state: str) -> None:
    assert generation(200, answer(generation_id="gen-1", status=state)) is None


def test_a_completed_generation_is_paid() -> None:
    receipt = generation(200, paid(generation_id="gen-1", status="completed"))
    assert receipt is not None
    assert (receipt.generation_id, receipt.link) == ("gen-1", LINK)


@pytest.mark.parametrize(
    ("status", "body", "kind", "billed"),
    [
        (200, answer(status="failed", failure_reason="oops"), GenerationFailed, Billed.NO),
        (200, paid(None, safe=False, status="completed"), Unsafe, Billed.YES),
        (200, answer(status="completed"), NoUsableAnswer, Billed.UNKNOWN),
        (200, b"<html>", NoUsableAnswer, Billed.UNKNOWN),
        (400, b"", NoUsableAnswer, Billed.UNKNOWN),
        (401, b"", KeyRefused, Billed.NO),
        (402, b"", PaymentRequired, Billed.NO),
        (403, b"", Forbidden, Billed.NO),
        (404, b"", NoUsableAnswer, Billed.UNKNOWN),
        (405, b"", EndpointMoved, Billed.NO),
        (422, b"", NoUsableAnswer, Billed.UNKNOWN),
        (429, b"", Throttled, Billed.NO),
        (500, b"", LinkFailed, Billed.NO),
        (503, b"", LinkFailed, Billed.NO),
        (302, b"", EndpointMoved, Billed.NO),
    ],
)
def test_a_poll_that_brings_no_receipt_is_one_fault(
    status: int, body: bytes, kind: type[BgremoverError], billed: Billed
) -> None:
    fault = fault_of(lambda: generation(status, body))
    assert type(fault) is kind
    assert fault.billed is billed


def test_a_throttled_poll_tells_when_to_come_back() -> None:
    fault = fault_of(lambda: generation(429, b"", **{"Retry-After": "3"}))
    assert isinstance(fault, Throttled)
    assert fault.retry_after == 3.0


def test_a_dry_run_gives_the_price() -> None:
    body = answer(object="price_quote", quantity=1, usd_micros=10_000, qualifier="exact")
    assert read_quote(200, {}, body, now=NOW) == Quote(0.01, exact=True)
    assert not read_quote(200, {}, answer(usd_micros=1), now=NOW).exact


@pytest.mark.parametrize("price", [None, True, -1, "10000", 1.5, 10**20])
def test_a_dry_run_without_a_price_is_no_quote(price: object) -> None:
    fault = fault_of(lambda: read_quote(200, {}, answer(usd_micros=price), now=NOW))
    assert isinstance(fault, NoUsableAnswer)


def test_a_dry_run_proves_the_key() -> None:
    assert isinstance(fault_of(lambda: read_quote(401, {}, b"", now=NOW)), KeyRefused)


@given(
    status=st.integers(-1, 1000),
    headers=st.dictionaries(st.text(), st.text()),
    body=st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["data", "url", "status", "generation_id", "usd_micros", "e"]),
                    inner,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    seconds=st.floats(0, 1e6),
)
@example(200, {}, paid(), 1.0)
@example(200, {}, b'{"data": [{"url": "' + b"1" * 5000 + b'", "is_image_safe": 1}]}', 1.0)
@example(200, {}, b'{"usd_micros": ' + b"1" * 5000 + b"}", 1.0)
@example(429, {"Retry-After": "Mon, 01 Jan 0001 00:00:00 +2359"}, b"", 1.0)
def test_any_answer_is_a_result_or_an_expected_fault(
    status: int, headers: dict[str, str], body: bytes, seconds: float
) -> None:
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_submission(status, headers, body, now=NOW, seconds=seconds),
        lambda: read_acceptance(status, headers, body, now=NOW, seconds=seconds),
        lambda: read_generation(status, headers, body, now=NOW),
        lambda: read_quote(status, headers, body, now=NOW),
    )
    for reader in readers:
        outcome = outcome_of(reader)
        if isinstance(outcome, BgremoverError):
            assert outcome.http is not None
            assert len(outcome.http.body.encode()) <= 2048
            assert outcome.billed is Billed.NO or not isinstance(outcome, AccountFault)
        else:
            assert 200 <= status <= 202


def outcome_of(reader: Callable[[], object]) -> object:
    try:
        return reader()
    except BgremoverError as fault:
        return fault


# --- Retry-After ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"Retry-After": "5"}, 5.0),
        ({"RETRY-AFTER": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, LONGEST_WAIT),
        ({"retry-after": "1e9"}, LONGEST_WAIT),
        ({"retry-after": "soon"}, None),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


def test_a_date_to_retry_after_is_measured_on_the_servers_clock() -> None:
    there = NOW - 25 * 3600
    headers = {"Retry-After": formatdate(there + 30), "Date": formatdate(there)}
    assert retry_after(headers, NOW) == 30.0


@given(
    value=st.one_of(
        st.text(),
        st.floats().map(str),
        st.integers().map(str),
        st.datetimes().map(lambda moment: f"{moment:%a, %d %b %Y %H:%M:%S} GMT"),
    ),
    date=st.text() | st.floats(0, 1e10).map(formatdate),
    now=st.floats(0, 1e12),
)
def test_retry_after_is_none_or_at_most_an_hour(value: str, date: str, now: float) -> None:
    for name in ("Retry-After", "Retry-After-Ms"):
        wait = retry_after({name: value, "Date": date}, now)
        assert wait is None or 0 <= wait <= LONGEST_WAIT


# --- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        LINK,
        "https://IDEOGRAM.ai/x",
        "https://cdn.ideogram.ai/x.png",
        "https://a.b.ideogram.ai:443/x",
        "https://api.ideogram.ai/x",
        "https://ideogram.ai",
        "HTTPS://ideogram.ai?exp=1",
    ],
)
def test_a_link_to_an_allowed_host_passes(link: str) -> None:
    check_link(link, BASE, HOSTS)


@pytest.mark.parametrize(
    "link",
    [
        "",
        "file:///etc/passwd",
        "ftp://ideogram.ai/x",
        "http://ideogram.ai/x",
        "//ideogram.ai/x",
        "https:///x",
        "https:ideogram.ai/x",
        "https://user@ideogram.ai/x",
        "https://user:pass@ideogram.ai/x",
        "https://ideogram.ai@elsewhere.example/x",
        "https://elsewhere.example/ideogram.ai",
        "https://elsewhere.example#ideogram.ai",
        "https://elsewhere.example\\@ideogram.ai/",
        "https://ideogram.ai\\.elsewhere.example/",
        "https://ideogram.ai.elsewhere.example/x",
        "https://notideogram.ai/x",
        "https://.ideogram.ai/x",
        "https://ideogram.ai./x",
        "https://ideogram.ai:8443/x",
        "https://ideogram.ai:/x",
        "https://ideogram.ai:0/x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f000001/x",
        "https://0x7f.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[64:ff9b::7f00:1]/x",
        "https://ideogr\u0430m.ai/x",  # a Cyrillic letter
        "https://ideogram\u3002ai/x",
        "https://ideogram.ai/\n",
        "https://ideogram.ai/a b",
        " https://ideogram.ai/x",
        "https://%69deogram.ai/x",
    ],
)
def test_a_link_to_anywhere_else_is_refused_and_was_paid(link: str) -> None:
    fault = fault_of(lambda: check_link(link, BASE, HOSTS))
    assert isinstance(fault, LinkRefused)
    assert fault.billed is Billed.YES


@pytest.mark.parametrize(
    "base", ["http://127.0.0.1:8099", "http://localhost:8099/", "http://[::1]:8099"]
)
def test_plain_http_is_for_loopback_alone(base: str) -> None:
    check_link(f"{base.rstrip('/')}/x.png", base, HOSTS)
    with pytest.raises(LinkRefused):
        check_link("http://ideogram.ai/x.png", base, HOSTS)
    with pytest.raises(LinkRefused):
        check_link("http://api.example/x.png", "http://api.example", HOSTS)
    with pytest.raises(LinkRefused):
        check_link("https://10.0.0.1/x.png", base, HOSTS)


def test_a_star_allows_sub_domains_alone() -> None:
    check_link("https://cdn.example.org/x", BASE, ["*.Example.org"])
    with pytest.raises(LinkRefused):
        check_link("https://example.org/x", BASE, ["*.example.org"])
    with pytest.raises(LinkRefused):
        check_link("https://example.org/x", BASE, ["*"])


def test_the_apis_own_host_and_port_are_always_allowed() -> None:
    check_link("https://gateway.example:8443/x", "https://gateway.example:8443/ideogram", [])
    check_link("https://192.0.2.7/x", "https://192.0.2.7", [])


def test_messages_about_links_hold_no_more_than_the_host() -> None:
    for link in ("https://evil.example/p?sig=5ec4e7", "https://evil.example/ p?sig=5ec4e7"):
        assert "5ec4e7" not in fault_of(lambda link=link: check_link(link, BASE, HOSTS)).message  # type: ignore[misc]


@given(
    st.text()
    | st.from_regex(r"https?://([a-z.\-]{0,12}@)?[a-z0-9.\-]{0,12}(ideogram\.ai)?(:[0-9]{0,4})?/.?")
)
@example(LINK)
def test_only_hosts_of_the_list_pass(link: str) -> None:
    try:
        check_link(link, BASE, HOSTS)
    except LinkRefused:
        return
    host = link.lower().removeprefix("https://").partition("/")[0].partition("?")[0]
    host = host.partition("#")[0].removesuffix(":443")
    assert host == "ideogram.ai" or host.endswith(".ideogram.ai")


def test_the_own_host_may_lead_to_any_address() -> None:
    assert is_own_host("https://api.ideogram.ai/x", BASE)
    assert not is_own_host("https://ideogram.ai/x", BASE)
    assert is_own_host("https://cdn.example/x", "http://localhost:1")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::6810:84e5", True),
        ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to refuse, nothing is bound
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("", False),
        ("ideogram.ai", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


# --- expiry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "expires"),
    [
        (LINK, EXP),
        (f"https://ideogram.ai/x?sig=1&exp={EXP}", EXP),
        ("https://ideogram.ai/x", NOW + LINK_LIFE),
        ("https://ideogram.ai/x?exp=tomorrow", NOW + LINK_LIFE),
        ("https://ideogram.ai/x?noexp=1", NOW + LINK_LIFE),
        ("https://ideogram.ai/x?exp=86400", NOW + LINK_LIFE),  # no moment, but a duration
        (f"https://ideogram.ai/x?exp={EXP}000", NOW + LINK_LIFE),  # milliseconds
    ],
)
def test_a_link_says_when_it_dies(link: str, expires: float) -> None:
    assert link_expiry(link, {}, NOW) == expires


@pytest.mark.parametrize("skew", [-25 * 3600, 25 * 3600, -400 * 86_400])
def test_a_wrong_clock_here_does_not_shorten_the_life_of_a_link(skew: float) -> None:
    there = NOW + skew
    link = f"https://ideogram.ai/x?exp={int(there) + 3600}"
    assert link_expiry(link, {"Date": formatdate(there)}, NOW) == NOW + 3600
    assert not has_expired(link, {"Date": formatdate(there)}, NOW)
    assert has_expired(link, {"Date": formatdate(there + 3601)}, NOW)


def test_a_second_between_two_clocks_is_no_skew() -> None:
    assert link_expiry(LINK, {"Date": formatdate(NOW - 2)}, NOW) == EXP


def test_a_link_has_expired_at_its_moment() -> None:
    assert has_expired(LINK, {}, float(EXP))
    assert not has_expired(LINK, {}, EXP - 1.0)
    assert not has_expired("https://ideogram.ai/x", {}, NOW * 2)
