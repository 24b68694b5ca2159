"""Other projects' models and schedulers on fastdiff's kernels. Nothing of theirs is imported before it is used."""
