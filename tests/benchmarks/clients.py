"""Bare clients of the API: the POST and the fetch of the result, nothing else.

    python -m tests.benchmarks.clients {httpx,requests} URL LISTING WORKERS

LISTING is a file that names the images. Tells on stderr how many seconds the work took, without
the start of the interpreter and the imports, of which there are few. `CURL` is what `xargs -P`
runs.
"""

import asyncio
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KEY = "benchmark"
PATH = "/v1/remove-background"
CURL = f"""
link=$(curl -sf -H 'Api-Key: {KEY}' -F "image=@$2;type=image/jpeg" "$1{PATH}" |
    sed -n 's/.*"url":"\\([^"]*\\)".*/\\1/p')
exec curl -sf -o /dev/null "$link"
"""


def through_httpx(url: str, paths: list[Path], workers: int) -> None:
    """Send and fetch with one `httpx.AsyncClient`."""
    asyncio.run(_through_httpx(url, paths, workers))


async def _through_httpx(url: str, paths: list[Path], workers: int) -> None:
    import httpx  # noqa: PLC0415 - no client pays for the import of another's library

    waiting = iter(paths)
    # Shorter than the server keeps a connection that nobody uses: neither meets the other's end.
    limits = httpx.Limits(max_connections=2 * workers, keepalive_expiry=2.0)
    async with httpx.AsyncClient(headers={"Api-Key": KEY}, limits=limits, timeout=60) as client:

        async def work() -> None:
            for path in waiting:
                files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
                answer = await client.post(url + PATH, files=files)
                link = answer.raise_for_status().json()["data"][0]["url"]
                (await client.get(link)).raise_for_status()

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())


def through_requests(url: str, paths: list[Path], workers: int) -> None:
    """Send and fetch with a pool of threads, each with a `requests.Session`."""
    requests = importlib.import_module("requests")  # it may be missing
    waiting = iter(paths)

    def work(_: int) -> None:
        with requests.Session() as session:
            session.headers["Api-Key"] = KEY
            for path in waiting:
                files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
                answer = session.post(url + PATH, files=files, timeout=60)
                answer.raise_for_status()
                link = answer.json()["data"][0]["url"]
                session.get(link, timeout=60).raise_for_status()

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, range(workers)):
            pass


def lone_call(url: str, path: Path, calls: int = 7) -> float:
    """Return how many seconds a call takes while there is no other; the median of some."""
    import httpx  # noqa: PLC0415 - as above

    files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
    with httpx.Client(headers={"Api-Key": KEY}, timeout=60) as client:
        answers = [client.post(url + PATH, files=files) for _ in range(calls)]
    return statistics.median(answer.elapsed.total_seconds() for answer in answers)


CLIENTS: dict[str, Callable[[str, list[Path], int], None]] = {
    "httpx": through_httpx,
    "requests": through_requests,
}


def main() -> None:
    """Do the work and tell how long it took."""
    client, url, listing, workers = sys.argv[1:]
    paths = [Path(line) for line in Path(listing).read_text().splitlines()]
    importlib.import_module(client)
    began = time.monotonic()
    CLIENTS[client](url, paths, int(workers))
    sys.stderr.write(f"{time.monotonic() - began}\n")


if __name__ == "__main__":
    main()
