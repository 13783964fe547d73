"""A run folder in an object store: who may write to it, what goes up, what comes back.

- `remote_run.py`: what training talks to; takes the lease, restores, hands over what was saved
- `lease.py`: one run at a time, by an object that is renewed and may expire
- `restore.py`: the store's checkpoints and records to an empty disk, or to one that is behind
- `uploader.py`: a process beside rank 0 that renews the lease and uploads

The store holds the same names as a run folder, and for each whole checkpoint a pointer
(`tessera.fetch` says what is in it), written last. The local folder is then a cache.

Composer's uploader is not used. It writes `latest` pointers and checkpoints in an order that may
leave a pointer to an object that a retry is still replacing, raises in the training loop when an
upload fails for good, keeps no lease, and prunes nothing that an earlier process uploaded; and its
workers are threads and forks of the training process, beside a loader that forks too.
"""
