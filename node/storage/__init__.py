"""The store: the only SQL in the project.

schema (tables) · batch (one transaction: load, decide, write) · runner (SQLite thread, asyncpg, in-line) · writer
(groups what arrives while a commit runs) · one module of reads per subject: mailbox, conversations, outbound,
people. Reads are plain functions of a connection and return rows; nothing here decides.
"""
