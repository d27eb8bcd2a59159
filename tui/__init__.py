"""What only one person sees: the terminal client.

- `run`      the way in: `run_chat`, `run_demo`
- `app`      the whole screen for one person; `demo` two people side by side
- `pane`     one person's chat: which conversation is open; `talk` is the open one, `room` what it remembers
- `bridge`   the only module that calls the SDK, and the protocol it calls
- `actions`  every key, in one table
- `model`    decisions without a screen: order, states in words, finding; `rows` the lines of a conversation
- `text`     the gate for everything other people wrote
- `terminal` what old terminals send for Alt keys
- `widgets`, `screens`
"""
