"""The command line: what scripts rely on, and the only place that exits the process.

`app` parses and reports, `outcome` maps every error to an exit code, `output` and `shapes` print, `session`
opens profiles and configs. Commands by subject: `node_commands` (a node), `account_commands` (devices,
requests, one message's way), `send`, `tail`, `pipe` (messages), `demo` and its `script` (two nodes on one
machine, and the terminal client).
"""
