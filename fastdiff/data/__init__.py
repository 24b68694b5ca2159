"""Image data: readers of every kind of file, images fitted to a model, and loading in worker processes."""
