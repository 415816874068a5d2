import asyncio

import pytest

from prmkit.engines.remote.endpoints import EndpointPool
from prmkit.errors import EngineLostError


def pool(n=2, concurrency=2, dead_after=2, patience=0.05):
    return EndpointPool([f"http://{i}" for i in range(n)], concurrency, dead_after, patience)


def test_the_least_busy_takes_the_next_request():
    async def main():
        ours = pool()
        a, b = ours.endpoints
        assert [await ours.acquire() for _ in range(3)] == [a, b, a]
        ours.release(b)
        assert await ours.acquire() is b
        assert [a.in_flight, b.in_flight] == [2, 1]
        assert await ours.acquire(avoid=b) is b, "the other is full, and waiting would be worse"

    asyncio.run(main())


def test_who_failed_is_avoided_while_another_lives():
    async def main():
        ours = pool(concurrency=8)
        a, b = ours.endpoints
        b.in_flight = 5
        assert await ours.acquire(avoid=a) is b
        ours.failed(a, "x")
        assert a.alive
        ours.worked(a)
        ours.failed(a, "x")
        assert a.alive, "an answer between two failures starts the count again"
        ours.failed(a, "y")
        assert not a.alive
        assert ours.describe_failures() == "http://0: y"
        assert [await ours.acquire() for _ in range(2)] == [b, b]
        ours.bring_back(a)
        assert await ours.acquire() is a

    asyncio.run(main())


def test_waiting_is_in_order_and_survives_those_who_leave():
    async def main():
        ours = pool(n=1, concurrency=1)
        (only,) = ours.endpoints
        await ours.acquire()
        order = []

        async def one(name):
            await ours.acquire()
            order.append(name)

        tasks = [asyncio.create_task(one(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        ours.release(only)  # wakes a
        tasks[0].cancel()  # who leaves after it was woken, before it ran
        for _ in range(4):
            await asyncio.sleep(0)
        assert order == ["c"]
        ours.release(only)
        await tasks[3]
        assert order == ["c", "d"]
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


def test_when_all_are_lost_everybody_is_told_after_a_while():
    async def main():
        ours = pool(n=1, concurrency=1, dead_after=1)
        await ours.acquire()
        waiting = [asyncio.create_task(ours.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        ours.failed(ours.endpoints[0], "gone")
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(result)[:41] for result in results] == ["no endpoint has answered for 0.05 s: http"] * 3
        assert all("gone" in str(result) for result in results)
        with pytest.raises(EngineLostError):
            await ours.acquire()

    asyncio.run(main())
