"""Cleaner text out of raw text, in stages that executors share out.

    documents -> filters -> without evaluation text -> keys         one task a part of the input
    keys -> matches                                                 one task a range of keys
    matches -> clusters                                             one task
    documents -> without copies [-> joined by a column] -> text     one task a part

Rules, shingles and hashes are datatrove's. Its runs of MinHash are not used: which copy is kept
depends there on the sizes of clusters, the order of sources says nothing, a killed task leaves half
a file, and the matching of 14 bands is a loop in Python. Here the first copy is kept, in the order
of validation splits, then sources, then files.
"""
