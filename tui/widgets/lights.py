"""The top bar: whose screen this is and the two connections a message travels."""

from rich.cells import cell_len, set_cell_size
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from node.client.model import Lights
from tui import model, text


class LightsBar(Widget):
    """One row: my address, me to my node, my node to theirs."""

    lights: reactive[Lights] = reactive(Lights)
    peer: reactive[str | None] = reactive(None)  # the other person's node; none for nobody or my own node
    mine: reactive[str] = reactive("")
    now_ms: reactive[int] = reactive(0, repaint=False)  # ages change seldom; only a new text is drawn
    told: reactive[tuple[str, str]] = reactive(("", ""))  # with names, and short

    def compute_told(self) -> tuple[str, str]:
        lights, now = self.lights, self.now_ms
        titles = [("me ↔ my node", "me")]
        states: list[tuple[str, int]] = [(lights.me, lights.me_since)]
        if self.peer:
            titles.append((f"my node ↔ {text.line(self.peer, 40)}", "theirs"))
            # Without a word from my node about that link nothing is claimed about it.
            told = lights.peers.get(self.peer) if lights.me == "up" else None
            states.append(told or ("not known", 0))
        both = list(zip(titles, states, strict=True))
        long = "   ".join(model.light(title, *state, now) for (title, _), state in both)
        short = "   ".join(model.light(title, *state, now) for (_, title), state in both)
        return long, short

    def render(self) -> RenderResult:
        right, short = self.told
        if cell_len(right) > self.size.width:
            right = short
        left = text.name(self.mine) if self.mine else ""
        room = self.size.width - cell_len(right)
        if room < cell_len(left) + 2:  # on a narrow screen the connection matters more than one's own name
            left = ""
        return Content(set_cell_size(left, max(0, room)) + right)
