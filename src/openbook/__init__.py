"""Train retrieval-augmented generation end to end (Lewis et al. 2020, arXiv:2005.11401)."""
