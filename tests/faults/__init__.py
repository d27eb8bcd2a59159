"""Real nodes as processes under faults: killed at the Nth system call, on full and failing disks, under wrong
clocks, on bad lines.

Case names are those of the test plan that the file names give: crashes (C), disks and machine (D), lines (N). There is
no media yet, so a kill during an upload (C7) has nothing to kill.
"""
