"""The node's decisions, pure: what a command needs to know, what it changes, what it answers.

rows (what is stored) · view (a batch's working set) · context (who we are, and the clock) · authorize (the one
door) · log (append, fan out) · send, receive, progress (the message's way) · accounts, peers (administration) ·
render (rows to client items) · session (one client's connection).
"""
