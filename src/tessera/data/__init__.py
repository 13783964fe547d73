"""From shards of documents to batches, one stage a file, each to be read alone.

    sources/    shard -> documents    local, cached or remote; by (shard, sample), never in order
    pipeline/   shuffle               position -> (shard, sample): an order that is no list
                streams, pieces       one source as one lane reads it, cut to `max_seq_len`
                mixture               the next piece comes from the source furthest behind its share
                packing               waiting pieces -> the pieces of a full row
                masking, causal       which tokens are predicted, and what the model sees of them
                rows                  pieces -> ids, segment ends, predicted positions, labels
                lanes                 all of these, `lanes` times over; state after each row
                workers               lanes in other processes, ahead of training
                state, continuation   where all lanes stand; going on from there, changed or not
                fingerprint           what must not change in between
    collate     rows -> PackedBatch   tensors of shapes that repeat
    loader      this rank's rows of each global batch, with the state to continue after it

Stages are generators, functions and small classes without threads. What comes out travels with the
state to continue after it (`pipeline/state.py`), so that resuming replays nothing. `batch_schedule`
says how many rows a global batch has, `randomness` is where every draw comes from, `digest` names
rows and batches, `validation` packs the same rows at each evaluation, `preparation/` writes shards.
"""
