"""R1, R2 black box: a node is backed up, goes on, loses its disk, is restored, and gets back what its peer has."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.box import Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    try:
        box.pair()
        yield box
    finally:
        box.close()


def say(box: Box, profile: str, to: str, text: str) -> str:
    (sent,) = box.objects("send", to, text, "--profile", profile, "--wait", "delivered", "--timeout", 40)
    assert sent["state"] == "delivered", sent
    return str(sent["id"])


def talk(box: Box, *words: str) -> None:
    """Alice says them and Bob answers; both are fetched, so that they are delivered."""
    for word in words:
        box.good("send", "bob@b.test", word, "--profile", "alice", "--wait", "sent", "--timeout", 40)
        assert [m["text"] for m in box.tail("bob", 1, "--read")] == [word]
        box.good("send", "alice@a.test", f"re {word}", "--profile", "bob", "--wait", "sent", "--timeout", 40)
        assert [m["text"] for m in box.tail("alice", 1, "--read")] == [f"re {word}"]


def accepted_and_healed(box: Box) -> None:
    """The restored a.test is held and served: accept it, and all that Bob has is Alice's again."""
    refused = box.run("send", "bob@b.test", "no", "--profile", "alice", "--timeout", 10, "--json")
    assert refused.returncode == 4, refused.stdout
    assert "roost restore --accept" in refused.stdout + refused.stderr
    assert box.objects("status", "-c", box.conf("a.test"))[0]["held"]
    box.good("restore", "--accept", "-c", box.conf("a.test"))
    assert box.line("a.test").startswith("ready a.test ")
    assert box.run("send", "bob@b.test", "no", "--profile", "alice", "--timeout", 10).returncode == 4  # a dead token
    box.login("alice", "a.test", "alice-again")
    got = [m["text"] for m in box.tail("alice-again", 6)]
    assert sorted(got) == ["one", "re one", "re three", "re two", "three", "two"]
    theirs = [(m["id"], m["text"]) for m in box.objects("history", "alice@a.test", "--profile", "bob")]
    assert [text for _, text in theirs] == ["one", "re one", "two", "re two", "three", "re three"]
    mine = box.objects("history", "bob@b.test", "--profile", "alice-again")
    assert [(m["id"], m["text"]) for m in mine] == theirs
    (state,) = box.objects("state", theirs[4][0], "--profile", "alice-again")
    assert state["to"][0]["state"] in ("delivered", "read")
    box.good("send", "bob@b.test", "after", "--profile", "alice-again", "--wait", "sent", "--timeout", 40)
    assert [m["text"] for m in box.tail("bob", 1)] == ["after"]
    assert not box.objects("status", "-c", box.conf("a.test"))[0]["held"]


@pytest.mark.timeout(240)
def test_r1_a_backup_is_restored_into_a_new_folder(box: Box) -> None:
    talk(box, "one")
    backup, old = box.folder / "a.backup", box.conf("a.test").parent
    assert "keep it secret" in box.good("backup", backup, "-c", box.conf("a.test"))
    talk(box, "two", "three")
    box.stop("a.test", signal.SIGKILL)
    old.rename(box.folder / "broken disk")
    assert box.run("restore", backup, box.folder / "broken disk").returncode == 4
    box.good("restore", backup, old)
    assert box.serve("a.test").startswith("held a.test it was restored from a backup made at ")
    accepted_and_healed(box)


@pytest.mark.timeout(240)
def test_r1_an_old_store_behind_its_witness(box: Box) -> None:
    talk(box, "one")
    data = box.conf("a.test").parent / "data"
    box.stop("a.test")
    content = (data / "roost.db").read_bytes()
    box.serve("a.test")
    talk(box, "two", "three")
    box.stop("a.test")
    (data / "roost.db").write_bytes(content)
    assert box.serve("a.test").startswith("held a.test the witness file knows of start ")
    accepted_and_healed(box)


@pytest.mark.timeout(240)
def test_r1_a_whole_folder_was_set_back_and_only_the_peer_knows(box: Box) -> None:
    talk(box, "one")
    folder, copy = box.conf("a.test").parent, box.folder / "yesterday"
    box.stop("a.test")
    shutil.copytree(folder, copy)
    box.serve("a.test")
    talk(box, "two", "three")
    box.stop("a.test")
    shutil.rmtree(folder)
    copy.rename(folder)
    assert box.serve("a.test").startswith("ready a.test ")
    assert "a peer has events of this node" in box.line("a.test")
    accepted_and_healed(box)


@pytest.mark.timeout(120)
def test_r2_a_copied_folder_is_held_beside_the_original(box: Box) -> None:
    talk(box, "one")
    shutil.copytree(box.conf("a.test").parent, box.conf("copy").parent, ignore=shutil.ignore_patterns("*.sock"))
    assert box.run("serve", "-c", box.conf("a.test")).returncode == 6  # twice in one folder
    line = box.serve("copy", "a.test", "--set", "listen=127.0.0.1:0")
    assert line.startswith("held a.test this folder is a copy of ")
    talk(box, "two")  # the original goes on
