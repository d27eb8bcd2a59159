"""A whole node inside a program: two users, one message, and what arrives.

python docs/examples/embed.py [FOLDER]
"""

import asyncio
import sys
import tempfile

from node import Config, Node


async def main(folder: str) -> None:
    async with Node.open(Config(name="lab.example", data_dir=folder)) as node:
        for name in ("alice", "bob"):
            await node.create_user(name)
        alice = await node.client("alice", device="main")
        bob = await node.client("bob", device="main")

        sent = await alice.send("bob@lab.example", "hello from inside an app")
        async for change in bob.events(("message",)):
            message = change.message
            if message is not None:
                print(f"{message.sender}: {message.text}")
                await bob.mark_read(message)
            break

        done = await alice.wait(sent.key, "read", 10)
        print(f"bob has {done.state} it")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            asyncio.run(main(scratch))
