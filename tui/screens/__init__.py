"""Screens that lie over the chat for a moment: the switcher and the help."""
