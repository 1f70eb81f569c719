import hashlib
import io
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from bgremover.core.errors import SetupError
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox

V1 = "/v1/remove-background"
V2 = "/v2/image/remove-background/ideogram-1"


def picture(kind: str = "PNG", shade: int = 30) -> bytes:
    image = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=(200, shade, 40))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


class Client:
    """Asks a sandbox as a client of the API would."""

    def __init__(self, sandbox: RunningSandbox, key: str = "a-key") -> None:
        self.sandbox = sandbox
        self.http = httpx.Client(base_url=sandbox.url, headers={"Api-Key": key}, timeout=30)

    def post(
        self,
        name: str = "shoe.png",
        data: bytes | None = None,
        path: str = V1,
        fields: dict[str, str] | None = None,
    ) -> httpx.Response:
        image = (name, picture() if data is None else data, "image/png")
        return self.http.post(path, files={"image": image}, data=fields or {})

    def link(self, name: str = "shoe.png") -> str:
        link = self.post(name).json()["data"][0]["url"]
        assert isinstance(link, str)
        return link

    def script(self, *faults: dict[str, Any], target: str = "post") -> None:
        answer = self.http.post("/sandbox/script", params={"target": target}, json=faults)
        assert answer.status_code == 204, answer.text

    def report(self) -> dict[str, Any]:
        report = self.http.get("/sandbox/report").json()
        assert isinstance(report, dict)
        return report

    def payments(self) -> int:
        return len(self.sandbox.state.payments)


def until(condition: Callable[[], bool], limit: float = 10.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


@pytest.fixture
def start() -> Iterator[Callable[..., Client]]:
    running: list[Client] = []

    def begin(key: str = "a-key", **options: Any) -> Client:  # noqa: ANN401 - of SandboxOptions
        sandbox = RunningSandbox(SandboxOptions(**options)).__enter__()
        running.append(Client(sandbox, key))
        return running[-1]

    yield begin
    for client in running:
        client.http.close()
        client.sandbox.stop()


@pytest.fixture
def client(start: Callable[..., Client]) -> Client:
    return start()


# --- v1 ---------------------------------------------------------------------------------------


def test_v1_answers_as_documented(client: Client) -> None:
    answer = client.post()
    assert answer.status_code == 200
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"created", "data"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", body["created"])
    (entry,) = body["data"]
    assert entry["is_image_safe"] is True
    link = re.fullmatch(
        rf"{re.escape(client.sandbox.url)}/api/images/ephemeral/[\w-]+\.png"
        r"\?exp=(\d+)&sig=[0-9a-f]{64}",
        entry["url"],
    )
    assert link
    assert int(link[1]) == pytest.approx(time.time() + 24 * 3600, abs=5)


def test_result_is_the_cut_out_and_can_be_fetched_again(client: Client) -> None:
    link = client.link()
    first, second = client.http.get(link), client.http.get(link)
    assert first.headers["content-type"] == "image/png"
    assert first.content == second.content
    with Image.open(io.BytesIO(first.content)) as result:
        assert (result.format, result.mode, result.size) == ("PNG", "RGBA", (80, 60))
        assert result.getchannel("A").getpixel((40, 30)) == 255
        assert result.getchannel("A").getpixel((2, 2)) == 0
    assert client.report()["downloads"] == 2
    assert client.payments() == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_documented_formats_are_accepted(client: Client, kind: str) -> None:
    assert client.post(data=picture(kind)).status_code == 200


@pytest.mark.parametrize("data", [b"", b"no image", picture("GIF"), picture()[:-40]])
def test_what_cannot_be_decoded_is_400_and_free(client: Client, data: bytes) -> None:
    answer = client.post(data=data)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert client.payments() == 0


@pytest.mark.parametrize("path", [V1, V2])
def test_missing_field_is_400(client: Client, path: str) -> None:
    assert client.http.post(path, files={"picture": b"x"}).status_code == 400
    assert client.http.post(path, content=b"x").status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.http.post(path, content=b"--b\rx", headers=broken).status_code == 400


@pytest.mark.parametrize("excess", [1, 100_000])
def test_too_large_is_413_and_free(start: Callable[..., Client], excess: int) -> None:
    client = start(max_upload_bytes=len(picture()))
    assert client.post().status_code == 200
    answer = client.post(data=picture() + bytes(excess))
    assert answer.status_code == 413
    assert client.payments() == 1


@pytest.mark.parametrize("key", ["", "wrong"])
def test_wrong_key_is_401_and_free(start: Callable[..., Client], key: str) -> None:
    client = start(key=key, fixed_result=True)
    options = SandboxOptions(key="right")
    with RunningSandbox(options) as sandbox:
        stranger = Client(sandbox, key)
        with stranger.http:
            for path in (V1, V2, f"{V2}?dry_run=true"):
                answer = stranger.post(path=path)
                assert (answer.status_code, answer.headers["x-request-id"] != "") == (401, True)
                assert answer.json()["error"]
            assert stranger.http.get("/v2/generations/x").status_code == 401
            assert stranger.payments() == 0
    assert client.post().status_code == (200 if key else 401)


def test_unsafe_is_422_and_free(client: Client) -> None:
    answer = client.post("unsafe.png")
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert client.payments() == 0
    assert client.report()["in_flight"] == 0


def test_withheld_is_billed_and_has_no_link(client: Client) -> None:
    answer = client.post("withheld.png")
    assert answer.status_code == 200
    assert answer.json()["data"] == [{"is_image_safe": False, "url": None}]
    assert [payment.outcome for payment in client.sandbox.state.payments] == ["withheld"]


def test_failing_is_500_and_free(client: Client) -> None:
    assert client.post("failing.png").status_code == 500
    assert client.payments() == 0


def test_unknown_path_and_method_are_json_errors(client: Client) -> None:
    for answer in (client.http.get("/v3"), client.http.get(V1)):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]
        assert answer.headers["x-request-id"]


# --- in flight --------------------------------------------------------------------------------


def test_more_than_the_limit_in_flight_is_429(start: Callable[..., Client]) -> None:
    client = start(max_inflight=2, latency_seconds=30, fixed_result=True)
    for name in ("1.png", "2.png"):
        client.post(name, path=V2, fields={"async": "true"})
    answer = client.post("3.png")
    assert answer.status_code == 429
    body = answer.json()
    assert body["reject_reason"] == "inflight_limit"
    assert body["max_inflight_requests"] == 2
    report = client.report()
    assert (report["in_flight"], report["in_flight_max"], report["payments"]) == (2, 2, [])


def test_next_image_may_follow_an_answer_at_once(start: Callable[..., Client]) -> None:
    client = start(max_inflight=1)
    assert [client.post(f"{n}.png").status_code for n in range(20)] == [200] * 20
    assert client.report()["in_flight_max"] == 1


def test_stays_responsive_with_a_hundred_in_flight(start: Callable[..., Client]) -> None:
    client = start(max_inflight=100, latency_seconds=3.0)
    with ThreadPoolExecutor(100) as pool:
        answers = [pool.submit(client.post, f"{n}.png", picture(shade=n)) for n in range(100)]
        until(lambda: client.sandbox.state.in_flight > 50)
        client.report()
        assert client.sandbox.state.in_flight > 50  # not answered only when these had been
        assert {answer.result().status_code for answer in answers} == {200}
    assert client.payments() == 100
    assert client.report()["paid_twice"] == []


# --- v2 ---------------------------------------------------------------------------------------


def test_v2_is_synchronous_by_default(client: Client) -> None:
    body = client.post(path=V2).json()
    assert set(body) == {"generation_id", "data"}
    assert client.http.get(body["data"][0]["url"]).status_code == 200
    assert client.sandbox.state.payments[0].generation_id == body["generation_id"]


def test_v2_asynchronous_is_polled_until_completed(start: Callable[..., Client]) -> None:
    client = start(latency_seconds=0.3)
    accepted = client.post(path=V2, fields={"async": "true"})
    assert accepted.status_code == 200
    assert set(accepted.json()) == {"generation_id"}
    path = f"/v2/generations/{accepted.json()['generation_id']}"
    first = client.http.get(path).json()
    assert first["status"] == "pending"
    assert "data" not in first
    assert client.payments() == 0
    until(lambda: client.http.get(path).json()["status"] != "pending")
    done = client.http.get(path).json()
    assert (done["status"], done["response_type"]) == ("completed", "url")
    (entry,) = done["data"]
    assert (entry["object_type"], entry["is_image_safe"]) == ("image", True)
    assert client.http.get(entry["url"]).status_code == 200
    assert client.payments() == 1
    assert client.report()["polls"] >= 3


@pytest.mark.parametrize(
    ("name", "status", "billed"), [("failing.png", "failed", 0), ("withheld.png", "completed", 1)]
)
def test_v2_asynchronous_ends_without_a_link(
    client: Client, name: str, status: str, billed: int
) -> None:
    generation = client.post(name, path=V2, fields={"async": "true"}).json()["generation_id"]
    path = f"/v2/generations/{generation}"
    until(lambda: client.http.get(path).json()["status"] != "pending")
    body = client.http.get(path).json()
    assert body["status"] == status
    assert body.get("failure_reason" if status == "failed" else "data")
    assert client.payments() == billed


def test_unknown_generation_is_404(client: Client) -> None:
    assert client.http.get("/v2/generations/none").status_code == 404


def test_too_many_polls_are_429_with_retry_after(client: Client) -> None:
    answers = [client.http.get("/v2/generations/none") for _ in range(1001)]
    assert [answer.status_code for answer in answers[:1000]] == [404] * 1000
    assert answers[1000].status_code == 429
    assert 1 <= int(answers[1000].headers["Retry-After"]) <= 10


def test_dry_run_tells_the_price_and_is_free(start: Callable[..., Client]) -> None:
    client = start(price_usd=0.02, latency_seconds=60)
    body = client.post(path=f"{V2}?dry_run=true").json()
    assert body["object"] == "price_quote"
    assert (body["quantity"], body["usd_micros"], body["qualifier"]) == (1, 20_000, "exact")
    assert client.post(path=f"{V2}?dry_run=true", data=b"x").status_code == 400
    report = client.report()
    assert (report["dry_runs"], report["submissions"], report["payments"]) == (2, 0, [])


# --- links ------------------------------------------------------------------------------------


def test_link_with_a_wrong_signature_is_403(client: Client) -> None:
    link = client.link()
    later = re.sub(r"exp=(\d+)", lambda found: f"exp={int(found[1]) + 60}", link)
    for forged in (later, link[:-1] + ("0" if link[-1] != "0" else "1"), link.split("&")[0]):
        assert client.http.get(forged).status_code == 403
    assert client.report()["downloads"] == 0


def test_link_expires(start: Callable[..., Client]) -> None:
    client = start(link_seconds=1.5)
    link = client.link()
    assert client.http.get(link).status_code == 200
    until(lambda: client.http.get(link).status_code == 410)


def test_link_to_nothing_is_404(client: Client) -> None:
    assert client.http.get("/api/images/ephemeral/none.png").status_code == 404


# --- the oracle -------------------------------------------------------------------------------


def test_report_names_each_payment_and_what_was_paid_twice(client: Client) -> None:
    first = client.post("shoe.png")
    client.post("copy of shoe.png")
    client.post("hat.png", picture(shade=90))
    report = client.report()
    sha256 = hashlib.sha256(picture()).hexdigest()
    assert report["payments"][0]["sha256"] == sha256
    assert report["payments"][0]["request_id"] == first.headers["x-request-id"]
    assert report["payments"][0]["file"] == "shoe.png"
    assert report["paid_twice"] == [sha256]
    assert (report["usd"], report["submissions"]) == (0.03, 3)
    assert report["answers"]["POST 200"] == 3
    assert report == client.sandbox.state.report()


def test_client_that_leaves_is_billed_all_the_same(start: Callable[..., Client]) -> None:
    client = start(latency_seconds=0.3)
    with pytest.raises(httpx.ReadTimeout):
        client.http.post(V1, files={"image": ("a.png", picture())}, timeout=0.1)
    until(lambda: client.payments() == 1)


def test_fixed_result_does_not_look_at_the_upload(start: Callable[..., Client]) -> None:
    client = start(fixed_result=True)
    link = client.post(data=b"anything").json()["data"][0]["url"]
    with Image.open(io.BytesIO(client.http.get(link).content)) as result:
        assert result.mode == "RGBA"
        assert result.getchannel("A").getextrema() == (0, 255)
    assert client.sandbox.state.payments[0].sha256 == hashlib.sha256(b"anything").hexdigest()


# --- faults -----------------------------------------------------------------------------------


def test_faults_befall_the_next_posts_in_order(client: Client) -> None:
    client.script(
        {"status": 503, "headers": {"Retry-After": "7"}, "body": {"error": "busy"}},
        {"status": 402, "body": "no money", "times": 2},
    )
    first = client.post()
    assert (first.status_code, first.headers["Retry-After"]) == (503, "7")
    assert first.json() == {"error": "busy"}
    assert first.headers["x-request-id"]
    statuses = [client.post().status_code for _ in range(3)]
    assert statuses == [402, 402, 200]
    assert client.payments() == 1


def test_fault_with_a_name_befalls_that_file_alone_until_cleared(client: Client) -> None:
    client.script({"match": "bad", "status": 500, "times": "forever"})
    assert [client.post(name).status_code for name in ("a.png", "bad.png", "very bad.png")] == [
        200,
        500,
        500,
    ]
    assert client.http.delete("/sandbox/script").status_code == 204
    assert client.post("bad.png").status_code == 200


def test_delay_comes_before_the_answer(client: Client) -> None:
    client.script({"delay": 0.3})
    began = time.monotonic()
    assert client.post().status_code == 200
    assert time.monotonic() - began >= 0.3


def test_connection_dropped_in_the_upload_is_free(client: Client) -> None:
    client.script({"close": "before_body"})
    with pytest.raises(httpx.TransportError):
        client.post(data=picture() + bytes(9_000_000))
    assert client.post().status_code == 200
    assert client.payments() == 1


@pytest.mark.parametrize("billed", [True, False])
@pytest.mark.parametrize("fault", [{"close": "after_body"}, {"status": 503}])
def test_work_may_go_on_behind_a_lost_answer(
    client: Client, fault: dict[str, Any], billed: bool
) -> None:
    client.script({**fault, "billed": billed})
    try:
        assert client.post().status_code == 503
    except httpx.RemoteProtocolError:
        assert "close" in fault
    client.post("marker.png")
    until(lambda: client.payments() == 1 + billed)


@pytest.mark.parametrize("answer", ["html", "half_json", "no_url", "huge"])
@pytest.mark.parametrize(("path", "fields"), [(V1, {}), (V2, {}), (V2, {"async": "true"})])
def test_spoiled_answers_are_billed_and_of_no_use(
    client: Client, answer: str, path: str, fields: dict[str, str]
) -> None:
    client.script({"answer": answer})
    response = client.post(path=path, fields=fields)
    assert response.status_code == 200
    until(lambda: client.payments() == 1)
    match answer:
        case "html":
            assert response.text.startswith("<!doctype html>")
        case "half_json":
            with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
                response.json()
        case "no_url":
            assert "http" not in response.text
            assert "generation_id" not in response.text
        case _:
            assert len(response.content) > 1_000_000


def test_poll_faults(client: Client) -> None:
    generation = client.post(path=V2).json()["generation_id"]
    client.script(
        {"status": 429, "headers": {"Retry-After": "2"}},
        {"close": "after_body"},
        {"answer": "half_json"},
        target="poll",
    )
    path = f"/v2/generations/{generation}"
    assert client.http.get(path).status_code == 429
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get(path)
    assert client.http.get(path).headers["content-type"] == "application/json"
    assert client.http.get(path).json()["status"] == "completed"


def opened(content: bytes) -> tuple[str | None, str]:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.format, image.mode


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("empty", None),
        ("truncated", None),
        ("garbage", None),
        ("html", None),
        ("jpeg", ("JPEG", "RGB")),
        ("no_alpha", ("PNG", "RGB")),
        ("tiny", ("PNG", "RGBA")),
    ],
)
def test_downloads_of_something_else(
    client: Client, content: str, expected: tuple[str, str] | None
) -> None:
    link = client.link()
    client.script({"content": content}, target="download")
    answer = client.http.get(link)
    assert answer.status_code == 200
    if expected is None:
        with pytest.raises(OSError, match=r"image|truncated"):
            opened(answer.content)
    else:
        assert opened(answer.content) == expected
    assert opened(client.http.get(link).content) == ("PNG", "RGBA")
    assert client.payments() == 1


def test_download_that_breaks_off_drips_or_is_refused(client: Client) -> None:
    link = client.link()
    whole = client.http.get(link).content
    client.script(
        {"close": "midway", "match": "shoe"},
        {"drip": 0.001, "match": "shoe"},
        {"status": 404, "match": "shoe"},
        {"status": 503, "match": "hat", "times": "forever"},
        target="download",
    )
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get(link)
    began = time.monotonic()
    assert client.http.get(link).content == whole
    assert time.monotonic() - began >= 0.001 * (len(whole) // 64)
    assert client.http.get(link).status_code == 404
    assert client.http.get(link).status_code == 200
    assert client.report()["downloads"] == 5


@pytest.mark.parametrize(
    ("target", "script"),
    [
        ("post", [{"clsoe": "after_body"}]),
        ("post", [{"close": "midway"}]),
        ("post", [{}]),
        ("post", [{"status": 500, "times": 0}]),
        ("download", [{"answer": "html"}]),
        ("elsewhere", []),
        ("post", {"status": 500}),
    ],
)
def test_script_that_makes_no_sense_is_refused(client: Client, target: str, script: object) -> None:
    answer = client.http.post("/sandbox/script", params={"target": target}, json=script)
    assert answer.status_code == 400
    assert client.post().status_code == 200


# --- running ----------------------------------------------------------------------------------


def test_stops_at_once_with_work_in_flight_and_leaves_nothing_behind() -> None:
    before = set(threading.enumerate())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            RunningSandbox(SandboxOptions(latency_seconds=300)) as sandbox,
            ThreadPoolExecutor(1) as pool,
        ):
            client = Client(sandbox)
            with client.http:
                lost = pool.submit(client.post)
                until(lambda: sandbox.state.in_flight == 1)
                began = time.monotonic()
                sandbox.stop()
                with pytest.raises(httpx.TransportError):
                    lost.result()
    assert time.monotonic() - began < 5
    assert sandbox.state.payments == []
    assert set(threading.enumerate()) <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(sandbox.url)


def test_can_come_back_on_the_same_port() -> None:
    with RunningSandbox() as first:
        port = int(first.url.rpartition(":")[2])
        assert httpx.get(f"{first.url}/sandbox/report").status_code == 200
    with RunningSandbox(SandboxOptions(port=port)) as second:
        assert second.url == first.url
        assert httpx.get(f"{second.url}/sandbox/report").status_code == 200


def test_taken_port_is_a_fault_of_the_set_up() -> None:
    with RunningSandbox() as first:
        port = int(first.url.rpartition(":")[2])
        with (
            pytest.raises(SetupError, match=f"port {port}"),
            RunningSandbox(SandboxOptions(port=port)),
        ):
            pass


SERVE = """
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import serve
serve(SandboxOptions(key="the-key"))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_what_it_is_and_ends_well(stop: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", first)
        assert url
        assert "stand-in" in first
        answer = httpx.post(f"{url[0]}{V1}", files={"image": picture()})
        assert answer.status_code == 401
        process.send_signal(stop)
        rest = process.stdout.read()
        assert f"BGREMOVER_API__BASE_URL={url[0]}" in rest
        assert "IDEOGRAM_API_KEY=the-key" in rest
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_package_is_light_to_import() -> None:
    heavy = (
        "import sys, bgremover.sandbox; print({'starlette', 'uvicorn', 'PIL'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"


def test_without_room_for_results_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SetupError, match=r"nowhere to keep .*\$TMPDIR"), RunningSandbox():
        pass
