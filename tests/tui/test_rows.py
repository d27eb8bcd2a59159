"""Heights and places of many messages."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from node.client.model import Message, Quote, Reaction
from tui.rows import Heights, Rows, local_time


def messages(count: int, text: str = "hello") -> list[Message]:
    return [
        Message(f"{n}", f"{n}", "c", "bob@b.test" if n % 3 else "alice@a.test", "d", text, n * 1000, n % 3 == 0)
        for n in range(1, count + 1)
    ]


@given(st.lists(st.integers(1, 9), min_size=1), st.lists(st.integers(1, 9)), st.data())
def test_heights_are_sums(values: list[int], appended: list[int], data: st.DataObject) -> None:
    heights = Heights(values)
    for value in appended:
        heights.append(value)
    values = values + appended
    at = data.draw(st.integers(0, len(values) - 1))
    heights.add(at, 5)
    values[at] += 5
    assert [heights.before(i) for i in range(len(values) + 1)] == [sum(values[:i]) for i in range(len(values) + 1)]
    lines = [i for i, value in enumerate(values) for _ in range(value)]
    assert [heights.find(line) for line in range(len(lines))] == lines
    assert heights.find(len(lines) + 5) == len(values) - 1


def test_a_queued_message_keeps_its_place() -> None:
    rows = Rows()
    for message in messages(3):
        rows.put(message)
    rows.put(Message(None, "own", "c", "alice@a.test", "d", "mine", 4000, True, "queued"))
    rows.put(messages(5)[-1])
    rows.put(Message("e", "own", "c", "alice@a.test", "d", "mine", 9000, True, "accepted"))
    assert [m.key for m in rows.messages] == ["1", "2", "3", "own", "5"]
    assert rows.messages[3].state == "accepted"


def test_a_late_message_goes_where_it_belongs() -> None:
    rows = Rows()
    rows.replace(m for m in messages(5) if m.key != "3")
    assert rows.put(messages(5)[2]) == 2
    assert [m.key for m in rows.messages] == ["1", "2", "3", "4", "5"]


def test_older_pages_drop_what_is_known() -> None:
    rows = Rows()
    all_of_them = messages(10)
    rows.replace(all_of_them[5:])
    assert rows.prepend(all_of_them[:7]) == 5
    assert [m.key for m in rows.messages] == [m.key for m in all_of_them]


@given(st.integers(1, 60), st.text(max_size=200), st.integers(4, 120))
def test_measuring_agrees_with_what_is_drawn(count: int, text: str, width: int) -> None:
    rows = Rows(width)
    talk = messages(count, text)
    done = {"quote": Quote("bob@b.test", text), "reactions": (Reaction("+1", ("a@a",)),), "edited": 1}
    talk[0] = msgspec.structs.replace(talk[0], **done, pinned="bob@b.test")
    talk[-1] = msgspec.structs.replace(talk[-1], deleted=True, text="")
    rows.replace(talk, unread="2")
    rows.measure_around(count // 2, above=10**6, below=10**6)
    around = [len(rows.quote(i)) + len(rows.done(i)) + len(rows.note(i)) for i in range(count)]
    drawn = [rows.trim(i).height + len(rows.body(i)) + around[i] for i in range(count)]
    assert rows.total == sum(drawn)
    assert rows.locate(rows.total - 1)[0] == count - 1


def test_a_nonsense_stamp_does_not_end_the_program() -> None:
    assert local_time(10**30) == local_time(0)
    assert local_time(-(10**30)) == local_time(0)
