"""Pages for people to look at: what a model does, in one file each that opens from the disk without a network."""
