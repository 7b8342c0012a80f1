"""What a sign-in opened ends with it."""

import asyncio

from ringfence_server.control.standing import Standing


def _run(story):
    async def whole():
        async with asyncio.timeout(30):
            await story()

    asyncio.run(whole())


def test_what_a_credential_opened_ends_when_it_is_no_longer_good():
    async def story():
        good = {"token:a", "token:b"}
        standing = Standing(lambda names: good & set(names))
        watch = asyncio.create_task(standing.watch())
        with standing.held("token:a") as mine, standing.held("token:a") as mine_too, standing.held("token:b") as others:
            good.remove("token:a")
            standing.look_now()
            await mine.woken.wait()
            await mine_too.woken.wait()
            assert not mine.good
            assert not mine_too.good
            assert others.good
            assert not others.woken.is_set()
        watch.cancel()

    _run(story)


def test_nobody_has_to_say_that_a_credential_was_withdrawn():
    """Another process may have done it, with a command."""

    async def story():
        standing = Standing(lambda _names: set())
        watch = asyncio.create_task(standing.watch())
        with standing.held("token:a") as held:
            await held.woken.wait()
            assert not held.good
        watch.cancel()

    _run(story)


def test_a_store_that_cannot_be_asked_ends_what_is_open():
    async def story():
        def broken(_names):
            raise OSError("no database")

        standing = Standing(broken)
        watch = asyncio.create_task(standing.watch())
        with standing.held("session:a") as held:
            await held.woken.wait()
            assert not held.good
        watch.cancel()

    _run(story)


def test_what_was_closed_is_not_asked_about():
    standing = Standing(set)
    with standing.held("session:a"):
        assert set(standing._held) == {"session:a"}
    assert not standing._held
