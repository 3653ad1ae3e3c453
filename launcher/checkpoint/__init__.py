"""How the state of a run is saved and found again.

A checkpoint is a folder that is published whole by one rename, whose every byte is under a
checksum, and from which nothing is unpickled beyond plain tensors and their index:

    checkpoints/step-00001000/
        manifest.json         run, step, fingerprints; size and xxh3-128 of every file below
        config.json           the resolved config
        train_state.json      counters and the schedule's memory
        state/__0_0.distcp    rank 0's tensors: model.*, optimizer.*, rng.rank0.*
        state/.metadata       which tensor lies where (torch.distributed.checkpoint's index)

Beside it may stand `step-….corrupt` (found unfit, kept for you to look at), and, only while
something is under way or was killed, `.tmp-…` (being written), `.trash-…` (being deleted),
`.replaced-…` (being replaced).

What lives here: the stores, one module per kind. What may not: which step is due
(training.observers) and what a resumed run may change (training.runner).

Adding a store: a module `launcher/checkpoint/<kind>.py` with one CheckpointOption, whose `build`
gives a CheckpointStore, and `conf/checkpoint/<kind>.yaml`.
"""
