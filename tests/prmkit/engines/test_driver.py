import asyncio

import pytest

from prmkit.engines.driver import Driver


class Doubler:
    """Doubles numbers, `batch` at a time; fails on 13."""

    def __init__(self, batch=3):
        self.batch = batch
        self.waiting = []
        self.batches = []
        self.resets = 0

    def advance(self, jobs):
        self.waiting += jobs
        taken, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
        self.batches.append([job.payload for job in taken])
        for job in taken:
            if job.payload == 13:
                raise ValueError("unlucky")
            if not job.future.done():
                job.future.set_result(2 * job.payload)
        return bool(self.waiting)

    def is_full(self, jobs):
        return len(jobs) >= 100

    def reset(self):
        self.waiting = []
        self.resets += 1


def test_gathers_what_waits_and_keeps_order():
    worker = Doubler()

    async def main():
        driver = Driver(worker)
        return await asyncio.gather(*(driver.submit(n) for n in range(7)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10, 12]
    assert worker.batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_jobs_submitted_while_it_works_join():
    worker = Doubler(batch=2)

    async def chain(driver, n):
        return await driver.submit(await driver.submit(n))

    async def main():
        driver = Driver(worker)
        return await asyncio.gather(*(chain(driver, n) for n in (1, 2, 3)))

    assert asyncio.run(main()) == [4, 8, 12]
    assert worker.batches == [[1, 2], [3, 2], [4, 6]]


def test_patience_makes_larger_batches():
    async def late(driver, passes, n):
        for _ in range(passes):
            await asyncio.sleep(0)
        return await driver.submit(n)

    async def main(patience):
        worker = Doubler(batch=10)
        driver = Driver(worker, patience=patience)
        await asyncio.gather(*(late(driver, 2 * n, n) for n in range(4)))
        return worker.batches

    assert asyncio.run(main(1)) == [[0], [1], [2], [3]]
    assert asyncio.run(main(3)) == [[0, 1, 2, 3]]


def test_a_failure_reaches_every_caller_and_the_next_call_starts_afresh():
    worker = Doubler(batch=2)

    async def main():
        driver = Driver(worker)
        results = await asyncio.gather(*(driver.submit(n) for n in (1, 2, 13, 4, 5)), return_exceptions=True)
        assert not driver.busy
        return results, await driver.submit(6)

    results, after = asyncio.run(main())
    assert results[:2] == [2, 4]
    assert [type(result) for result in results[2:]] == [ValueError] * 3
    assert after == 12
    assert worker.resets == 1


def test_cancelled_callers_and_loops_that_ended_leave_nothing_behind():
    worker = Doubler(batch=1)
    driver = Driver(worker)

    async def leave():
        tasks = [asyncio.ensure_future(driver.submit(n)) for n in range(5)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert await tasks[0] == 0
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        # The loop ends here with three callers still waiting.

    asyncio.run(leave())
    assert asyncio.run(driver.submit(21)) == 42
    assert worker.waiting == []


def test_an_idle_driver_has_no_task():
    async def main():
        driver = Driver(Doubler())
        await driver.submit(1)
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
