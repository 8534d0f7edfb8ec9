"""Print a digest of the first global batches as the devices hold them; run as one process of several."""

import hashlib
import sys

import jax
import numpy as np
from absl import flags

from bert_jax.config import MeshConfig
from bert_jax.data.loader import PretrainingBatches
from bert_jax.parallel import distributed
from bert_jax.parallel import mesh as meshes

flags.FLAGS.mark_as_parsed()
hosts = distributed.start(seconds=60)
with distributed.exiting_together(hosts):
    directory, *sizes = sys.argv[1:]
    mesh = meshes.make_mesh(MeshConfig(*map(int, sizes)))
    shares, share_count = meshes.batch_shards(mesh)
    batches = PretrainingBatches(
        directory, max_seq_length=32, batch_size=16, seed=5, shards=shares, num_shards=share_count
    )
    whole = jax.jit(lambda rows: rows, out_shardings=meshes.replicated(mesh))
    digest = hashlib.sha256()
    for rows in batches.iterate(start=0, stop=5):
        placed = whole(meshes.to_global(rows, mesh=mesh))
        for name in sorted(placed):
            digest.update(np.asarray(placed[name]).tobytes())
    if hosts.is_main:
        print("digest", digest.hexdigest(), "rows read here", len(batches.row_indices(0)))
