"""Ways to run a kernel of kernels/*.cu: each has `xp`, the library of its arrays, and `launch`."""
