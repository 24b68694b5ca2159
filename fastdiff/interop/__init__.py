"""Other projects' models and schedulers on fastdiff's kernels. Their packages are imported only when used."""
