"""What an enemy does, each test named by its case: a1, a2 (test_matrix), a5, a7 (test_access); b3, b17 (test_frames);
b4 to b8, b11 (test_forgery); b9 (test_names); b13, b14, b16 (test_floods); b15 (test_slow); b19 (test_addresses).
b1 and b2 are in tests/fuzz, b20 in tests/cli, rows damaged in the store (b10) with the quarantine.

Not tested, since there is nothing yet that it could break: b12 (media: names, bombs, files that look like protocol) and
b18 (JSON Web Tokens).

The kit (kit.py) drives a link or a client by hand, frame by frame. matrix.txt is the table of who may do what.
"""
