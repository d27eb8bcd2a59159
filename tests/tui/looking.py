"""Waiting and reading the screen, for the tests of the terminal client."""

from collections.abc import Callable

from textual.app import App
from textual.pilot import Pilot

ROUNDS_MAX = 200


async def until(pilot: Pilot[int], condition: Callable[[], object], what: str = "") -> None:
    """Let the app work until something holds; each round handles what is queued, none guesses a time."""
    for _ in range(ROUNDS_MAX):
        if condition():
            return
        await pilot.pause()
    raise AssertionError(f"never came true: {what or condition}\n{screen(pilot.app)}")


def screen(app: App[int]) -> str:
    """What a person sees, as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in lines)
