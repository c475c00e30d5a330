"""One file format a module: the only home of h5py."""
