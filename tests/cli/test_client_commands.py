"""Commands of a person, with a fake client: shapes, outcomes, order, acknowledgement."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from node import api
from node.cli.app import main
from node.cli.outcome import Exit
from node.client import Lost, Unreachable
from node.client.model import Change, Conversation, Quote, Reaction
from tests.cli.fakes import MINE, THEIRS, FakeClient

Feed = Callable[[str], None]
Capture = pytest.CaptureFixture[str]
SEND = ["send", "bob@b.test"]
AS_ALICE = ["--profile", "alice", "--json"]


def objects(capsys: Capture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_send_prints_one_object(client: FakeClient, capsys: Capture) -> None:
    client.reaches = "accepted"
    assert main([*SEND, "-hi there", *AS_ALICE, "--key", "k", "--reply-to", "ev0"]) == 0
    assert objects(capsys) == [
        {
            "id": "ev-k", "conversation": "conv", "state": "accepted", "key": "k", "to": "bob@b.test",
            "origin": "o", "log": "l", "seq": 3, "stamp": 5, "reason": "",
        }
    ]  # fmt: skip
    assert client.calls[1] == ("send", "bob@b.test", "-hi there", "k", "ev0")
    assert client.closed == 1


def test_a_stream_keeps_order_and_numbers_its_keys(client: FakeClient, capsys: Capture, feed: Feed) -> None:
    feed("".join(f"m{n}\n" for n in range(5000)) + "\nlast")
    assert main([*SEND, "-", *AS_ALICE, "--key", "K"]) == 0
    assert [x["key"] for x in objects(capsys)] == [f"K-{n}" for n in range(1, 5002)]
    assert [c[2] for c in client.calls if c[0] == "send"] == [*(f"m{n}" for n in range(5000)), "last"]


def test_never_transmitted_is_taken_back(client: FakeClient, capsys: Capture) -> None:
    client.fails = Unreachable("a.test did not answer")
    assert main([*SEND, "hi", *AS_ALICE, "--key", "k"]) == Exit.UNREACHABLE
    assert ("withdraw", "k") in client.calls
    (answer,) = objects(capsys)
    assert (answer["key"], answer["error"]["code"]) == ("k", "unreachable")


@pytest.mark.parametrize("error", [Lost("gone"), Unreachable("gone"), TimeoutError()])
def test_transmitted_without_an_answer_is_unknown(client: FakeClient, capsys: Capture, error: Exception) -> None:
    client.fails, client.can_withdraw = error, False
    assert main([*SEND, "hi", *AS_ALICE, "--key", "k"]) == Exit.UNKNOWN
    out, err = capsys.readouterr()
    assert json.loads(out)["key"] == "k"
    assert "Next: repeat with --key k: that is safe." in err


def test_a_state_not_reached_in_time_is_unknown_with_the_state(client: FakeClient, capsys: Capture) -> None:
    client.reaches = "sent"
    assert main([*SEND, "hi", *AS_ALICE, "--wait", "delivered"]) == Exit.UNKNOWN
    (answer,) = objects(capsys)
    assert (answer["state"], answer["error"]["code"]) == ("sent", "timeout")
    assert not [c for c in client.calls if c[0] == "withdraw"]


def test_refusals_are_typed(client: FakeClient, capsys: Capture) -> None:
    client.reaches = "failed"
    assert main([*SEND, "hi", *AS_ALICE]) == Exit.REFUSED
    assert objects(capsys)[0]["error"] == {"code": "failed", "message": "too late"}
    client.fails = api.ApiError("unknown_user", "b.test has no bob")
    assert main([*SEND, "hi", *AS_ALICE]) == Exit.REFUSED
    assert objects(capsys)[0]["error"]["code"] == "unknown_user"
    client.refuses = api.ApiError("conflict", "the key was used")
    assert main([*SEND, "hi", *AS_ALICE, "--key", "k"]) == Exit.REFUSED
    assert objects(capsys)[0]["error"]["code"] == "conflict"


def test_a_refusal_for_now_takes_back_what_never_left_and_names_what_stays(client: FakeClient, capsys: Capture) -> None:
    client.fails = api.ApiError("storage_full", "the node's disk is full; its owner must make room")
    assert main([*SEND, "hi", *AS_ALICE, "--key", "k1"]) == Exit.REFUSED
    assert ("withdraw", "k1") in client.calls
    assert objects(capsys)[0]["error"]["code"] == "storage_full"
    client.can_withdraw = False
    assert main([*SEND, "hi", *AS_ALICE, "--key", "k2"]) == Exit.UNKNOWN
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "storage_full"
    assert "the message with key k2 waits in the outbox" in err
    assert "--key k2: that is safe" in err


def test_a_bug_while_sending_leaves_nothing_behind(client: FakeClient, capsys: Capture, feed: Feed) -> None:
    client.fails = KeyError("bug")
    feed("one\ntwo\n")
    assert main([*SEND, "-", *AS_ALICE, "--key", "K"]) == Exit.BUG
    assert ("withdraw", "K-1") in client.calls
    assert "Traceback" not in "".join(capsys.readouterr())


def test_tail_prints_acknowledges_and_reads(client: FakeClient, capsys: Capture) -> None:
    client.changes = [Change("message", THEIRS), Change("lights"), Change("message", MINE)]
    assert main(["tail", *AS_ALICE, "--count", "2", "--read"]) == 0
    first, second = objects(capsys)
    assert first == {
        "kind": "message", "id": "ev1", "conversation": "conv", "from": "bob@b.test", "text": "hello",
        "stamp": 1_700_000_000_000, "device": "dev2", "origin": "", "log": "", "seq": 0, "late": False,
        "reply_to": None, "mine": False, "damaged": False, "mentions_me": False, "thread": None, "edited": 0,
        "deleted": False, "pinned": "", "replies": 0, "reactions": {},
    }  # fmt: skip
    assert second["mine"]
    assert client.acknowledged == client.changes  # the last printed one too
    assert [c for c in client.calls if c[0] == "read"] == [("read", "ev1")]
    assert ("events", ("message", "update"), False) in client.calls


def test_tail_does_not_acknowledge_what_it_did_not_print(client: FakeClient, capsys: Capture) -> None:
    client.changes = [Change("message", THEIRS)] * 3
    assert main(["tail", *AS_ALICE, "--count", "2"]) == 0
    assert len(objects(capsys)) == len(client.acknowledged) == 2


def test_tail_that_gets_too_little_says_so(client: FakeClient, capsys: Capture) -> None:
    client.changes = [Change("message", THEIRS)]
    assert main(["tail", *AS_ALICE, "--count", "2", "--timeout", "0.05"]) == Exit.UNKNOWN
    assert objects(capsys)[-1]["error"] == {"code": "timeout", "message": "1 of 2 came, then nothing for 0.05 s"}
    assert main(["tail", *AS_ALICE, "--timeout", "0.05"]) == 0  # without a count, quiet is the end


def test_tail_shows_states_requests_and_devices(client: FakeClient, capsys: Capture) -> None:
    client.changes = [
        Change("state", MINE),
        Change("request", conversation=Conversation("conv", "eve@b.test", request=True)),
        Change("device", device="dev9", detail="logged in"),
    ]
    argv = ["tail", *AS_ALICE, "--count", "3", "--kinds", "state,request,device", "--from-start"]
    assert main(argv) == 0
    state, request, device = objects(capsys)
    assert state == {"kind": "state", "id": None, "conversation": "conv", "state": "queued", "reason": "", "key": "k"}
    assert request == {"kind": "request", "conversation": "conv", "from": "eve@b.test"}
    assert device == {"kind": "device", "device": "dev9", "detail": "logged in"}
    assert ("events", ("state", "request", "device"), True) in client.calls


def test_history_state_and_why(client: FakeClient, capsys: Capture) -> None:
    assert main(["history", "bob@b.test", *AS_ALICE, "--limit", "5"]) == 0
    message, queued = objects(capsys)
    assert (queued["id"], queued["state"]) == (None, "queued")
    assert {"id", "origin", "log", "seq", "from", "device", "stamp", "kind", "text", "state"} <= set(message)
    assert main(["state", "ev1", *AS_ALICE]) == 0
    to = [{"address": "bob@b.test", "state": "failed", "at": 7, "reason": "declined"}]
    assert objects(capsys) == [{"id": "ev1", "to": to}]
    assert main(["why", "ev1", "--profile", "alice"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("waits for b.test\n")
    assert "accepted  \\u001b[31mred" in out


def test_a_profile_is_shown_and_changed(client: FakeClient, capsys: Capture) -> None:
    assert main(["profile", *AS_ALICE]) == 0
    assert main(["profile", "--name", "Alice L.", *AS_ALICE]) == 0
    assert main(["profile", "--name", "", *AS_ALICE]) == 0
    assert main(["profile", "--requests", "everyone", "--profile", "alice"]) == 0
    assert main(["profile", "--presence", "nobody", "--profile", "alice"]) == 0
    assert main(["profile", "--requests", "nobody", "--profile", "alice"]) == Exit.USAGE
    assert [c[1:] for c in client.calls if c[0] == "set_profile"] == [
        ("Alice L.", None, None),
        ("", None, None),
        (None, "everyone", None),
        (None, None, "nobody"),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["display_name"] for line in lines[:3]] == ["Alice", "Alice L.", ""]
    assert lines[3:5] == ["address: alice@a.test", "display_name: "]


def test_block_unblock_and_the_list(client: FakeClient, capsys: Capture) -> None:
    assert main(["block", "bob@b.test", *AS_ALICE]) == 0
    assert main(["unblock", "c.test", *AS_ALICE]) == 0
    assert objects(capsys) == [{"ok": True}] * 2
    assert main(["block", "Bob@b.test", *AS_ALICE]) == Exit.USAGE
    assert main(["block", "bob@b.test"]) == Exit.USAGE
    assert main(["block", "bob@b.test", "-c", "node.yaml", *AS_ALICE]) == Exit.USAGE
    assert [call for call in client.calls if call[0] != "open"] == [("block", "bob@b.test"), ("unblock", "c.test")]
    capsys.readouterr()
    assert main(["blocks", *AS_ALICE]) == 0
    assert objects(capsys) == [{"who": "bob@b.test", "since": 7}, {"who": "c.test", "since": 8}]


def test_typing_is_said_once(client: FakeClient, capsys: Capture) -> None:
    assert main(["typing", "bob@b.test", *AS_ALICE]) == 0
    assert main(["typing", "conv", "--off", *AS_ALICE]) == 0
    assert objects(capsys) == [{"ok": True}] * 2
    assert client.calls[1::2] == [("typing", "bob@b.test", True), ("typing", "conv", False)]


def test_history_without_the_node_shows_what_is_here_and_fails(client: FakeClient, capsys: Capture) -> None:
    client.refuses = Unreachable("a.test does not answer")
    assert main(["history", "bob@b.test", "--profile", "alice"]) == Exit.UNREACHABLE
    out, err = capsys.readouterr()
    assert "alice@a.test: hi  [queued]" in out
    assert "a.test does not answer" in err


def test_login_checks_that_name_and_link_belong_together(
    client: FakeClient, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    link = "roost://" + "a" * 51 + "q@a.test"
    argv = ["--node", link, "--password-stdin", "--profile", "p", "--device-name", "D", "--json"]
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert main(["login", "alice@b.test", *argv]) == Exit.USAGE
    assert main(["login", "alice@a.test", *argv]) == 0
    assert client.calls == [("login", "p", "alice@a.test", link, "secret", "D")]
    assert objects(capsys)[-1] == {"address": "alice@a.test", "device": "dev", "profile": "p"}


def test_pipe_answers_every_line(client: FakeClient, capsys: Capture, feed: Feed) -> None:
    client.changes = [Change("message", THEIRS)]
    lines = [
        {"op": "send", "to": "bob@b.test", "text": "one", "key": "k1"},
        {"op": "send", "to": "bob@b.test", "text": "two"},
        {"op": "history", "conversation": "bob@b.test", "limit": 1, "key": "h"},
        {"op": "state", "id": "ev1"},
        {"op": "read", "conversation": "conv"},
        {"op": "accept", "conversation": "conv"},
        {"op": "send", "to": "bob@b.test"},
        {"op": "dance"},
    ]
    feed("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    assert main(["pipe", "--profile", "alice"]) == 0
    answers = objects(capsys)
    results = {x["op"]: x for x in answers if x["kind"] == "result"}
    assert set(results) == {"send", "history", "state", "read", "accept"}
    assert results["history"]["key"] == "h"
    assert [x["code"] for x in answers if x["kind"] == "error"] == ["bad_request"] * 3
    assert [x["id"] for x in answers if x["kind"] == "message"] == ["ev1"]
    assert ("read", "ev1") in client.calls
    assert [c[2] for c in client.calls if c[0] == "send"] == ["one", "two"]


def test_pipe_marks_what_they_wrote_and_not_what_i_did(client: FakeClient, capsys: Capture, feed: Feed) -> None:
    client.changes = [Change("message", MINE)]
    feed('{"op":"read","conversation":"conv"}\n')
    assert main(["pipe", "--profile", "alice"]) == 0
    assert [call for call in client.calls if call[0] == "read"] == [("read", "ev1")]


def test_pipe_turns_a_lost_answer_into_an_error_with_its_key(client: FakeClient, capsys: Capture, feed: Feed) -> None:
    client.fails, client.can_withdraw = Lost("gone"), False
    feed('{"op":"send","to":"bob@b.test","text":"x","key":"k"}\n')
    assert main(["pipe", "--profile", "alice"]) == 0
    (answer,) = objects(capsys)
    assert (answer["kind"], answer["op"], answer["key"]) == ("error", "send", "k")
    assert answer["code"] == "connection_lost"


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (["edit", "ev1", "-better"], ("edit", "ev1", "-better")),
        (["delete", "ev1"], ("delete", "ev1")),
        (["react", "ev1", "+1"], ("react", "ev1", "+1")),
        (["react", "ev1", "+1", "--undo"], ("unreact", "ev1", "+1")),
        (["pin", "ev1"], ("pin", "ev1")),
        (["unpin", "ev1"], ("unpin", "ev1")),
    ],
)
def test_what_is_done_to_a_message_has_an_outcome(
    client: FakeClient, capsys: Capture, command: list[str], call: tuple[str, ...]
) -> None:
    client.reaches = "accepted"
    assert main([*command, *AS_ALICE, "--key", "k"]) == 0
    (answer,) = objects(capsys)
    assert call in client.calls
    assert (answer["target"], answer["id"], answer["state"], answer["key"]) == ("ev1", "ev-k", "accepted", "k")
    client.refuses = api.ApiError("not_yours", "only who wrote a message may edit it")
    assert main([*command, *AS_ALICE]) == Exit.REFUSED
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "not_yours"
    assert "Next: only its sender can." in err
    client.refuses, client.fails = None, Unreachable("a.test did not answer")
    assert main([*command, *AS_ALICE, "--key", "k"]) == Exit.UNREACHABLE
    assert ("withdraw", "k") in client.calls


def test_tail_shows_what_was_done_to_a_message(client: FakeClient, capsys: Capture) -> None:
    act = msgspec.structs.replace(THEIRS, id="ev2", key="ev2", kind="edit", text="hello!", reply_to="ev1")
    like = msgspec.structs.replace(act, id="ev3", kind="reaction", text="+1", undo=True)
    now = msgspec.structs.replace(THEIRS, text="hello!", edited=7, reactions=(Reaction("<3", ("eve@c.test",)),))
    gone = msgspec.structs.replace(THEIRS, text="", deleted=True)
    answer = msgspec.structs.replace(THEIRS, id="ev4", quote=Quote("eve@c.test", "x" * 99), pinned="bob@b.test")
    client.changes = [Change("update", now, act=act), Change("update", now, act=like), Change("message", gone)]
    assert main(["tail", *AS_ALICE, "--count", "3"]) == 0
    first, second, third = objects(capsys)
    assert (first["kind"], first["what"], first["by"], first["id"], first["text"], first["edited"]) == (
        "update", "edit", "bob@b.test", "ev1", "hello!", 7,
    )  # fmt: skip
    assert (first["reactions"], second["emoji"], second["undo"]) == ({"<3": ["eve@c.test"]}, "+1", True)
    assert (third["deleted"], third["text"]) == (True, "")
    client.changes.append(Change("message", answer))
    assert main(["tail", "--profile", "alice", "--count", "4"]) == 0
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "* bob@b.test edited: hello!",
        "* bob@b.test took back +1 on: hello!",
        "bob@b.test: (deleted)",
        f"bob@b.test: (to eve@c.test: {'x' * 37}...) hello  (pinned by bob@b.test)",
    ]
