"""What a sign-in opened ends with it."""

import asyncio
from contextlib import suppress

import pytest

from ringfence_server.control.standing import Standing, Withdrawn


async def _numbers():
    number = 0
    while True:
        number += 1
        yield number
        await asyncio.sleep(0.001)


async def _silence():
    await asyncio.Event().wait()
    yield


def _run(story):
    async def whole():
        async with asyncio.timeout(30):
            await story()

    asyncio.run(whole())


def test_a_stream_ends_when_its_credential_is_no_longer_good():
    async def story():
        good = {"token:a", "token:b"}
        standing = Standing(lambda names: good & set(names))
        watch = asyncio.create_task(standing.watch())
        heard = {"token:a": asyncio.Event(), "token:b": asyncio.Event()}

        async def read(name, source):
            with suppress(Withdrawn):
                async for _ in standing.while_good(name, source):
                    heard[name].set()

        mine = asyncio.create_task(read("token:a", _numbers()))
        silent = asyncio.create_task(read("token:a", _silence()))
        others = asyncio.create_task(read("token:b", _numbers()))
        for event in heard.values():
            await event.wait()
        good.remove("token:a")
        standing.look_now()
        await mine
        await silent
        heard["token:b"].clear()
        await heard["token:b"].wait()
        assert not others.done()
        others.cancel()
        watch.cancel()

    _run(story)


def test_a_store_that_cannot_be_asked_ends_what_is_open():
    async def story():
        def broken(_names):
            raise OSError("no database")

        standing = Standing(broken)
        watch = asyncio.create_task(standing.watch())
        with pytest.raises(Withdrawn):
            async for _ in standing.while_good("session:a", _numbers()):
                pass
        watch.cancel()

    _run(story)


def test_a_stream_that_comes_to_its_end_ends():
    async def story():
        async def three():
            for number in range(3):
                yield number

        standing = Standing(set)
        assert [one async for one in standing.while_good("session:a", three())] == [0, 1, 2]
        assert not standing._open
        assert not standing._over

    _run(story)
